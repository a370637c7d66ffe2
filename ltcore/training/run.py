"""One run from a plain JSON job, in whatever process it was placed: opens data, tracker and directory, and calls ``fit``
(or ``fit_stage2``).

Everything that crosses a process boundary is a ``Job``; the receiving side validates the configuration again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ltcore import dist
from ltcore.config.load import flat, from_dict, to_yaml
from ltcore.config.schema import RunConfig
from ltcore.data.loading.factory import make_loader
from ltcore.data.loading.loader import Loader
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import CapacityError, CheckpointError
from ltcore.storage import cache_root, is_local, read_json
from ltcore.tracking.base import Tracker
from ltcore.tracking.tracker import open_tracker
from ltcore.training import checkpoint as ckpt
from ltcore.training.build import num_views
from ltcore.training.context import RunContext, StopRequested
from ltcore.training.fork import fork
from ltcore.training.hardware import allocated_cpus, choose_precision, describe_hardware, versions
from ltcore.training.lease import Lease, exclusive, make_folder
from ltcore.training.record import RunInfo, RunRecord, now
from ltcore.training.stage2.source import origin, resolved, stage1_checkpoint
from ltcore.training.stage2.trainer import fit_stage2
from ltcore.training.stored import remove
from ltcore.training.sync import RunSync
from ltcore.training.trainer import fit
from ltcore.version import check_same_code, code_version


@dataclass(frozen=True)
class Job:
    """What one run is. Plain JSON."""

    config: dict[str, Any]
    """Tree of a ``RunConfig``."""
    data_uri: str
    """Shards with a manifest, readable from every node."""
    run_uri: str
    """Directory of the run: a local path or a URI on shared storage."""
    info: dict[str, Any]
    """Fields of a ``RunInfo``."""
    cpus: int = 0
    """CPUs given to each worker; 0: all that the process may use."""
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

    def plain(self) -> dict[str, Any]:
        """Returns the fields as they cross a process boundary."""
        return asdict(self)


def scratch_dir(run_uri: str) -> Path:
    """Where a run whose directory is on an object store works on this node; the same for every attempt."""
    return cache_root() / "runs" / hashlib.sha256(run_uri.encode()).hexdigest()[:16]


def loader_options(cfg: RunConfig, ctx: RunContext) -> dict[str, Any]:
    """Arguments of every loader of a run, beside where the data are."""
    return {
        "batch_size": cfg.train.batch_size,
        "seed": cfg.seed,
        "rank": ctx.rank,
        "world": ctx.world,
        "augment": cfg.augment,
        "num_views": num_views(cfg),
    }


def make_local_loader(cfg: RunConfig, uri: str, ctx: RunContext) -> Loader:
    """Opens the loader of one rank that needs no other process."""
    return make_loader(cfg.data, uri, **loader_options(cfg, ctx))


MakeLoader = Callable[[RunConfig, str, RunContext], Loader]
"""(configuration, URI of the shards, context) -> the loader of one rank."""


def execute(job: Job, ctx: RunContext, make_run_loader: MakeLoader = make_local_loader) -> dict[str, Any]:
    """Runs or continues the job. Returns the content of ``run.json`` (of rank 0).

    ``make_run_loader`` says where batches come from; Ray's side hands in its own, which streams.

    A run that already finished is not repeated: its stored record comes back. Whatever ends the run early is written into
    ``run.json`` (stopped or failed, with the reason) before it travels on.
    """
    check_same_code(job.code)
    with dist.expecting(ctx.world), exclusive(job.run_uri) if ctx.rank == 0 else contextlib.nullcontext() as lease:
        return _execute(job, ctx, lease, make_run_loader)


def _execute(job: Job, ctx: RunContext, lease: Lease | None, make_run_loader: MakeLoader) -> dict[str, Any]:
    cfg = resolved(from_dict(job.config))
    torch.set_num_threads(cfg.train.threads or job.cpus or allocated_cpus())
    sync = RunSync(job.run_uri, scratch_dir(job.run_uri))
    info = RunInfo(**{**job.info, "mutable": tuple(job.info.get("mutable", ()))})
    done = None
    if ctx.rank == 0:  # it alone knows the run directory; what it finds is true for all
        make_folder(sync.local)
        sync.pull()
        done = read_json(sync.local / "run.json")
    done = dist.broadcast_object(done)
    if done is not None and done["status"] == "finished":
        refuse_other_run(job, done)
        return done
    with contextlib.closing(make_run_loader(cfg, job.data_uri, ctx)) as loader:
        wandb_id = done["wandb_id"] if done and "wandb_id" in done else f"{info.id}-{secrets.token_hex(3)}"
        return _run(job, cfg, _SyncedContext(ctx, sync, lease), sync, info, loader, wandb_id)


def refuse_other_run(job: Job, done: dict[str, Any]) -> None:
    """CheckpointError where the finished run whose record is ``done`` is not the one that the job describes: another
    configuration, other data, or other weights to start from under the same name."""
    cfg = resolved(from_dict(job.config))
    ckpt.refuse_differences(job.run_uri, done["config"], flat(cfg), tuple(job.info.get("mutable", ())))
    ckpt.check_same_data(job.run_uri, done["data"]["hash"], read_manifest(job.data_uri).hash)
    if cfg.stage2 is not None:
        with stage1_checkpoint(cfg.stage2.from_run, weights=False) as found:
            found_now = origin(found)
        if any(done["stage1"].get(key) != value for key, value in found_now.items()):
            raise CheckpointError(
                f"{job.run_uri} started from another state of stage2.from_run={cfg.stage2.from_run}: that run was trained anew "
                "since. Use another --name, or --fresh."
            )


def _run(
    job: Job, cfg: RunConfig, ctx: _SyncedContext, sync: RunSync, info: RunInfo, loader: Loader, wandb_id: str
) -> dict[str, Any]:
    """``wandb_id`` is the id in W&B: drawn when the run begins, so that neither --fresh nor another storage continues a run
    there that is not this one."""
    run_dir, lead = sync.local, ctx.rank == 0
    fields = _first_fields(cfg, info, ctx, loader) | {"wandb_id": wandb_id}
    record = RunRecord(run_dir / "run.json" if lead else None, fields)
    previous = ckpt.find(run_dir / "checkpoints") if cfg.stage2 is None else None  # stage 2 begins at its beginning
    earlier: list[dict[str, Any]] = []
    if lead and previous is None and job.fork_of:
        earlier = _fork(job.fork_of, run_dir, flat(cfg))
    if lead:
        (run_dir / "config.yaml").write_text(to_yaml(cfg))
    record.write()
    if lead:
        sync.push()  # from now on this start of the run is known, also to a node that goes on with it
    tracker = open_tracker(
        run_dir=run_dir,
        run_id=wandb_id,
        group=info.group,
        name=cfg.name,
        config_flat=flat(cfg),
        options=cfg.tracking,
        rank=ctx.rank,
        # the end of its last whole epoch: one that ended just before it was saved is logged again
        resume_step=previous.meta["epoch"] * loader.num_batches if previous else 0,
        job_type=info.kind,
    )
    status = "failed"
    try:
        for row in earlier:
            tracker.log({key: value for key, value in row.items() if key != "step"}, row["step"])
        loop = fit if cfg.stage2 is None else fit_stage2
        fields = loop(cfg, loader, ctx, run_dir, tracker, info, record)
        status = "finished"
    except (StopRequested, SystemExit, KeyboardInterrupt) as stop:
        status = "stopped"
        record.update(
            status=status, reason=str(stop) if isinstance(stop, StopRequested) else "ended early by the driver"
        )
        raise
    except torch.OutOfMemoryError as error:
        problem = CapacityError(
            f"The memory of {ctx.device} is full ({error}). Lower train.batch_size, raise train.accumulate, or take more "
            "--workers, under another --name."
        )
        record.update(status=status, reason=str(problem))
        raise problem from error
    except BaseException as error:
        record.update(status=status, reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        _log_per_class(tracker, record.fields)
        tracker.finish(_summary(record.fields), status)
        if lead:
            sync.close()
    return fields


def _fork(source_uri: str, run_dir: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        source = RunSync(source_uri, Path(scratch))
        source.pull()
        return fork(source.local, run_dir, config)


def _log_per_class(tracker: Tracker, fields: dict[str, Any]) -> None:
    for split, values in fields.get("per_class", {}).items():
        data = fields["data"]
        rows = list(zip(data["classes"], data["shot_groups"], values, strict=True))
        tracker.table(f"{split}/per_class", ["class", "shot", "accuracy"], rows)


class _SyncedContext:
    """The context, with the run directory pushed to its storage whenever an epoch is reported or a checkpoint saved, as long
    as the directory is this process's."""

    def __init__(self, ctx: RunContext, sync: RunSync, lease: Lease | None) -> None:
        self._ctx, self._sync, self._lease = ctx, sync, lease
        self.engine, self.rank, self.world, self.device = ctx.engine, ctx.rank, ctx.world, ctx.device
        self.checkpoint_every_epoch = ctx.checkpoint_every_epoch

    def report(self, metrics: Any, checkpoint: Path | None) -> None:
        self._push(wait=True)
        self._ctx.report(metrics, checkpoint)

    def saved(self) -> None:
        self._push(wait=False)
        self._ctx.saved()

    def _push(self, *, wait: bool) -> None:
        if self._lease is not None:  # rank 0
            self._lease.check()
            self._sync.push(wait=wait)

    def stop_requested(self) -> bool:
        return self._ctx.stop_requested()

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        self._ctx.beat(epoch, images_seen, total_images)


