"""``tune_lpa.py``: shows, continues or runs a sweep. What is stored is answered before Ray or torch are imported."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from ltcore.cli.args import TuneArgs
from ltcore.config.naming import name_sweep
from ltcore.config.records import SweepRecord
from ltcore.config.show import run_tree
from ltcore.config.sweep import read_sweep
from ltcore.data.config import DataConfig
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import ConfigError
from ltcore.runtime.place import (
    check_storage,
    check_workers,
    choose_engine,
    choose_scaling,
    prepare_data,
    prepare_run,
    storage_root,
)
from ltcore.storage import join
from ltcore.text import message
from ltcore.training.lease import exclusive
from ltcore.tuning.identity import adds_trials, check_same_data, check_same_sweep, identity

if TYPE_CHECKING:
    from ltcore.config.schema import RunConfig, SweepConfig
    from ltcore.runtime.cluster import Cluster
    from ltcore.runtime.progress import ProgressDisplay


def tune(args: TuneArgs) -> SweepRecord | None:
    """``tune_lpa.py``: runs, continues or shows a sweep. Returns its record; None after ``--dry-run``.

    ConfigError where another sweep lies under its name: another configuration, or other data.
    """
    from ltcore.cli.console import show_result

    args = dataclasses.replace(args, overrides=name_sweep(args.sweep, args.overrides))
    named = read_sweep(args.sweep, args.overrides)
    root = storage_root(args.storage)
    uri = join(root, named.name)
    stored = None if args.fresh else SweepRecord.read(uri)
    if stored is not None:
        check_same_sweep(stored, identity(named), uri)
        if stored.status == "finished" and not args.dry_run and not adds_trials(stored, identity(named)):
            data = DataConfig(**run_tree(named.recipe, named.overrides)["data"])
            check_same_data(stored, read_manifest(prepare_data(data, root, _tell)).hash, uri)
            show_result(stored, uri, age=True)
            return stored
    from ltcore.cli.train import settle_tracking
    from ltcore.config.load import base_run, load_sweep
    from ltcore.config.show import left_out
    from ltcore.runtime.cluster import connect, disconnect
    from ltcore.runtime.progress import ProgressDisplay

    display = ProgressDisplay()
    sweep = load_sweep(args.sweep, args.overrides)
    display.say(
        "ltcore sweep ", (sweep.name, "bold"), f" of recipe {sweep.recipe}: {sweep.size} trials; results in {uri}"
    )
    if note := left_out(sweep.recipe, sweep.overrides):
        display.say(note)
    base = base_run(sweep)
    settle_tracking(base)
    with exclusive(uri, display.say):
        with display.stage("start Ray"):
            cluster = connect(debug=args.debug)
            display.say(cluster.describe())
        try:
            return _tune_on(args, sweep, base, root, uri, cluster, display)
        finally:
            disconnect()


def _tell(text: str) -> None:
    print(message(text), file=sys.stderr, flush=True)


def _tune_on(
    args: TuneArgs, sweep: SweepConfig, base: RunConfig, root: str, uri: str, cluster: Cluster, display: ProgressDisplay
) -> SweepRecord | None:
    from ltcore.cli.console import show_result
    from ltcore.runtime.doctor.doctor import check_nodes
    from ltcore.runtime.placement import capacity_source, concurrency, demand
    from ltcore.training.cost import dry_run_text
    from ltcore.training.run import delete_run
    from ltcore.training.selection import check_selection
    from ltcore.tuning.budget import fitted_epochs
    from ltcore.tuning.runs import SweepSetup
    from ltcore.tuning.sweep import Sweep

    check_storage(root, cluster)
    engine = choose_engine(args, cluster, sweep.search)
    if engine == "inline":
        raise ConfigError("--engine inline runs no sweep: use --engine trial, which is one process per trial.")
    scaling = choose_scaling(args, cluster, engine)
    check_workers(base, scaling)
    need = demand(scaling, engine, streams=base.data.loader == "ray")
    concurrent = concurrency(need, cluster, max_gpus=args.max_gpus)
    counted = capacity_source(cluster, args.max_gpus)
    display.say(
        f"engine {engine}: one trial takes {need.describe()}; {concurrent} at a time"
        + (f", {counted}" if counted else "")
    )
    check_nodes(cluster, root, base.data.uri if "://" in base.data.uri else "", need, args.max_gpus, display.console)
    if cluster.local:
        from ltcore.runtime.ray_task import preload

        preload.remote()  # for the baseline: imports take seconds, and the driver has work meanwhile
    with display.stage("data"):
        data_uri, manifest = prepare_run(base, root, display.say, fresh=args.fresh and not args.dry_run)
    check_selection({"sweep.metric": sweep.metric, "train.select": base.train.select}, manifest)
    if args.dry_run:
        display.say(dry_run_text(base, data_uri))
        return None
    if args.fresh and (done := delete_run(uri)):
        display.say(done)
    stored = SweepRecord.read(uri)
    if stored is not None:
        check_same_data(stored, manifest.hash, uri)
    with display.stage("warm-up"):
        base = fitted_epochs(sweep, base, data_uri, concurrent, stored, scaling, cluster.local, display.say)
    setup = SweepSetup(
        sweep=sweep,
        base=base,
        seed=base.seed,
        data_uri=data_uri,
        data_hash=manifest.hash,
        uri=uri,
        cluster=cluster,
        engine=engine,
        scaling=scaling,
        need=need,
        concurrent=concurrent,
        images_per_epoch=manifest.split(base.data.train_split).num_samples
        // base.train.batch_size
        * base.train.batch_size,
        max_hours=args.max_hours,
        debug=args.debug,
    )
    result = Sweep(setup, identity(sweep), display).run()
    show_result(result, uri, age=False)
    return result
