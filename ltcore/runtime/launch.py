"""From the command line's answers to a run or a sweep: where it goes, which engine, what fits, what is there already."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from ltcore.config.cli import PlaceArgs, TrainArgs, TuneArgs
from ltcore.config.load import base_run, dump, load_run, load_sweep
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.data.manifest import read_manifest
from ltcore.data.prepare import prepare
from ltcore.data.storage import is_local, join
from ltcore.errors import CapacityError, ConfigError
from ltcore.runtime.cluster import Cluster, connect, disconnect
from ltcore.runtime.engine import Scaling
from ltcore.runtime.execute import Job, execute, forget
from ltcore.runtime.files import load_json
from ltcore.training.context import LocalContext
from ltcore.training.fit import StopRequested

DEFAULT_STORAGE = Path.home() / "ltcore-runs"


def storage_root(storage: str | None) -> str:
    """``--storage``, else LTCORE_STORAGE, else a folder in the home directory; absolute, because workers change directory."""
    root = storage or str(DEFAULT_STORAGE)
    return str(Path(root).expanduser().resolve()) if is_local(root) and "://" not in root else root.rstrip("/")


def check_storage(root: str, cluster: Cluster) -> None:
    if cluster.nodes > 1 and is_local(root):
        raise ConfigError(
            f"Storage {root} is a path of one machine, but the cluster has {cluster.nodes} nodes: set LTCORE_STORAGE (or "
            "--storage) to a place that all nodes reach, such as s3://bucket/runs."
        )


def choose_engine(place: PlaceArgs, cluster: Cluster) -> str:
    """``auto``: in-process trials on one machine with at most one GPU and one worker; Ray Train otherwise."""
    if place.engine != "auto":
        return place.engine
    several = place.workers is not None and place.workers[1] > 1
    return "train" if several or cluster.gpus > 1 or (not cluster.local and cluster.nodes > 1) else "trial"


def choose_scaling(place: PlaceArgs, cluster: Cluster, engine: str) -> Scaling:
    low, high = place.workers or (1, 1)
    if engine == "trial" and high > 1:
        raise ConfigError(f"--workers {low}-{high} needs --engine train: a trial of --engine trial is one process.")
    gpus = place.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if cluster.gpus or (not cluster.local and engine == "train") else 0.0
    cpus = place.cpus_per_worker if place.cpus_per_worker is not None else 1
    return Scaling(workers=low, max_workers=high, cpus_per_worker=max(1, math.ceil(cpus)), gpus_per_worker=gpus)


# ---- one run


def train(args: TrainArgs) -> dict[str, Any]:
    """``train.py``: trains a recipe, or continues it.

    Returns the content of its ``run.json`` and, as ``run_uri``, where that lies; {} after ``--dry-run``.
    """
    cfg = load_run(args.recipe, args.overrides)
    root = storage_root(args.storage)
    run_uri = join(root, cfg.name)
    if args.fresh and not args.dry_run:
        forget(run_uri)
    data_uri = _prepare(cfg, args.fresh, root=None)
    if args.dry_run:
        print(dry_run_text(cfg, data_uri))
        return {}
    job = Job(
        config=dump(cfg),
        data_uri=data_uri,
        run_uri=run_uri,
        info={"id": cfg.name, "kind": "run", "group": "", "test": True},
    )
    _say(f"{cfg.name}: {cfg.train.epochs} epochs on {read_manifest(data_uri).name}; results in {run_uri}")
    if args.engine in ("auto", "inline") and args.workers is None and cfg.data.tier != "stream":
        from ltcore.runtime.console import EpochLines

        try:
            with LocalContext() as ctx:
                return execute(job, EpochLines(ctx, cfg.train.epochs)) | {"run_uri": run_uri}
        except StopRequested as stop:
            raise KeyboardInterrupt(str(stop)) from None
    return _train_on_ray(args, cfg, job, root) | {"run_uri": run_uri}


def _train_on_ray(args: TrainArgs, cfg: RunConfig, job: Job, root: str) -> dict[str, Any]:
    from ltcore.runtime.single import run_single

    cluster = connect(debug=args.debug)
    try:
        check_storage(root, cluster)
        engine = "train" if args.engine == "auto" else args.engine
        if engine == "inline":
            raise ConfigError(
                "--engine inline is one process without Ray: leave --workers away, or use --engine train."
            )
        return run_single(job, cfg, engine, choose_scaling(args, cluster, engine), cluster)
    finally:
        disconnect()


# ---- a sweep


def tune(args: TuneArgs) -> dict[str, Any]:
    """``tune_lpa.py``: runs, continues or shows a sweep. Returns the content of its ``sweep.json``."""
    sweep = load_sweep(args.sweep, args.overrides)
    base = base_run(sweep)
    root = storage_root(args.storage)
    uri = join(root, sweep.name)
    seed = base.seed
    from ltcore.runtime.console import show_result

    if not args.dry_run and not args.fresh:
        stored = load_json(join(uri, "sweep.json"))
        if stored is not None:
            _check_stored(stored, sweep, base, seed, uri)
            if stored["status"] == "finished":
                show_result(stored, uri, age=True)
                return stored
    from ltcore.runtime.board import Board

    board = Board()
    board.say(f"ltcore sweep [bold]{sweep.name}[/bold] of recipe {sweep.recipe}: {sweep.size} trials; results in {uri}")
    with board.stage("start Ray"):
        cluster = connect(debug=args.debug)
        board.say(cluster.describe())
    try:
        return _tune_on(args, sweep, base, root, uri, seed, cluster, board)
    finally:
        disconnect()


def _tune_on(
    args: TuneArgs, sweep: SweepConfig, base: RunConfig, root: str, uri: str, seed: int, cluster: Cluster, board: Any
) -> dict[str, Any]:
    from ltcore.runtime.capacity import concurrency, demand
    from ltcore.runtime.console import show_result
    from ltcore.runtime.identity import identity
    from ltcore.runtime.sweep import Sweep, SweepSetup
    from ltcore.runtime.warmup import fitted_epochs

    check_storage(root, cluster)
    engine = choose_engine(args, cluster)
    if engine == "inline":
        raise ConfigError("--engine inline runs no sweep: use --engine trial, which is one process per trial.")
    scaling = choose_scaling(args, cluster, engine)
    need = demand(scaling, engine, streams=base.data.tier == "stream")
    concurrent = concurrency(need, cluster, max_gpus=args.max_gpus)
    board.say(f"engine {engine}: one trial takes {need.describe()}; {concurrent} at a time")
    if cluster.local:
        from ltcore.runtime.worker import preload

        preload.remote()  # for the baseline: imports take seconds, and the driver has work meanwhile
    with board.stage("data"):
        data_uri = _prepare(base, args.fresh, root=None if is_local(root) else join(root, "datasets"), say=board.say)
    manifest = read_manifest(data_uri)
    if args.fresh and not args.dry_run:
        forget(uri)
    stored = load_json(join(uri, "sweep.json"))
    fields = identity(sweep, base, seed, base.data.uri)
    with board.stage("warm-up"):
        base = fitted_epochs(sweep, base, data_uri, concurrent, stored, scaling, board.say)
    if args.dry_run:
        board.say(dry_run_text(base, data_uri))
        return {}
    setup = SweepSetup(
        sweep=sweep,
        base=base,
        seed=seed,
        data_uri=data_uri,
        uri=uri,
        cluster=cluster,
        engine=engine,
        scaling=scaling,
        need=need,
        concurrent=concurrent,
        images_per_epoch=manifest.splits["train"].num_samples // base.train.batch_size * base.train.batch_size,
        max_hours=args.max_hours,
        debug=args.debug,
    )
    run = Sweep(setup, fields, board)
    run.fields["epochs"] = base.train.epochs
    result = run.run()
    show_result(result, uri, age=False)
    return result


def _check_stored(stored: dict[str, Any], sweep: SweepConfig, base: RunConfig, seed: int, uri: str) -> None:
    from ltcore.runtime.identity import identity, refuse_other

    refuse_other(stored, identity(sweep, base, seed, base.data.uri), uri)


# ---- shared


def _prepare(cfg: RunConfig, fresh: bool, root: str | None, say: Any = None) -> str:
    return prepare(cfg.data, fresh=fresh and cfg.data.uri == "digits-glt", progress=say or _say, root=root)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def dry_run_text(cfg: RunConfig, data_uri: str) -> str:
    """What a run would cost, without starting it."""
    manifest = read_manifest(data_uri)
    num_train = manifest.splits["train"].num_samples
    steps = num_train // cfg.train.batch_size
    if steps == 0:
        raise CapacityError(f"train.batch_size={cfg.train.batch_size} exceeds the {num_train} training images.")
    images = steps * cfg.train.batch_size * cfg.train.epochs
    return (
        f"{manifest.name}: {num_train} training images, {len(manifest.classes)} classes; {steps} steps per epoch of "
        f"{cfg.train.batch_size}, {cfg.train.epochs} epochs, {images:,} images in all. Nothing was started (--dry-run)."
    )