def _first_fields(cfg: RunConfig, info: RunInfo, ctx: RunContext, loader: Loader) -> dict[str, Any]:
    manifest = loader.store.manifest
    return {
        "id": info.id,
        "name": cfg.name,
        "kind": info.kind,
        "group": info.group,
        "seed": cfg.seed,
        "config": flat(cfg),
        "epochs_planned": cfg.epochs,
        "epochs_done": 0,
        "images_seen": 0,
        "last": {},
        "best": {},
        "data": {
            "name": manifest.name,
            "hash": manifest.hash,
            "num_train": manifest.split(cfg.data.train_split).num_samples,
            "classes": list(manifest.classes),
            "shot_groups": list(manifest.shot_groups),
            "loader": loader.kind,
            "loader_reason": loader.why,
        },
        "hardware": describe_hardware(),
        "precision": choose_precision(cfg.train.precision, ctx.device).why,
        "threads": torch.get_num_threads(),
        "world": ctx.world,
        "device": str(ctx.device),
        "engine": ctx.engine,
        "pid": os.getpid(),
        "versions": versions(),
        "started_at": now(),
    }


def _summary(fields: dict[str, Any]) -> dict[str, Any]:
    """What stands in the W&B summary: best, last and test values, flat."""
    flat_fields: dict[str, Any] = {}
    for section in ("last", "best"):
        flat_fields |= {f"{section}/{key}": value for key, value in fields.get(section, {}).items()}
    for split, values in fields.get("test", {}).items():
        flat_fields |= {f"{split}/{key}": value for key, value in values.items()}
    return flat_fields


def delete_run(run_uri: str) -> str:
    """Removes a run or sweep and what this node keeps of it (``--fresh``). Returns what was done in words."""
    done = remove(run_uri)
    if not is_local(run_uri):
        shutil.rmtree(scratch_dir(run_uri), ignore_errors=True)
    return done
