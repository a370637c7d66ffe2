"""One run from a plain JSON job, in whatever process it was placed: opens data, tracker and directory, and calls ``fit``
(or ``fit_stage2``).

Everything that crosses a process boundary is a ``Job``; the receiving side validates the configuration again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ltcore import dist
from ltcore.config.json_record import JsonRecord
from ltcore.config.records import RunRecord, now
from ltcore.config.schema import RunConfig
from ltcore.config.trained_with import InputRecord, TrainedData
from ltcore.data.loading.factory import make_loader
from ltcore.data.loading.loader import Loader
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import CapacityError, CheckpointError, GpuShareError, RemovedError, is_retryable
from ltcore.lease import Lease, check_held, exclusive, make_folder
from ltcore.storage import cache_folder, cache_root, is_local, local_path, write_bytes_atomic
from ltcore.tracking.base import Tracker
from ltcore.tracking.jsonl_sink import read_metrics
from ltcore.tracking.tracker import open_tracker
from ltcore.training import checkpoint as ckpt
from ltcore.training.build import stream_options
from ltcore.training.context import ForwardingContext, Interrupted, RunContext, StopRequested
from ltcore.training.fetch import fetched_checkpoint
from ltcore.training.fork import fork
from ltcore.training.hardware import (
    allocated_cpus,
    choose_precision,
    describe_hardware,
    is_out_of_memory,
    limit_memory,
    versions,
)
from ltcore.training.record import RunInfo, RunLog
from ltcore.training.same_run import check_same_data, check_same_run, refuse_differences, refuse_other_end
from ltcore.training.same_start import origin_of, refuse_other_weights
from ltcore.training.stage2.source import resolved, stage1_checkpoint
from ltcore.training.stage2.trainer import fit_stage2
from ltcore.training.stored import remove
from ltcore.training.sync import RunSync
from ltcore.training.tested import log_tests, summary
from ltcore.training.trainer import fit
from ltcore.training.weights_input import expected_of, input_record, still_prepared
from ltcore.version import check_same_code, code_version


@dataclass(frozen=True, kw_only=True)
class Job(JsonRecord):
    """What one run is. Plain JSON."""

    config: Mapping[str, Any]
    """Tree of a ``RunConfig``."""
    data_uri: str
    """Shards with a manifest, readable from every node."""
    run_uri: str
    """Directory of the run: a local path or a URI on shared storage."""
    info: RunInfo
    cpus: int = 0
    """CPUs given to each worker; 0: all that the process may use."""
    gpus: float = 0.0
    """GPUs given to each worker; with a part of one, the process may use as much of its memory. 0: none to a Ray task, and in
    this process, where nobody counts them, any that it sees."""
    heartbeat: str = ""
    """Name of the actor that takes signs of life; '' where nobody listens."""
    nonce: str = field(default="", repr=False)
    """What that actor wants to see before it hands over the W&B key."""
    fork_of: str = ""
    """Directory of a run whose newest checkpoint this one starts from; '' starts from the beginning."""
    code: str = field(default_factory=code_version)
    """Code of the driver; a node with other code refuses the job."""
    label: str = ""
    """What the run is called on the driver's display."""


def scratch_dir(run_uri: str) -> Path:
    """Returns the directory on this node in which a run with an object store works.

    It is the same for every attempt. Raises StorageError where this node's cache cannot be written.
    """
    runs = cache_root() / "runs" if is_local(run_uri) else cache_folder("runs")
    return runs / hashlib.sha256(run_uri.encode()).hexdigest()[:16]


def loader_options(cfg: RunConfig, ctx: RunContext) -> dict[str, Any]:
    """Returns the arguments of every loader of a run, except the place of the data."""
    return {
        "batch_size": cfg.train.batch_size,
        "seed": cfg.seed,
        "rank": ctx.rank,
        "world": ctx.world,
        **stream_options(cfg),
    }


