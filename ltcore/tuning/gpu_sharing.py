"""What each run of a sweep takes of a GPU: what was given, what was chosen when the sweep began, or what is measured now."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

from ltcore.config.execution import AUTO, PlaceArgs
from ltcore.config.gpu_share import GpuShare
from ltcore.config.records import SweepRecord
from ltcore.config.schema import RunConfig
from ltcore.runtime.gpu_share import MOST, chosen, whole
from ltcore.runtime.placement import Placement, offer
from ltcore.runtime.progress import ProgressDisplay
from ltcore.runtime.ray_occupancy import Measure, NotMeasuredError, measure_on_node
from ltcore.tuning.measured import as_started
from ltcore.tuning.runs import SweepSetup


def shared(
    setup: SweepSetup,
    args: PlaceArgs,
    runs: Sequence[RunConfig],
    stored: SweepRecord | None,
    display: ProgressDisplay,
    measure: Measure | None = None,
) -> SweepSetup:
    """Returns the setup once it is known what each run takes of a GPU; the same where runs take none.

    Args:
        setup: with a placement by ``args``, and with a whole GPU for each run where that is to be chosen.
        runs: every kind of run that the sweep trains.
        stored: the sweep that is continued; what was chosen for it by measuring is kept, what could not be measured is
            tried again.
        measure: measures the heaviest of the runs; None does it in a Ray task.
    """
    placement = setup.placement
    if not placement.scaling.gpus_per_worker:
        return setup
    if not to_choose(args, placement):
        asked = args.gpus_per_worker not in (None, AUTO)
        why = "as --gpus-per-worker says" if asked else "a whole one, as runs on Ray Train do not share"
        given = GpuShare(gpus=placement.scaling.gpus_per_worker, why=why, auto=False)
        return dataclasses.replace(setup, gpu_share=given)
    if stored is not None and (kept := stored.gpu_share) is not None and kept.auto and kept.measured:
        share = kept
    else:
        how = measure or partial(measure_on_node, scaling=placement.scaling, cluster=setup.cluster, say=display.say)
        with display.stage("measure"):
            share = _measured(setup, args, as_started(setup.sweep, runs), how)
    placed = dataclasses.replace(args, gpus_per_worker=share.gpus)
    root = setup.uri.rpartition("/")[0]
    placement = Placement.decide(placed, setup.cluster, root, setup.base, search=setup.sweep.search)
    display.say(f"{share.text}; one takes {placement.describe()}")
    return dataclasses.replace(setup, placement=placement, gpu_share=share)


def to_choose(args: PlaceArgs, placement: Placement) -> bool:
    """Tells whether the part of a GPU is to be chosen here: one process per trial, on GPUs, and no number is given."""
    auto = args.gpus_per_worker in (None, AUTO)
    return auto and placement.engine == "trial" and placement.scaling.gpus_per_worker > 0


def _measured(setup: SweepSetup, args: PlaceArgs, runs: Sequence[RunConfig], measure: Measure) -> GpuShare:
    if any(cfg.stage2 is not None for cfg in runs):
        return whole("runs of stage 2 hold the features of all images and are not measured")
    # The GPUs that are there cost nothing more, and a run that can have one alone is faster; those to come are paid for.
    num_runs = setup.sweep.size + (not setup.sweep.variants)  # the baseline
    gpus = max(1.0, offer(setup.cluster, args.max_gpus)[1])
    per_gpu = MOST if setup.cluster.limits else math.ceil(num_runs / gpus)
    if per_gpu < 2:
        return whole("there are as many GPUs as runs")
    try:
        found = measure(runs, setup.data_uri)
    except NotMeasuredError as error:
        return whole(str(error))
    cpus_each = (args.cpus_per_worker or 1) + any(cfg.data.loader == "ray" for cfg in runs)
    return chosen(found, cpus_each=cpus_each, runs_per_gpu=per_gpu)
