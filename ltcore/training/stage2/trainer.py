"""Stage 2: features of a finished run, computed once, then a new classifier on them, validated and tested like any run.

The backbone is in evaluation mode throughout, so that neither a parameter nor a batch-norm statistic of it changes. What
comes out is an ordinary network and an ordinary checkpoint, written when all is done: a run that is stopped before has left
none, and starts again from its beginning, which takes seconds. One process; the features lie in its memory.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltcore.config.optim import OptimConfig
from ltcore.config.records import RunRecord, Stage1, now
from ltcore.config.schema import RunConfig
from ltcore.config.stage2 import Stage2Config
from ltcore.data.augment.augment import Augment
from ltcore.data.loading.loader import Loader
from ltcore.errors import ConfigError, NumericError
from ltcore.evaluation.catalog import goodness
from ltcore.evaluation.plugged import metrics_of
from ltcore.models.net import LongTailNet
from ltcore.models.tune import count
from ltcore.objective.stage2.method import CHUNK, FeatureSet, Trained, expert_cross_entropy, expert_logits
from ltcore.retry import retrying
from ltcore.tracking.base import Tracker
from ltcore.training import checkpoint as ckpt
from ltcore.training import ncm
from ltcore.training.callbacks import CallbackCalls
from ltcore.training.context import DECIDE_EVERY, RunContext, StopRequested
from ltcore.training.evaluate import Evaluator, check_train_split
from ltcore.training.hardware import choose_precision, compute_float32_exactly, most_memory_bytes
from ltcore.training.optim import build_optimizer, lr_factor, set_lr
from ltcore.training.predict import predictor_of
from ltcore.training.record import RunInfo, RunLog
from ltcore.training.same_run import check_same_run
from ltcore.training.same_start import origin_of
from ltcore.training.selection import refuse_without_value
from ltcore.training.stage2.features import pooled_features
from ltcore.training.stage2.source import refuse_other_data, stage1_checkpoint
from ltcore.training.tested import keep_tests


def refuse_workers(workers: int) -> None:
    """Raises ConfigError for more than one worker."""
    if workers > 1:
        raise ConfigError(
            f"Stage 2 was given {workers} workers, but trains a classifier on features in the memory of one process, in "
            "seconds. Leave --workers away."
        )


def fit_stage2(
    cfg: RunConfig, loader: Loader, ctx: RunContext, run_dir: Path, log: Tracker, info: RunInfo, record: RunLog
) -> RunRecord:
    """Runs stage 2 from its beginning; as ``trainer.fit`` does, it returns the run's record.

    ``cfg`` is what ``stage1.resolved`` gives. Raises StopRequested if the context asked to stop, NumericError if a loss is
    not finite, CheckpointError if stage 1 was trained on other data or ``run_dir`` holds another run.
    """
    refuse_workers(ctx.world)
    check_train_split(loader, cfg.data.train_split)
    previous = ckpt.find(run_dir / "checkpoints")
    if previous is not None:
        check_same_run(previous, cfg.to_flat(), loader.store.manifest.hash)
    return Stage2Trainer(cfg, loader, ctx, run_dir, log, info, record).run()


class Stage2Trainer:
    """Balances the classifiers of a finished run on its features."""

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
        assert cfg.stage2 is not None
        self.cfg, self.loader, self.ctx, self.log, self.info, self.record = cfg, loader, ctx, log, info, record
        self.stage2: Stage2Config = cfg.stage2
        self.run_dir, self.folder = run_dir, run_dir / "checkpoints"
        self.began = time.monotonic()
        prep = loader.prep
        compute_float32_exactly(ctx.device)
        self.net = self._network().to(device=ctx.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net.eval()
        self.evaluator = Evaluator(
            net=self.net,
            loader=loader,
            device=ctx.device,
            batch_size=cfg.train.eval_batch_size,
            normalize=Augment(cfg.augment, seed=cfg.seed, mean=prep.mean, std=prep.std, num_views=1).evaluate,
            autocast=choose_precision(cfg.train.precision, ctx.device).autocast,
            beat=self._tick,
            plugged=metrics_of(cfg.plugins, cfg.metrics),
        )
        self.callbacks, self.stopped = CallbackCalls(cfg, run_dir, self.net, ctx.rank), ""
        self.epoch = self.step = self.draws = 0
        self.best: dict[str, Any] = {}
        self.best_heads: dict[str, Tensor] = {}

    def _network(self) -> LongTailNet:
        """Returns the network of stage 1, with classifiers of the kind that the method leaves."""
        manifest = self.loader.store.manifest
        with stage1_checkpoint(self.stage2.from_run, weights=True) as found:
            stage1 = predictor_of(found)
            refuse_other_data(self.stage2.from_run, found, manifest)
            self.record.update(
                stage1=Stage1(
                    run=self.stage2.from_run, name=stage1.config.name, seed=stage1.config.seed, **origin_of(found)
                )
            )
        net = LongTailNet(self.cfg.model, len(manifest.classes), frozenset(), self.cfg.seed)
        keep_heads = self.cfg.model.head == stage1.config.model.head
        weights = {k: v for k, v in stage1.net.state_dict().items() if keep_heads or not k.startswith("heads.")}
        net.load_state_dict({**net.state_dict(), **weights})
        return net

    def run(self) -> RunRecord:
        """Trains to the end, or to where it is told to stop. Returns the run's record."""
        cfg, stats = self.cfg, self.loader.store.manifest.stats(self.cfg.data.train_split)
        self.val = self._features("val") if "val" in self.loader.store.manifest.splits else None
        self.train = self._features(cfg.data.train_split)
        self.ncm = {} if self.val is None else ncm.validation(cfg, self.evaluator)  # the same in every round
        self.net.requires_grad_(False)
        self.net.heads.requires_grad_(True)
        self.method: Any = self.stage2.row.build(self.stage2.chosen, self.net.heads, stats, cfg.seed)
        self.method.to(self.ctx.device)
        self.optim = self._optim() if isinstance(self.method, Trained) else None
        self.optimizer = build_optimizer(self.optim, self.method) if self.optim else None
        trained = count(self.method)[0] if self.optim else 0  # a solved classifier is computed
        self.record.update(trained_parameters=trained, parameters=count(self.net)[1])
        self.labels_N = self.train.labels_N.cpu()
        last: dict[str, Any] = {}
        self.callbacks.start(0, last)
        while self.epoch < cfg.epochs and not self.stopped:
            last = self._round()
        if self.method.chooses and self.best:
            last = self.best
            self.net.heads.load_state_dict(self.best_heads)
        self._save("last", last)
        last_heads = copy.deepcopy(self.net.heads.state_dict())
        if self.best:
            self.net.heads.load_state_dict(self.best_heads)
            self._save("best", self.best)
        fields: dict[str, Any] = {"status": "finished", "finished_at": now(), "last": last, "best": self.best}
        fields["reason"] = self.stopped
        fields["seconds"] = time.monotonic() - self.began
        if self.info.test:
            fields |= self._test(last_heads, same=last == self.best)
        self.callbacks.end(self.epoch, last, fields.get("test", {}))
        self.record.update(**fields)
        return self.record.value

    def _optim(self) -> OptimConfig:
        options = self.stage2.chosen
        return OptimConfig(
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            schedule=options.schedule,
            warmup=0.0,
        )

    def _features(self, split: str) -> FeatureSet:
        return pooled_features(self.evaluator, split, getattr(torch, self.stage2.feature_dtype))

    def _tick(self) -> None:
        """Gives a sign of life, and stops where that is requested."""
        self.ctx.beat(self.epoch, self.draws, max(self.draws, 1))
        if self.ctx.stop_requested():
            raise StopRequested(
                f"stopped in epoch {self.epoch + 1} of {self.cfg.epochs} of stage 2, which starts again from its beginning"
            )

    # ---- rounds

    def _round(self) -> dict[str, Any]:
        started, first = time.monotonic(), self.draws
        values = self._descend() if self.optim else self._solve()
        took = time.monotonic() - started
        if not math.isfinite(values["train/loss"]):
            advice = f"Lower stage2.options.{self.stage2.method}.lr" if self.optim else self.method.if_not_finite
            raise NumericError(
                f"Stage 2, epoch {self.epoch + 1}: the loss is not finite ({values['train/loss']}). {advice}."
            )
        self.epoch += 1
        metrics: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "images_seen": self.draws,
            "progress": self.epoch / self.cfg.epochs,
            **values,
            **self._validate(),
            "images_per_s": (self.draws - first) / max(took, 1e-9),
            "data_wait_fraction": 0.0,
            "checkpoint_s": 0.0,
            "memory_bytes": most_memory_bytes(self.ctx.device),
            "time_s": time.monotonic() - self.began,
        }
        columns, self.stopped = self.callbacks.epoch_end(self.epoch, metrics)
        metrics |= columns
        self.log.log(metrics, self.step)
        self._keep_if_best(metrics)
        self.record.update(last=metrics, best=self.best, epochs_done=self.epoch, images_seen=self.draws)
        self.ctx.report(metrics, None)
        return metrics

    def _descend(self) -> dict[str, float]:
        """Trains one epoch of SGD."""
        assert self.optim is not None and self.optimizer is not None
        lr = self.optim.lr * lr_factor(self.optim, self.epoch, self.cfg.epochs)
        set_lr(self.optimizer, lr)
        rows_L = self.method.rows(self.epoch, self.labels_N).to(self.ctx.device)
        total = torch.zeros((), dtype=torch.float64, device=self.ctx.device)
        for rows_B in rows_L.split(self.stage2.chosen.batch_size):
            if self.step % DECIDE_EVERY == 0:
                self._tick()
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.method(self.train.features_ND[rows_B].float(), self.train.labels_N[rows_B])
            loss.backward()
            self.optimizer.step()
            self.method.project_()
            total += loss.detach() * len(rows_B)
            self.step += 1
            self.draws += len(rows_B)
        self.method.export_()
        return {"lr": lr, "train/loss": float(total) / len(rows_L)}

    @torch.no_grad()
    def _solve(self) -> dict[str, float]:
        """Computes the next classifiers, and returns their cross-entropy on the training features."""
        self._tick()
        values = self.method.solve_(self.epoch, self.train)
        self.step += 1
        self.draws += len(self.labels_N)
        total = sum(
            expert_cross_entropy(expert_logits(self.net.heads, features_BD), labels_B).sum().double()
            for features_BD, labels_B in self.train.chunks()
        )
        return {"lr": 0.0, "train/loss": float(total) / len(self.labels_N), **values}

    # ---- validation, test, checkpoints

    @torch.no_grad()
    def _validate(self) -> dict[str, Any]:
        """Returns the metrics of the validation split, from its features."""
        if self.val is None:
            return {}
        counts = self.evaluator.counter("val")
        attributes_N = torch.tensor(self.loader.store.attributes("val"), device=self.ctx.device)
        chunks = zip(self.val.chunks(), attributes_N.split(CHUNK), strict=True)
        for (features_BD, labels_B), attributes_B in chunks:
            counts.update(expert_logits(self.net.heads, features_BD).mean(1), labels_B, attributes_B)
        values = self.evaluator.metrics(counts) | self.ncm
        return {f"val/{name}": value for name, value in values.items()}

    def _keep_if_best(self, metrics: dict[str, Any]) -> None:
        key = self.cfg.train.select
        value = metrics.get(key)
        refuse_without_value(key, metrics, self.loader.store.manifest)
        if value is None and self.method.chooses and self.cfg.epochs > 1:
            raise ConfigError(
                f"stage2.method={self.stage2.method} chooses by train.select={key}, which these data do not give: there is no "
                f"validation split. Give one candidate alone, such as stage2.options."
                f"{self.stage2.method}.tau=1.0."
            )
        if value is not None and (not self.best or goodness(key, value) > goodness(key, self.best[key])):
            self.best, self.best_heads = dict(metrics), copy.deepcopy(self.net.heads.state_dict())

    def _test(self, last_heads: dict[str, Tensor], *, same: bool) -> dict[str, Any]:
        """Tests every test split, from its images, with the last and the best classifiers.

        The best are those with the best value on validation; the ``same`` ones are tested once.
        """
        self.net.heads.load_state_dict(last_heads)
        last = best = ncm.tests(self.cfg, self.evaluator)
        if not same:
            best = {}
            if self.best_heads:
                self.net.heads.load_state_dict(self.best_heads)
                best = ncm.tests(self.cfg, self.evaluator)
        self.record.check()
        return keep_tests(last, best, self.run_dir)

    def _save(self, tag: str, metrics: dict[str, Any]) -> None:
        manifest = self.loader.store.manifest
        counts = self.evaluator.attribute_counts
        meta = ckpt.description(
            self.cfg.to_flat(), manifest, self.loader.prep, counts, epoch=metrics["epoch"], metrics=self.best
        )

        def write() -> None:
            self.record.check()
            ckpt.save(self.folder, tag, step=metrics["step"], model=self.net.state_dict(), state=None, meta=meta)

        retrying(str(self.run_dir), write)