def make_local_loader(cfg: RunConfig, uri: str, ctx: RunContext) -> Loader:
    """Opens the loader of one rank that needs no other process."""
    return make_loader(cfg.data, uri, device=ctx.device, **loader_options(cfg, ctx))


MakeLoader = Callable[[RunConfig, str, RunContext], Loader]
"""(configuration, URI of the shards, context) -> the loader of one rank."""


def execute(job: Job, ctx: RunContext, make_run_loader: MakeLoader = make_local_loader) -> RunRecord:
    """Runs or continues the job. Returns the run's record (that of rank 0).

    ``make_run_loader`` says where batches come from; Ray's side passes its own, which streams.

    A run that already finished is not repeated: its stored record is returned, after the test if that is asked for only
    now. Whatever ends the run early is written
    into ``run.json`` (stopped or failed, with the reason) before it is raised again.
    """
    check_same_code(job.code)
    with dist.expecting(ctx.world), exclusive(job.run_uri) if ctx.rank == 0 else contextlib.nullcontext() as lease:
        return _execute(job, ctx, lease, make_run_loader)


def _execute(job: Job, ctx: RunContext, lease: Lease | None, make_run_loader: MakeLoader) -> RunRecord:
    cfg = resolved(RunConfig.from_dict(job.config))
    torch.set_num_threads(cfg.train.threads or min(job.cpus or allocated_cpus(), allocated_cpus()))
    limit_memory(ctx.device, job.gpus)
    sync = RunSync(job.run_uri, scratch_dir(job.run_uri))
    if lease is not None:
        sync.fence = lease.check
    done: RunRecord | None = None
    if ctx.rank == 0:  # it alone knows the run directory; what it finds is true for all
        make_folder(sync.local)
        sync.pull()
        done = RunRecord.read(sync.local)
    done = dist.broadcast_object(done)
    if done is not None and done.status == "finished":
        refuse_other_run(job, done)
        if done.test is not None or not job.info.test:
            if sync.ahead:
                sync.close()  # it ended here, and its end did not reach the storage
            if ctx.rank == 0:
                sync.discard()
            return done  # a trial was not tested; it goes on from its end, where nothing but the test is left
    with dist.meeting():  # another node may have yet to decode the images that this one has
        made = make_run_loader(cfg, job.data_uri, ctx)
    with contextlib.closing(made) as loader:
        wandb_id = f"{job.info.id}-{secrets.token_hex(3)}" if done is None else done.wandb_id
        kept = done is not None and still_prepared(cfg, done.config)
        known = done.data.input if done is not None and kept else None
        if ctx.rank == 0 and not kept:
            known = input_record(cfg, loader.prep, expected_of(cfg))
        first = _first_record(cfg, job.info, ctx, loader, wandb_id, known)
        if done is not None:
            first = dataclasses.replace(first, starts=done.starts)
        record = _run(job, cfg, _SyncedContext(ctx, sync, lease), sync, loader, first)
    if ctx.rank == 0 and record.status == "finished":
        sync.discard()
    return record


def refuse_other_run(job: Job, done: RunRecord) -> None:
    """Raises CheckpointError where the finished run ``done`` is not the one that the job describes.

    Under the same name it has another configuration, other data, or other weights to start from.
    """
    cfg = resolved(RunConfig.from_dict(job.config))
    refuse_differences(job.run_uri, done.config, cfg.to_flat(), job.info.mutable)
    refuse_other_end(job.run_uri, done.reason, done.config, cfg.to_flat())
    check_same_data(job.run_uri, done.data.hash, read_manifest(job.data_uri).hash)
    refuse_other_weights(job.run_uri, done.started_from, cfg)
    if cfg.stage2 is not None:
        with stage1_checkpoint(cfg.stage2.from_run, weights=False) as found:
            found_now = origin_of(found)
        if done.stage1 is None or dataclasses.replace(done.stage1, **found_now) != done.stage1:
            raise CheckpointError(
                f"{job.run_uri} started from another state of stage2.from_run={cfg.stage2.from_run}: that run was trained anew "
                "since. Use another --name, or --fresh."
            )


