"""``train``: from the command line's answers to a run, in this process or on Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ltcore.cli.args import TrainArgs
from ltcore.cli.default_recipe import recipe_for
from ltcore.cli.dry_run import dry_run
from ltcore.cli.epoch_lines import EpochLines
from ltcore.cli.output import COMMAND_LINE, Output
from ltcore.cli.prepare import prepare_run, show_classes, storage_root
from ltcore.config.execution import PlaceArgs
from ltcore.config.load import load_run
from ltcore.config.naming import name_run
from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig
from ltcore.config.show import left_out
from ltcore.errors import ConfigError
from ltcore.lease import exclusive
from ltcore.runtime.cluster import connect, disconnect
from ltcore.runtime.cluster_address import cluster_address, on_cluster_node
from ltcore.runtime.placement import Placement, Scaling, check_answers, check_workers
from ltcore.storage import join
from ltcore.text import counted, printable_lines
from ltcore.training.compiled import OFF
from ltcore.training.context import LocalContext, StopRequested
from ltcore.training.cost import _num_images, _what, trained_note
from ltcore.training.hardware import allocated_cpus, wished_cpus
from ltcore.training.preflight import check_device, check_network, check_run
from ltcore.training.record import RunInfo
from ltcore.training.remarks import remarks
from ltcore.training.run import Job, check_continues, delete_run, execute, refuse_other_run
from ltcore.training.selection import check_selection
from ltcore.training.settle import settled
from ltcore.training.stage2.source import check_stage1, resolved
from ltcore.training.stage2.trainer import refuse_workers
from ltcore.training.stored import finished_ago


def train(args: TrainArgs, out: Output = COMMAND_LINE) -> RunRecord | None:
    """Trains a recipe, or continues it.

    Shows the run's record and returns it; None after ``--dry-run``, and where the run was told to stop. A finished run
    is not repeated. Raises CheckpointError where the finished run is not the one asked for.
    """
    return train_config(load(args, out), args, out, typed=args.overrides)


def load(args: TrainArgs, out: Output) -> RunConfig:
    """Loads the run that the arguments name, and says what of its recipe is left out."""
    recipe = args.recipe or recipe_for(args.overrides, args.storage, out.say, making_engine(args))
    cfg = load_run(recipe, name_run(recipe, args.overrides))
    if note := left_out(recipe, args.overrides):
        out.say(note)
    return cfg


def train_config(
    cfg: RunConfig, args: PlaceArgs, out: Output = COMMAND_LINE, typed: Mapping[str, Any] = {}
) -> RunRecord | None:
    """Trains the run that a configuration describes; the rest as for :func:`train`.

    ``typed``: dotted keys that the person gave.
    """
    cfg = resolved(cfg)
    root = storage_root(args.storage)
    run_uri = join(root, cfg.name)
    if cfg.stage2 is not None:
        refuse_workers(args.workers[1] if args.workers else 1)
        _keep_stage1(cfg.stage2.from_run, run_uri)
    stored = None if args.fresh else RunRecord.read(run_uri)
    finished = stored if stored is not None and stored.status == "finished" else None
    if finished is None:
        settle_tracking(cfg, out.say)
        refuse_early(args, cfg, out.say)
    if stored is None:
        check_network(cfg)
    is_fresh, engine = args.fresh and not args.dry_run, making_engine(args)
    data_uri, manifest = prepare_run(cfg, root, out.say, fresh=is_fresh, engine=engine)
    cfg = settled(cfg, manifest, out.say, typed=typed, stored=None if stored is None else stored.config)
    if finished is None:
        show_classes(cfg, manifest, out.say)
    check_selection({"train.select": cfg.train.select}, manifest)
    check_run(cfg, manifest)
    check_stage1(cfg, manifest)
    if finished is None:
        _check_batches(args, cfg)  # again: they may be smaller than the recipe's by now
    for note in remarks(cfg, manifest) if finished is None else []:
        out.say(note)
    job = Job(config=cfg.to_dict(), data_uri=data_uri, run_uri=run_uri, info=RunInfo(id=cfg.name))
    if args.dry_run:
        if stored is not None:
            check_continues(job, stored)
        print(printable_lines(dry_run(cfg, data_uri, root)))
        return None
    if finished is not None:
        refuse_other_run(job, finished)
        out.say(f"{cfg.name} finished {finished_ago(finished)}; this is its stored result (--fresh to repeat it)")
        record: RunRecord | None = finished
    else:
        if note := trained_note(cfg, manifest):
            out.say(note)
        budget = "" if cfg.stage2 is not None else f" ({counted(_num_images(cfg, manifest), 'image')})"
        out.say(f"{cfg.name}: {_what(cfg)}{budget} on {manifest.name}; results in {run_uri}")
        record = _train_on_ray(args, cfg, job, root, out) if wants_ray(args, cfg) else _train_here(args, cfg, job, out)
    if record is not None:
        out.show_run(record, run_uri)
    return record


def _train_here(args: PlaceArgs, cfg: RunConfig, job: Job, out: Output) -> RunRecord:
    with exclusive(job.run_uri, out.say):
        _make_room(args, job.run_uri, out)
    job = dataclasses.replace(job, cpus=allocated_cpus() if on_cluster_node() else wished_cpus())
    local = LocalContext(say=out.say)
    try:
        with local as ctx, EpochLines(ctx, cfg.epochs, out.terminal()) as shown:
            return execute(job, shown)
    except StopRequested as stop:
        raise local.interrupt(str(stop)) from None


def _make_room(args: PlaceArgs, run_uri: str, out: Output) -> None:
    """Lets ``--fresh`` remove what is there, when no other process works on the run and all that could be wrong was checked."""
    if args.fresh and (done := delete_run(run_uri)):
        out.say(done)


def settle_tracking(cfg: RunConfig, say: Callable[[str], None]) -> None:
    """Decides where runs are logged, before this process starts any of them.

    The decision holds for all of them.
    """
    if not cfg.tracking.wandb:
        return
    from ltcore.tracking.wandb_account import settle_mode

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        settle_mode(cfg.tracking.wandb_mode)
    for warning in found:  # which Python shows with a place in our code that says nothing to a user
        say(str(warning.message))


def _keep_stage1(from_run: str, run_uri: str) -> None:
    """Refuses the name of a run that stage 2 starts from, before anything is removed or written."""
    if f"{from_run.rstrip('/')}/".startswith(f"{run_uri}/"):
        raise ConfigError(
            f"--name {run_uri.rpartition('/')[2]} is the run that stage 2 starts from ({from_run}). Give this one another "
            "--name."
        )


def making_engine(args: PlaceArgs) -> str:
    """Returns where data are made that are no shards yet; without Ray where the run is to be without."""
    return "inline" if args.engine == "inline" else "auto"


def wants_ray(args: PlaceArgs, cfg: RunConfig) -> bool:
    """Tells whether a single run goes through Ray.

    It does where workers or what they take are given, for the Ray loader, and where a cluster is at hand.
    """
    asked = (args.workers, args.cpus_per_worker, args.gpus_per_worker, args.max_gpus) != (None,) * 4
    if args.engine != "auto":
        return args.engine != "inline" or asked
    return asked or cfg.data.loader == "ray" or on_cluster_node()


def refuse_early(args: PlaceArgs, cfg: RunConfig, say: Callable[[str], None]) -> None:
    """Raises, before data are made, what the run's place, workers or device would refuse afterwards.

    What only the workers of a cluster can know is left to them; ``--dry-run`` says so.
    """
    _check_batches(args, cfg)
    if not wants_ray(args, cfg):
        check_device(cfg, LocalContext().device)
        return
    if args.engine == "inline":
        raise ConfigError(
            "--engine inline is one process without Ray: leave --workers, --cpus-per-worker, --gpus-per-worker and "
            "--max-gpus away, or use --engine train."
        )
    check_answers(args, _ray_engine(args))
    asked = {"train.precision": cfg.train.precision == "fp16", "train.compile": cfg.train.compile != OFF}
    if any(asked.values()):
        if not cluster_address():
            check_device(cfg, LocalContext().device)
        elif args.dry_run:
            keys = " and ".join(key for key, wanted in asked.items() if wanted)
            say(f"{keys}: whether the cluster's workers can do that, only they know; they say it at their start")


def _check_batches(args: PlaceArgs, cfg: RunConfig) -> None:
    """Raises ConfigError where the workers that were asked for cannot share the batches."""
    low, high = args.workers or (1, 1)
    check_workers(cfg, Scaling(workers=low, max_workers=high))


def _ray_engine(args: PlaceArgs) -> str:
    """Returns the engine of a single run on Ray."""
    return "train" if args.engine == "auto" else args.engine


def _train_on_ray(args: PlaceArgs, cfg: RunConfig, job: Job, root: str, out: Output) -> RunRecord | None:
    """Runs the job on the cluster, with Ray Train unless another engine is asked for."""
    from ltcore.runtime.launch import run_single

    args = dataclasses.replace(args, engine=_ray_engine(args))
    with contextlib.ExitStack() as connected:
        with exclusive(
            job.run_uri, out.say
        ):  # a storage that cannot be written, or another process, says so before Ray starts
            cluster = connect(debug=args.debug)
            connected.callback(disconnect)
            placement = Placement.decide(args, cluster, root, cfg)
            _make_room(args, job.run_uri, out)
        return run_single(job, cfg.name, placement, cluster, out.terminal())
