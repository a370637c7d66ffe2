"""The runs of a sweep that are no trials: baseline and retrains, each a Ray task, as many at a time as fit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from ltcore.config import overrides as trees
from ltcore.config.gpu_share import GpuShare
from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.errors import CheckpointError, LtcoreError
from ltcore.evaluation.catalog import title_of
from ltcore.runtime.cluster import Cluster
from ltcore.runtime.gpu_share import whole
from ltcore.runtime.heartbeat import Watchdog
from ltcore.runtime.placement import Placement, Scaling
from ltcore.runtime.progress import ProgressDisplay
from ltcore.runtime.ray_task import MOVES, cancel, result_of, stall_error, submit
from ltcore.runtime.ray_train import told_to_leave
from ltcore.storage import join
from ltcore.training.record import RunInfo
from ltcore.training.run import Job, delete_run
from ltcore.training.same_run import refuse_differences
from ltcore.training.weights_input import with_input
from ltcore.tuning.measured import has_own_input
from ltcore.tuning.messages import end_of_part
from ltcore.tuning.rungs import standing


@dataclass(frozen=True)
class SweepSetup:
    """A sweep whose questions are answered: what, on which data, where, with what."""

    sweep: SweepConfig
    base: RunConfig
    num_trials: int
    """Of the search: ``sweep.size``, or as many as ``sweep.budget_s`` allows."""
    seed: int
    data_uri: str
    data_hash: str
    uri: str
    """Directory of the sweep on the storage."""
    cluster: Cluster
    placement: Placement
    unshared: Placement
    """Where runs go that have a whole GPU each; ``placement`` where none share one."""
    images_per_epoch: int
    max_hours: float | None
    debug: bool
    gpu_share: GpuShare | None = None
    """What each run takes of a GPU, and why; None where they run without one."""
    weights_sha256: Mapping[str, str] = field(default_factory=dict)
    """Setting that leads to weights -> hash of their file or checkpoint, of those known when this command began."""

    @property
    def own_input(self) -> bool:
        """Tells whether runs of the sweep start from weights that expect other images, see ``with_input``."""
        return has_own_input(self.sweep)

    @property
    def chose_part(self) -> bool:
        """Tells whether runs have a part of a GPU that nobody asked for."""
        return self.gpu_share is not None and self.gpu_share.auto and self.gpu_share.gpus < 1

    def with_whole_gpus(self, run: str) -> SweepSetup:
        """Returns the same with a whole GPU for each run, as the part was too small for ``run``."""
        part = self.placement.scaling.gpus_per_worker
        measured = None if self.gpu_share is None else self.gpu_share.measured
        share = whole(f"{part:.4g} was too small for {run}", measured)
        return dataclasses.replace(self, placement=self.unshared, gpu_share=share)


class TimeIsUp(Exception):  # noqa: N818  (no error)
    """Runs were asked to save and end, since --max-hours have passed or a person asked for it; none of them goes on."""


class Runs:
    """Starts single runs of a sweep and waits for them."""

    def __init__(
        self,
        setup: SweepSetup,
        display: ProgressDisplay,
        watch: Watchdog,
        heartbeat_name: str,
        nonce: str,
        id_prefix: str,
    ) -> None:
        self.setup, self.display, self.watch = setup, display, watch
        self.heartbeat_name, self.nonce, self.id_prefix = heartbeat_name, nonce, id_prefix
        self._submitted: dict[Any, tuple[Job, str, Scaling]] = {}
        self.beside: dict[Any, str] = {}
        """What runs beside the search until it has ended, the baseline: its task -> its name."""

    def job(self, where: str, seed: int, kind: str, changes: Mapping[str, Any]) -> Job:
        """Returns the job of the recipe's run with these changes, in directory ``where`` of the sweep."""
        own = {"seed": seed, "name": where.replace("/", "-")}
        config = self.setup.base.replace({**changes, **own})
        if self.setup.own_input:
            config = with_input(config)
        return Job(
            config=config.to_dict(),
            data_uri=self.setup.data_uri,
            run_uri=join(self.setup.uri, where),
            info=RunInfo(
                id=f"{self.id_prefix}-{where.replace('/', '-')}",
                kind=kind,
                group=self.setup.sweep.name,
                test=kind == "retrain",
            ),
            cpus=self.setup.placement.scaling.cpus_per_worker,
            gpus=self.setup.placement.scaling.gpus_per_worker,
            heartbeat=self.heartbeat_name,
            nonce=self.nonce,
            label=self.label(where),
        )

    @staticmethod
    def label(where: str) -> str:
        """Returns what a run in directory ``where`` is called on the terminal: another name in each stage."""
        folder, _, name = where.rpartition("/")
        return f"ALT {name}" if folder == "alt" else name

    def submit(self, job: Job, engine: str = "") -> Any:
        """Starts a run where the trials of the sweep go; ``engine`` is theirs unless another is given."""
        placement = self.setup.placement
        return self._submit(job, engine or placement.engine, placement.scaling)

    def _submit(self, job: Job, engine: str, scaling: Scaling) -> Any:
        ref = submit(job, engine, scaling)
        self._submitted[ref] = (job, engine, scaling)
        return ref

    def cancel(self) -> None:
        """Cancels what still runs, where Ray goes on. A local Ray ends next."""
        if not self.setup.cluster.local:
            cancel(self._submitted)

    def run_all(self, jobs: dict[str, Job], streamed: str = "", engine: str = "", *, may_fail: bool = False) -> None:
        """Runs jobs, as many at a time as there are real resources for.

        A local Ray counts more CPUs than there are. The job named ``streamed`` goes first, through Ray Data's Ray
        loader and Ray Train with two workers: they take long to start, and the other runs use that time. ``engine`` is
        that of the sweep unless another is given. With ``may_fail`` one that fails for good ends alone, as a trial does.
        """
        waiting = list(jobs.items())
        running: dict[Any, str] = {}
        if streamed:
            config = (
                RunConfig.from_dict(jobs[streamed].config)
                .replace({"data.loader": "ray", "data.resident": "off"})
                .to_dict()
            )
            job = dataclasses.replace(jobs[streamed], config=config, cpus=1)
            running[self._submit(job, "train", Scaling(workers=2))] = streamed
            waiting = [(name, job) for name, job in waiting if name != streamed]
        most = max(self.setup.placement.concurrent, 2 if streamed else 1)
        while waiting or running:
            while waiting and not self.watch.saving.is_set() and len(running) < most:
                name, job = waiting.pop(0)
                running[self.submit(job, engine)] = name
            self.wait_any(running, may_fail=may_fail)

    def wait_any(self, running: dict[Any, str], *, may_fail: bool = False) -> None:
        """Takes finished runs out of ``running``; cancels everything where nothing progresses any more."""
        if running is not self.beside:
            self.move_beside()
        ready, _ = ray.wait(list(running), timeout=1.0)
        for ref in ready:
            name = running.pop(ref)
            self.watch.touch()
            try:
                record: RunRecord | None = result_of(ref)
            except LtcoreError:
                failed = RunRecord.read(self._submitted[ref][0].run_uri)
                if not may_fail or standing(failed) != "failed":
                    raise
                self.display.ended(name, f"{name}: ", end_of_part(failed, self.setup.sweep.metric, "failed", None))
                continue
            if self._goes_on(ref, record, name, running):
                continue
            how = "a checkpoint is saved" if record is None or told_to_leave(record) else self._came_to(record)
            self.display.ended(name, f"{name}: {how}")
        if self.watch.stop_wanted:
            cancel(running)
            running.clear()
        if not running:
            self.raise_if_over()

    def move_beside(self) -> None:
        """Starts those of ``beside`` again that have left nodes which are taken away; all else waits for ``wait_any``."""
        running = self.beside
        for ref in ray.wait(list(running), timeout=0)[0] if running else ():
            with contextlib.suppress(LtcoreError):
                if self._goes_on(ref, result_of(ref), running[ref], running):
                    del running[ref]

    def _goes_on(self, ref: Any, record: RunRecord | None, name: str, running: dict[Any, str]) -> bool:
        """Submits a run again that was told to leave, unless all runs are to save and end; tells whether it did."""
        if record is None or not told_to_leave(record) or self.watch.saving.is_set():
            return False
        self.display.say(f"{name}: {MOVES}")
        running[self._submit(*self._submitted[ref])] = name
        return True

    def _came_to(self, record: RunRecord) -> str:
        tested = record.test or {}
        metric = self.setup.sweep.metric
        values = [found.get("balanced_accuracy") for found in tested.values()] or [record.last.get(metric)]
        shown = ", ".join(f"{100 * value:.1f}%" for value in values if value is not None)
        where = f"test balanced accuracy on {' and '.join(tested)}" if tested else title_of(metric)
        return f"{where} {shown}" if shown else "done"

    def raise_if_over(self) -> None:
        """Raises StallError where nothing progresses any more, and TimeIsUp where runs have saved and ended."""
        if self.watch.stalled.is_set():
            raise stall_error(self.setup.sweep.stall_s, self.setup.placement.demand)
        if self.watch.saving.is_set():
            raise TimeIsUp


def forget_other(job: Job, sweep_uri: str) -> None:
    """Deletes a retrain of another configuration.

    Added trials may have made another winner: the retrain of the earlier one makes room.
    """
    record = RunRecord.read(job.run_uri)
    if record is None:
        return
    try:
        refuse_differences(job.run_uri, record.config, trees.flatten(job.config))
    except CheckpointError:
        delete_run(job.run_uri, sweep_uri)