def check_continues(job: Job, stored: RunRecord) -> None:
    """Raises what the run itself would raise where it cannot go on from what is stored under its name."""
    if stored.status == "finished":
        refuse_other_run(job, stored)
        return
    with fetched_checkpoint(job.run_uri, weights=False) as path:
        if all(ckpt.find(path / "checkpoints", tag) is None for tag in ("best", "last")):
            return  # it begins anew
        found = ckpt.read(path, job.run_uri)
        cfg = resolved(RunConfig.from_dict(job.config))
        check_same_run(found, cfg.to_flat(), read_manifest(job.data_uri).hash, job.info.mutable)
        refuse_other_weights(found.place, stored.started_from, cfg)


def _run(job: Job, cfg: RunConfig, ctx: _SyncedContext, sync: RunSync, loader: Loader, first: RunRecord) -> RunRecord:
    run_dir = sync.local
    record = RunLog(run_dir if ctx.rank == 0 else None, first, ctx.check)
    earlier = _open_run(job, cfg, record, sync) if ctx.rank == 0 else []
    previous = ckpt.find(run_dir / "checkpoints") if cfg.stage2 is None else None  # stage 2 begins at its beginning
    # the end of its last whole epoch: one that ended just before it was saved is logged again
    resume_step = previous.meta["epoch"] * loader.num_batches if previous else 0
    try:
        with _record_end(record, ctx.device, job.gpus):
            tracker = _track(job.info, cfg, ctx, run_dir, first.wandb_id, resume_step)
    except BaseException:
        if ctx.rank == 0:
            sync.close()
        raise
    try:
        with _record_end(record, ctx.device, job.gpus):
            for row in earlier:
                tracker.take_over({key: value for key, value in row.items() if key != "step"}, row["step"])
            loop = fit if cfg.stage2 is None else fit_stage2
            return loop(cfg, loader, ctx, run_dir, tracker, job.info, record)
    finally:
        try:
            if ctx.rank == 0:
                sync.push_end()  # W&B may take a minute, and of a group that failed Ray ends the other workers in seconds
                log_tests(tracker, record.value, run_dir)
        finally:
            tracker.finish(summary(record.value), record.value.status)
            if ctx.rank == 0:
                sync.close()


def _open_run(job: Job, cfg: RunConfig, record: RunLog, sync: RunSync) -> list[dict[str, Any]]:
    """Publishes this start of the run, also for a node that continues it. Returns the logged rows that it takes over."""
    earlier = []
    if job.fork_of and not record.value.starts:  # else a start has shown them
        if ckpt.find(sync.local / "checkpoints") is None:
            _fork(job.fork_of, sync.local, cfg.to_flat())
        earlier = read_metrics(sync.local / "metrics.jsonl")
    write_bytes_atomic(str(sync.local / "config.yaml"), cfg.to_yaml().encode(), record.check)
    record.write()
    sync.push()
    return earlier


def _track(info: RunInfo, cfg: RunConfig, ctx: RunContext, run_dir: Path, wandb_id: str, resume_step: int) -> Tracker:
    return open_tracker(
        run_dir=run_dir,
        run_id=wandb_id,
        group=info.group,
        name=cfg.name,
        config_flat=cfg.to_flat(),
        options=cfg.tracking,
        rank=ctx.rank,
        resume_step=resume_step,
        job_type=info.kind,
    )


@contextlib.contextmanager
def _record_end(record: RunLog, device: torch.device, gpus: float) -> Iterator[None]:
    """Writes down what ends the run early, and raises it again; ``gpus`` is what the process has of a GPU."""
    try:
        yield
    except (Interrupted, RemovedError):
        raise  # it goes on with other workers; or a record would be all that there is of it
    except StopRequested as stop:
        record.update(status="stopped", reason=str(stop))
        raise
    except (SystemExit, KeyboardInterrupt):
        record.update(status="stopped", reason="ended early by the driver")
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            problem = _out_of_memory(error, device, gpus)
            short_of = gpus if isinstance(problem, GpuShareError) else None
            record.update(status="failed", reason=str(problem), retryable=problem.retryable, short_of_gpu=short_of)
            raise problem from error
        record.update(status="failed", reason=f"{type(error).__name__}: {error}", retryable=is_retryable(error))
        raise


