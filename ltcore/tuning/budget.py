"""A short measurement before a sweep with a time budget: is this machine as fast as the recipe assumes?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import ray
import torch

from ltcore.config.load import grace_fraction
from ltcore.config.records import SweepRecord
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.data.loading.factory import make_loader
from ltcore.data.shards.manifest import read_manifest
from ltcore.runtime.ray_occupancy import NotMeasuredError, measured_by
from ltcore.runtime.ray_task import lacking
from ltcore.training.build import build, stream_options
from ltcore.training.context import LocalContext
from ltcore.tuning.identity import size_now
from ltcore.tuning.measured import measured_run
from ltcore.tuning.rungs import FINALISTS, whole_runs
from ltcore.tuning.runs import SweepSetup
from ltcore.tuning.tpe import batch_size


def images_per_s(
    cfg: RunConfig, data_uri: str, threads: int, seconds: float = 1.5, *, device: torch.device | None = None
) -> float:
    """Measures the training speed of the composed objective in this process, in images per second.

    ``device`` is where; None: on a GPU if there is one.

    All terms act, after one epoch that fills memories. The optimizer's step is left out: it costs next to nothing, but
    importing ``torch.optim``'s machinery takes seconds.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    options = {"batch_size": cfg.train.batch_size, "seed": cfg.seed, **stream_options(cfg)}
    device = (ctx := LocalContext(device)).device
    loader = make_loader(cfg.data, data_uri, device=device, **options)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic()

    try:
        parts = build(cfg, loader, ctx)
        objective = parts.step.objective
        steps, started = 0, now()
        epoch = 0
        while epoch < 2 or now() - started < seconds:
            if epoch == 1:
                steps, started = 0, now()
            for raw in loader.train_batches(epoch):
                batch = parts.augment(raw.to(device), epoch, raw)
                loss, _, out = parts.step(batch, 0.99)
                loss.backward()
                objective.observe(out, batch, 0.99)
                steps += 1
            objective.merge(0.99)
            epoch += 1
        return steps * cfg.train.batch_size / (now() - started)
    finally:
        loader.close()
        torch.set_num_threads(before)


def planned_trials(setup: SweepSetup, stored: SweepRecord | None, say: Callable[[str], None]) -> int:
    """Returns how many trials the search has: all, or the first ones where more do not fit into ``sweep.budget_s``.

    Every trial is trained at full length: a shorter training would rank other settings first. A stored sweep keeps what
    was decided when it began. On a cluster all are run, as this process does not run where trials will.
    """
    sweep, base = setup.sweep, setup.base
    if stored is not None or sweep.budget_s is None or not setup.cluster.local:
        return size_now(stored, sweep)
    try:
        rate = _rate(setup, say)
    except NotMeasuredError as error:
        say(f"warm-up: {error}, so all {sweep.size} trials are run, however long they take")
        return sweep.size
    run_s = _images_of_run(setup) / rate
    grace = grace_fraction(sweep, base)

    def search_s(size: int) -> float:
        runs = 1 + whole_runs(_cohorts(sweep, size), grace, sweep.reduction_factor)  # 1: the baseline
        return runs * run_s / setup.placement.concurrent

    estimate_s = search_s(sweep.size)
    if estimate_s <= sweep.budget_s:
        say(f"warm-up: {rate:,.0f} images/s per trial, search in about {estimate_s:.0f} s")
        return sweep.size
    step = batch_size(sweep.size) if sweep.search == "tpe" else 1
    sizes = range(max(step, min(FINALISTS, sweep.size)), sweep.size + 1, step)
    size = max((size for size in sizes if search_s(size) <= sweep.budget_s), default=sizes[0])
    if size < sweep.size:
        say(
            f"warm-up: {rate:,.0f} images/s per trial, so {sweep.size} trials would take about {estimate_s:.0f} s instead of "
            f"{sweep.budget_s:.0f} s; the first {size} of them are run, at full length. For all: sweep.budget_s=null"
        )
    return size


def _rate(setup: SweepSetup, say: Callable[[str], None]) -> float:
    """Measures the speed of a trial; on a GPU in a process that ends after it, or it would keep memory that trials need.

    Raises NotMeasuredError where that process is not heard of for long.
    """
    scaling, uri = setup.placement.scaling, setup.data_uri
    run = measured_run(setup.sweep, setup.base, read_manifest(uri))
    if not scaling.gpus_per_worker:
        return images_per_s(run, uri, scaling.cpus_per_worker, device=torch.device("cpu"))
    task = ray.remote(num_cpus=scaling.cpus_per_worker, num_gpus=scaling.gpus_per_worker, max_calls=1)(_rate_there)
    ref = task.remote(run.to_dict(), uri, scaling.cpus_per_worker)
    rate: float = measured_by(ref, lambda: f"warm-up; needed: {lacking(setup.placement.demand)}", say)
    return rate


def _rate_there(tree: dict[str, Any], data_uri: str, threads: int) -> float:
    return images_per_s(RunConfig.from_dict(tree), data_uri, threads)


def _images_of_run(setup: SweepSetup) -> float:
    """Returns how many images a whole training costs; one that is only evaluated costs a third, a forward pass."""
    train = setup.base.train
    val = read_manifest(setup.data_uri).splits.get("val")
    evaluated = 0 if val is None else val.num_samples * math.ceil(train.epochs / train.eval_every)
    return train.epochs * setup.images_per_epoch + evaluated / 3


def _cohorts(sweep: SweepConfig, size: int) -> list[int]:
    """Returns the sizes of the cohorts in which ``size`` trials are compared."""
    step = batch_size(sweep.size) if sweep.search == "tpe" else size
    return [min(step, size - first) for first in range(0, size, step)]
