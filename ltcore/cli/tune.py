"""``tune``: shows, continues or runs a sweep. What is stored is answered before Ray or torch are imported."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from ltcore.callbacks import ENDED_BY
from ltcore.cli.args import TuneArgs
from ltcore.cli.default_recipe import with_recipe
from ltcore.cli.output import COMMAND_LINE, Output
from ltcore.cli.prepare import prepare_data, prepare_run, show_classes, storage_root
from ltcore.config.naming import name_sweep
from ltcore.config.records import SweepRecord
from ltcore.config.show import run_tree
from ltcore.config.sweep import read_sweep
from ltcore.data.config import DataConfig
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import ConfigError
from ltcore.lease import exclusive, remove_ended
from ltcore.storage import join
from ltcore.text import counted
from ltcore.tuning.identity import check_same_data, check_same_sweep, has_more, identity

if TYPE_CHECKING:
    from ltcore.config.schema import RunConfig, SweepConfig
    from ltcore.runtime.cluster import Cluster
    from ltcore.runtime.progress import ProgressDisplay
    from ltcore.tuning.runs import SweepSetup


def tune(args: TuneArgs, out: Output = COMMAND_LINE) -> SweepRecord | None:
    """Runs, continues or shows a sweep. Returns its record; None after ``--dry-run``.

    Raises ConfigError where a sweep of its name has another configuration, other data or other weights.
    """
    if args.engine == "inline":
        raise ConfigError("--engine inline runs no sweep: use --engine trial, which is one process per trial.")
    overrides = with_recipe(args.sweep, args.overrides, args.storage, out.say)
    sweep = read_sweep(args.sweep, name_sweep(args.sweep, overrides))
    root = storage_root(args.storage)
    uri = join(root, sweep.name)
    stored = None if args.fresh else SweepRecord.read(uri)
    if stored is not None:
        check_same_sweep(stored, identity(sweep), uri)
        if stored.status == "finished" and not args.dry_run and not has_more(stored, sweep):
            data = DataConfig(**run_tree(sweep.recipe, sweep.overrides)["data"])
            check_same_data(stored, read_manifest(prepare_data(data, root, out.say)).hash, uri)
            if stored.weights_sha256:  # it takes torch to know whether they are still the same
                from ltcore.config.load import base_run
                from ltcore.tuning.weights import check_same_weights

                check_same_weights(stored, sweep, base_run(sweep), uri)
            if any(trial.reason.startswith(ENDED_BY) for trial in stored.trials or ()):
                from ltcore.config.load import base_run
                from ltcore.tuning.ends import check_same_ends

                check_same_ends(sweep, base_run(sweep), uri)
            out.show_sweep(stored, uri, age=True)
            return stored
    from ltcore.cli.train import settle_tracking
    from ltcore.config.load import load_sweep
    from ltcore.config.show import left_out
    from ltcore.runtime.cluster import connect, disconnect
    from ltcore.runtime.progress import ProgressDisplay
    from ltcore.tuning.ends import check_same_ends
    from ltcore.tuning.weights import check_same_weights

    base = load_sweep(sweep)
    if stored is not None:
        check_same_weights(stored, sweep, base, uri)
        check_same_ends(sweep, base, uri)
    display = ProgressDisplay(out.terminal(), sweep.metric)
    display.say(
        "ltcore sweep ",
        (sweep.name, "bold"),
        f" of recipe {sweep.recipe}: {counted(sweep.size, 'trial')}; results in {uri}",
    )
    if note := left_out(sweep.recipe, sweep.overrides):
        display.say(note)
    settle_tracking(base, display.say)
    with contextlib.nullcontext() if args.dry_run else exclusive(uri, display.say):  # which writes there
        with display.stage("start Ray"):
            cluster = connect(debug=args.debug)
            display.say(cluster.describe())
        try:
            result = _tune_on(args, sweep, base, root, uri, cluster, display)
        finally:
            disconnect()
        if not args.dry_run:
            remove_ended(uri)
    if result is not None:
        out.show_sweep(result, uri, age=False)
    return result


def _tune_on(
    args: TuneArgs, sweep: SweepConfig, base: RunConfig, root: str, uri: str, cluster: Cluster, display: ProgressDisplay
) -> SweepRecord | None:
    """Places the sweep and prepares its data, then runs it; None after ``--dry-run``."""
    from ltcore.cli.dry_run import dry_run
    from ltcore.runtime.doctor.doctor import check_nodes
    from ltcore.runtime.placement import Placement
    from ltcore.training.class_words import check_words
    from ltcore.training.context import LocalContext
    from ltcore.training.preflight import check_device, check_network
    from ltcore.training.remarks import remarks
    from ltcore.training.run import delete_run
    from ltcore.training.selection import check_selection
    from ltcore.training.settle import settled
    from ltcore.tuning.ends import check_same_ends
    from ltcore.tuning.gpu_sharing import shared, to_choose
    from ltcore.tuning.measured import measured_run
    from ltcore.tuning.planned import count_words, planned_runs
    from ltcore.tuning.runs import SweepSetup
    from ltcore.tuning.weights import check_same_weights, starting_hashes

    stored = None if args.fresh else SweepRecord.read(uri)
    if stored is not None:  # again: while this process waited for the sweep, another one may have begun it
        check_same_sweep(stored, identity(sweep), uri)
        check_same_weights(stored, sweep, base, uri)
        check_same_ends(sweep, base, uri)
    placement = Placement.decide(args, cluster, root, base, search=sweep.search)
    display.say(f"engine {placement.engine}: one trial takes {placement.describe()}")
    check_nodes(cluster, placement, root, base.data.uri if "://" in base.data.uri else "", display.console)
    if cluster.local:
        from ltcore.runtime.ray_task import preload

        preload.remote()  # for the baseline: imports take seconds, and the driver has work meanwhile
    varied = {**sweep.space, **{key: value for changes in sweep.variants.values() for key, value in changes.items()}}
    if stored is None:
        check_network(base, varied)
    here = LocalContext().device if cluster.local else None
    if here is not None:
        check_device(base, here, varied)
    with display.stage("data"):
        data_uri, manifest = prepare_run(base, root, display.say, fresh=args.fresh and not args.dry_run)
    show_classes(base, manifest, display.say)
    check_selection({"sweep.metric": sweep.metric, "train.select": base.train.select}, manifest)
    began = None if stored is None else {"model.weights": stored.weights, **(stored.input or {})}
    base = settled(base, manifest, display.say, typed={**sweep.overrides, **varied}, stored=began, varied=varied)
    runs = planned_runs(sweep, base, manifest)
    for run in runs:
        if here is not None:
            check_device(run, here)
        if stored is None:
            check_words(run.model, manifest.classes)
    for note in dict.fromkeys(note for run in runs for note in remarks(run, manifest)):
        display.say(note)
    if args.dry_run:
        counted_runs = count_words(sweep, base, manifest, placement.concurrent)
        more = ", or more where runs can share a GPU, which is measured at the start" * to_choose(args, placement)
        display.say(dry_run(measured_run(sweep, base, manifest), data_uri, root, runs=f"{counted_runs}{more}"))
        return None
    if args.fresh and (done := delete_run(uri)):
        display.say(done)
    num_train, batch_size = manifest.split(base.data.train_split).num_samples, base.train.batch_size
    setup = SweepSetup(
        sweep=sweep,
        base=base,
        num_trials=sweep.size,
        seed=base.seed,
        data_uri=data_uri,
        data_hash=manifest.hash,
        uri=uri,
        cluster=cluster,
        placement=placement,
        unshared=placement,
        images_per_epoch=num_train // batch_size * batch_size,
        max_hours=args.max_hours,
        debug=args.debug,
        weights_sha256=starting_hashes(sweep, base) if cluster.local else {},  # elsewhere nodes have files of their own
    )
    return _run_sweep(shared(setup, args, runs, stored, display), display)


def _run_sweep(setup: SweepSetup, display: ProgressDisplay) -> SweepRecord:
    """Runs the sweep, or continues it on the same data."""
    from ltcore.tuning.budget import planned_trials
    from ltcore.tuning.sweep import Sweep
    from ltcore.tuning.variants import VariantSweep

    stored = SweepRecord.read(setup.uri)
    if stored is not None:
        check_same_data(stored, setup.data_hash, setup.uri)
    with display.stage("warm-up"):
        setup = dataclasses.replace(setup, num_trials=planned_trials(setup, stored, display.say))
    kind = VariantSweep if setup.sweep.variants else Sweep
    return kind(setup, identity(setup.sweep), display).run()