def _out_of_memory(error: BaseException, device: torch.device, gpus: float) -> CapacityError:
    """Returns what to say of a full memory; ``gpus`` is what the process had of a GPU, 0 where nobody has counted it."""
    if 0 < gpus < 1:
        return GpuShareError(
            f"{gpus:.4g} of the memory of {device} is too little ({error}). Give --gpus-per-worker 1, or a larger part than "
            f"{gpus:.4g}."
        )
    return CapacityError(
        f"The memory of {device} is full ({error}). Lower train.batch_size, raise train.accumulate, or take more "
        "--workers, under another --name."
    )


def _fork(source_uri: str, run_dir: Path, config: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = RunSync(source_uri, Path(scratch))
        source.pull()
        fork(source.local, run_dir, config)


class _SyncedContext(ForwardingContext):
    """Pushes the run directory to its storage whenever an epoch is reported or a checkpoint saved, as long as the directory
    is this process's."""

    def __init__(self, inner: RunContext, sync: RunSync, lease: Lease | None) -> None:
        super().__init__(inner)
        self._sync, self._lease = sync, lease

    def report(self, metrics: Mapping[str, float | int | None], checkpoint: Path | None) -> None:
        self._push(wait=True)
        super().report(metrics, checkpoint)

    def saved(self) -> None:
        self._push(wait=False)
        super().saved()

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        if not self._sync.remote:  # where every file that training writes is at its place at once
            self.check()
        super().beat(epoch, images_seen, total_images)

    def _push(self, *, wait: bool) -> None:
        if self._lease is not None:  # rank 0
            self.check()
            self._sync.push(wait=wait)

    def check(self) -> None:
        """Raises DataError where the run is another process's or removed. Of a store, the copy looks itself, and may wait."""
        if self._lease is not None:
            self._lease.check(look=not self._sync.remote)


def _first_record(
    cfg: RunConfig, info: RunInfo, ctx: RunContext, loader: Loader, wandb_id: str, prepared: InputRecord | None
) -> RunRecord:
    manifest = loader.store.manifest
    return RunRecord(
        id=info.id,
        name=cfg.name,
        kind=info.kind,
        group=info.group,
        seed=cfg.seed,
        config=cfg.to_flat(),
        epochs_planned=cfg.epochs,
        last={},
        best={},
        data=TrainedData(
            name=manifest.name,
            hash=manifest.hash,
            uri=str(local_path(uri).absolute()) if is_local(uri := loader.store.uri) else uri,
            num_train=manifest.split(cfg.data.train_split).num_samples,
            classes=tuple(manifest.classes),
            shot_groups=tuple(manifest.shot_groups),
            class_counts=manifest.class_counts[cfg.data.train_split],
            image_size=loader.image_size,
            loader=loader.kind,
            loader_reason=loader.why,
            input=prepared,
        ),
        hardware=describe_hardware(),
        precision=choose_precision(cfg.train.precision, ctx.device).why,
        threads=torch.get_num_threads(),
        world=ctx.world,
        device=str(ctx.device),
        engine=ctx.engine,
        pid=os.getpid(),
        versions=versions(),
        started_at=now(),
        wandb_id=wandb_id,
    )


def delete_run(run_uri: str, held: str = "") -> str:
    """Removes a run or sweep and what this node keeps of it (``--fresh``). Returns what was done in words.

    ``held`` is the sweep that it is part of; '' for none. Raises DataError where that, or it, was taken over meanwhile.
    """
    done = remove(run_uri, partial(check_held, held or run_uri))
    if not is_local(run_uri):
        shutil.rmtree(scratch_dir(run_uri), ignore_errors=True)
    return done
