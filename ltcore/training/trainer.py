"""The loop: batches -> step -> memories -> evaluation -> checkpoint -> report. It knows no Ray and no W&B."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch
from ltcore.config.load import check_world
from ltcore.config.records import Notice, RunRecord, Start, now
from ltcore.config.schema import RunConfig
from ltcore.data.loading.loader import Loader
from ltcore.evaluation.catalog import goodness
from ltcore.evaluation.plugged import metrics_of
from ltcore.models.norm import average_running_stats_
from ltcore.models.tune import count
from ltcore.retry import Postponed, retrying
from ltcore.tracking.base import Tracker
from ltcore.training import checkpoint as ckpt
from ltcore.training import ncm
from ltcore.training.base import described, trained_part, trained_state, with_base
from ltcore.training.build import Components, build
from ltcore.training.callbacks import CallbackCalls
from ltcore.training.compiled import forget_compiled
from ltcore.training.context import DECIDE_EVERY, Interrupted, RunContext, StopRequested
from ltcore.training.copies import plan_epoch
from ltcore.training.descent import build_descent, take_step
from ltcore.training.evaluate import Evaluator, Tested, check_train_split
from ltcore.training.findings import findings
from ltcore.training.hardware import most_memory_bytes
from ltcore.training.head_init import start_head
from ltcore.training.init_from import start_centroids, start_from, whole_state
from ltcore.training.monitor import MeanMetrics, NonFiniteGuard, timed
from ltcore.training.optim import step_rate
from ltcore.training.pace import SavePace
from ltcore.training.progress import TrainProgress
from ltcore.training.record import RunInfo, RunLog
from ltcore.training.same_run import check_same_run
from ltcore.training.same_start import refuse_other_weights
from ltcore.training.selection import refuse_without_value
from ltcore.training.state import load_state, state_dict, take_pending
from ltcore.training.tested import keep_tests
from ltcore.training.weights_file import SHA256


def fit(
    cfg: RunConfig, loader: Loader, ctx: RunContext, run_dir: Path, log: Tracker, info: RunInfo, record: RunLog
) -> RunRecord:
    """Trains until ``train.epochs`` epochs are done, continuing from the newest checkpoint in ``run_dir``.

    Every rank calls it with the same arguments; rank 0 alone writes. Returns the run's record.
    Raises StopRequested after saving if the context asked to stop, NumericError if a loss is not finite.
    """
    check_train_split(loader, cfg.data.train_split)
    check_world(cfg, ctx.world)
    try:
        return Trainer(cfg, loader, ctx, run_dir, log, info, record).run()
    finally:
        forget_compiled(cfg.train.compile)


class Trainer:
    """Trains one run: epochs, validation, checkpoints, test."""

    def __init__(
        self,
        cfg: RunConfig,
        loader: Loader,
        ctx: RunContext,
        run_dir: Path,
        log: Tracker,
        info: RunInfo,
        record: RunLog,
    ) -> None:
        self.cfg, self.loader, self.ctx, self.log, self.info, self.record = cfg, loader, ctx, log, info, record
        self.run_dir, self.folder = run_dir, run_dir / "checkpoints"
        self.components: Components = build(cfg, loader, ctx)
        self.evaluator = Evaluator(
            net=self.components.eval_net,
            loader=loader,
            device=ctx.device,
            batch_size=cfg.train.eval_batch_size,
            normalize=self.components.augment.evaluate,
            autocast=self.components.precision.autocast,
            beat=self._beat,
            plugged=metrics_of(cfg.plugins, cfg.metrics),
        )
        self.descent = build_descent(cfg.train, self.components, ctx.device)
        self.callbacks = CallbackCalls(cfg, run_dir, self.components.eval_net, ctx.rank)
        self.at = TrainProgress()
        self.total_images = cfg.train.epochs * loader.num_batches * cfg.train.batch_size
        self.pace = SavePace(cfg.train.checkpoint_every_s)
        self.counted_at = time.monotonic()
        self.last_saved_step = -1
        self.disk = Postponed(str(run_dir))
        self.class_prior: list[float] = []
        """Class shares that the last epoch taught, under the weights or draws of its samples and natural class weights."""
        self.base: dict[str, str] = {}
        """What checkpoints say of the part of the network that they leave out; {} where they are whole."""

    # ---- the run

    def run(self) -> RunRecord:
        """Trains to the end, or to where it is told to stop. Returns the run's record."""
        self._resume()
        self._note_schedule()
        metrics = dict(self.at.last)
        self.callbacks.start(self.at.epoch, metrics)
        while not self._over:
            metrics = self._epoch()
        fields: dict[str, Any] = {
            "status": "finished",
            "reason": self._stopped_early(),
            "finished_at": now(),
            "last": metrics,
            "best": self.at.best,
            "seconds": self.at.seconds,
        }
        if self.info.test:
            fields |= self._test()
        self.callbacks.end(self.at.epoch, metrics, fields.get("test", {}))
        self.record.update(**fields)
        return self.record.value

    def _note_schedule(self) -> None:
        """Adds the mutable keys' present values to the schedule where they differ from the last."""
        if not self.info.mutable:
            return
        keys = self.cfg.to_flat()
        now = {key: keys[key] for key in self.info.mutable}
        last = self.at.schedule[-1] if self.at.schedule else {}
        if any(last.get(key) != value for key, value in now.items()):
            self.at.schedule.append({"images_seen": self.at.images_seen, **now})
        self.record.update(schedule=list(self.at.schedule))

    def _epoch(self) -> dict[str, Any]:
        cfg, at = self.cfg, self.at
        lr = self._rate(self.loader.num_batches - 1)
        plan_epoch(cfg, self.loader, self.components.step.objective, at.epoch, self.ctx.device)
        self.class_prior = self.components.step.objective.learned_shares_C(self._progress()).tolist()
        started, first_image = time.monotonic(), at.images_seen
        self.counted_at = started
        sums = MeanMetrics(at.sums, at.counts, self.ctx.device)
        guard = NonFiniteGuard(self.folder)
        waited = 0.0
        for batch, wait_s in timed(self.loader.train_batches(at.epoch, at.step_in_epoch)):
            waited += wait_s
            if parts := self._step(batch):
                guard.add(at.step, parts)
                sums.add(parts)
            else:
                guard.skipped(at.step, self.descent.scale)
            if at.step % DECIDE_EVERY == 0:
                self._beat()
                guard.check()
                self._maybe_save_or_stop(sums)
        guard.check()
        means = sums.means()
        self.components.step.objective.merge(self._progress())
        for module in (self.components.step, *([self.components.average.net] if self.components.average else [])):
            average_running_stats_(module)
        train_s = time.monotonic() - started
        skipped = {"skipped_steps": at.skipped_steps} if self.descent.scales else {}
        at.epoch, at.step_in_epoch, at.skipped_steps, at.sums, at.counts = at.epoch + 1, 0, 0, {}, {}
        metrics: dict[str, Any] = {
            "epoch": at.epoch,
            "step": at.step,
            "images_seen": at.images_seen,
            "progress": self._progress(),
            "lr": lr,
            **{f"train/{name}": value for name, value in (means | skipped).items()},
            **self._validate(),
            **findings(self.components.step.objective, self.loader, cfg.data.train_split, self.ctx.device),
            "images_per_s": (at.images_seen - first_image) / max(train_s, 1e-9),
            "data_wait_fraction": waited / max(train_s, 1e-9),
            "checkpoint_s": self.pace.saving_s,
            "memory_bytes": most_memory_bytes(self.ctx.device),
        }
        self.pace.saving_s = 0.0
        self._count_time()
        metrics["time_s"] = at.seconds
        columns, at.stopped = self.callbacks.epoch_end(at.epoch, metrics)
        metrics |= columns
        self._finish_epoch(metrics)
        return metrics

    def _finish_epoch(self, metrics: dict[str, Any]) -> None:
        cfg, at = self.cfg, self.at
        at.last = dict(metrics)
        # before the checkpoint: a resumed run drops rows that are ahead of it, not the other way
        self.log.log(metrics, at.step)
        if (value := metrics.get(cfg.train.select)) is not None:
            at.judge(goodness(cfg.train.select, value), cfg.train.min_delta)
        if self._is_best(metrics):
            at.best = dict(metrics)
            self._save("best")
        due = self.pace.late or self._over or self.ctx.checkpoint_every_epoch
        if dist.broadcast_object(due):
            self._save("last", wait=self._over)
        self._record_epoch()
        newest = self.folder / f"last-{self.last_saved_step:08d}" if self.last_saved_step == at.step else None
        self.ctx.report(metrics, newest)
        _, stop, notice = self._asked()
        if notice and not self._over:
            if self.last_saved_step != at.step:
                self._save("last")
            self._leave(notice)
        if stop and not self._over:
            self._stop()
        self._stop_if_there()

    def _record_epoch(self) -> None:
        at = self.at
        self.record.update(
            bad_samples=len(self.loader.bad_samples),
            last=at.last,
            best=at.best,
            epochs_done=at.epoch,
            images_seen=at.images_seen,
            seconds=at.seconds,
        )

    def _stop_if_there(self) -> None:
        if 0 < self.info.until <= self.at.epoch and not self._over:
            self._stop(wait=True)  # others start from it

    def _stop(self, *, wait: bool = False) -> None:
        if self.last_saved_step != self.at.step:
            self._save("last", wait=wait)
        raise StopRequested(f"stopped after epoch {self.at.epoch} of {self.cfg.train.epochs}")

    def _rate(self, step: int) -> float:
        """Returns the learning rate of the classifiers in a 0-based step of the present epoch."""
        cfg = self.cfg.train
        return step_rate(cfg.optim, cfg.epochs, self.loader.num_batches, self.at.epoch, step)

    def _step(self, raw: Batch) -> dict[str, Tensor]:
        at = self.at
        self.descent.set_lr(self._rate(at.step_in_epoch))
        batch = self.components.augment(raw.to(self.ctx.device), at.epoch, raw)
        parts = take_step(self.components, self.descent, batch, self._progress(), self.cfg.train.accumulate)
        at.skipped_steps += not parts
        at.step += 1
        at.step_in_epoch += 1
        at.images_seen += self.cfg.train.batch_size
        return parts

    # ---- evaluation

    def _beat(self) -> None:
        self.ctx.beat(self.at.epoch, self.at.images_seen, self.total_images)

    def _validate(self) -> dict[str, Any]:
        due = self.at.epoch % self.cfg.train.eval_every == 0 or self.at.epoch == self.cfg.train.epochs
        if not due or "val" not in self.loader.store.manifest.splits:
            return {}
        values = self.evaluator.metrics(self.evaluator.counts("val"))
        values |= ncm.validation(self.cfg, self.evaluator)
        return {f"val/{name}": value for name, value in values.items()}

    def _test(self) -> dict[str, Any]:
        """Tests once, with the weights of the last epoch, and with those of the best epoch on validation."""
        last, best = ncm.tests(self.cfg, self.evaluator), {}
        if self.info.kind == "run":  # in a sweep the test splits are read once; what was best decides nothing there
            best = last if self.at.best == self.at.last else self._test_best()
        self.record.check()
        return keep_tests(last, best, self.run_dir if self.ctx.rank == 0 else None)

    def _test_best(self) -> dict[str, Tested]:
        """Tests with the weights of the best epoch on validation; nothing where there is none."""
        found = ckpt.find(self.folder, "best") if self.ctx.rank == 0 else None
        weights = dist.broadcast_object(found.model_state() if found else None)
        if weights is None:
            return {}
        self.components.eval_net.load_state_dict(with_base(self.components.eval_net, weights))
        return ncm.tests(self.cfg, self.evaluator)

    @property
    def _over(self) -> bool:
        return self.at.epoch >= self.cfg.train.epochs or bool(self._stopped_early())

    def _stopped_early(self) -> str:
        """Returns why training ends before its last epoch; '' where it does not."""
        cfg, at = self.cfg.train, self.at
        if at.stopped:
            return at.stopped
        if cfg.patience is None or at.in_vain < cfg.patience or at.epoch >= cfg.epochs:
            return ""
        return f"early stopping at epoch {at.epoch}: no better {cfg.select} since epoch {at.peak_epoch}"

    def _is_best(self, metrics: Mapping[str, Any]) -> bool:
        key = self.cfg.train.select
        value = metrics.get(key)
        refuse_without_value(key, metrics, self.loader.store.manifest)
        return value is not None and (not self.at.best or goodness(key, value) > goodness(key, self.at.best[key]))

    # ---- state

    def _progress(self) -> float:
        return min(self.at.images_seen / self.total_images, 1.0)

    def _count_time(self) -> None:
        now = time.monotonic()
        self.at.seconds, self.counted_at = self.at.seconds + now - self.counted_at, now

    def _maybe_save_or_stop(self, sums: MeanMetrics) -> None:
        due, stop, notice = self._asked()
        if due or stop or notice:
            self.at.sums, self.at.counts = sums.over_ranks()
            self._count_time()
            self._save("last", wait=False)
            self.ctx.saved()
        if notice:
            self._leave(notice)
        if stop:
            raise StopRequested(f"stopped in epoch {self.at.epoch + 1} of {self.cfg.train.epochs}, step {self.at.step}")

    def _asked(self) -> tuple[bool, bool, Notice | None]:
        """Returns what all ranks have to do: save, stop, make room for the workers that follow."""
        late, stop, ask = dist.broadcast_object((self.pace.late, self.ctx.stop_requested(), self.ctx.notice_due()))
        return late, stop, self.ctx.notice() if ask else None

    def _leave(self, notice: Notice) -> None:
        """Ends this start after its checkpoint, so that the run goes on elsewhere without repeating an image."""
        *before, this = self.record.value.starts or ()
        this = dataclasses.replace(this, notice=notice, left_at=self.at.images_seen)
        self.record.update(starts=(*before, this))
        raise Interrupted(f"{notice} after epoch {self.at.epoch}, step {self.at.step}", self.record.value)

    def _save(self, tag: str, *, wait: bool = True) -> None:
        """Saves a checkpoint. On a disk that is full it waits, or without ``wait`` leaves this one out, for some minutes."""
        began, saved = time.monotonic(), True
        state = (
            state_dict(self.components, self.descent, self.at) if tag == "last" else None
        )  # a collective: memories of all ranks
        if self.ctx.rank == 0:
            meta = ckpt.description(
                self.cfg.to_flat(),
                self.loader.store.manifest,
                self.loader.prep,
                self.evaluator.attribute_counts,
                epoch=self.at.epoch,
                metrics=self.at.best,
            )
            meta |= {"class_prior": self.class_prior, **self.base}
            model, step = self.components.eval_net.state_dict(), self.at.step
            if self.base:
                model = trained_part(self.components.eval_net, model)
                state = state and trained_state(self.components, state)

            def write() -> None:
                self.record.check()  # saving removes older checkpoints, which may be another process's by now
                ckpt.save(self.folder, tag, step=step, model=model, state=state, meta=meta)

            if wait:
                retrying(str(self.run_dir), write)
            else:
                saved = self.disk.attempt(write, f"the checkpoint of step {step}")
        saved = dist.broadcast_object(saved)  # which is a barrier, too
        if tag == "last":
            self.pace.tried(saved=saved)
            if saved:
                self.last_saved_step = self.at.step
        self.pace.took(time.monotonic() - began)

    def _resume(self) -> None:
        """Restores the newest checkpoint, which rank 0 finds and reads.

        The other ranks receive it from there, so no rank needs to see rank 0's disk.
        """
        state, pending = None, {}
        if self.ctx.rank == 0 and (found := ckpt.find(self.folder)) is not None:
            check_same_run(found, self.cfg.to_flat(), self.loader.store.manifest.hash, self.info.mutable)
            state = found.train_state()
            refuse_other_weights(found.path, state["progress"].get("started_from"), self.cfg)
            best = ckpt.find(self.folder, "best")
            if best is not None and best.meta["step"] > state["progress"]["step"]:
                # Of steps that are repeated now, on a GPU perhaps with other last digits; its weights are those that are there.
                state["progress"]["best"] = best.meta["metrics"]
            pending = take_pending(state)
            state = whole_state(found, self.cfg, self.components, state)
        state = dist.broadcast_object(state)
        if state is not None:
            self.at = load_state(self.components, self.descent, state, pending)
            self.last_saved_step = self.at.step
            self._record_epoch()  # no epoch may follow that would
        elif self.cfg.train.init_from is not None or self.cfg.model.weights is not None:
            self.at.started_from = start_from(self.cfg, self.components, self.loader.store.manifest.classes)
            start_centroids(self.cfg, self.components, self.evaluator)
        if state is None:
            self.at.started_from |= start_head(self.cfg, self.components, self.evaluator)
        self.base = described(self.cfg, self.components.step.net)
        start = Start(images_seen=self.at.images_seen, world=self.ctx.world, host=platform.node(), at=now())
        trained, parameters = count(self.components.step.net)
        starts = (*(self.record.value.starts or ()), start)
        self.record.update(starts=starts, trained_parameters=trained, parameters=parameters)
        if self.at.started_from:
            self.record.update(started_from=self.at.started_from, weights_sha256=self.at.started_from.get(SHA256))
        self._stop_if_there()
