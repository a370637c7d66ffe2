"""A short measurement before a sweep with a time budget: is this machine as fast as the recipe assumes?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ltcore.config.load import grace_fraction
from ltcore.config.records import SweepRecord
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.data.loading.factory import make_loader
from ltcore.data.shards.manifest import read_manifest
from ltcore.runtime.placement import Scaling
from ltcore.training.build import build, num_views
from ltcore.training.context import LocalContext
from ltcore.tuning.rungs import whole_runs
from ltcore.tuning.tpe import batch_size

LEAST_EPOCHS = 8


def images_per_s(cfg: RunConfig, data_uri: str, threads: int, seconds: float = 1.5) -> float:
    """Measures the training speed of the composed objective in this process, in images per second.

    All terms act, after one epoch that fills memories. The optimizer's step is left out: it costs next to nothing, but
    importing ``torch.optim``'s machinery takes seconds.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    options: dict[str, Any] = {"augment": cfg.augment, "num_views": num_views(cfg)}
    loader = make_loader(cfg.data, data_uri, batch_size=cfg.train.batch_size, seed=cfg.seed, **options)
    device = (ctx := LocalContext()).device

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


def fitted_epochs(
    sweep: SweepConfig,
    base: RunConfig,
    data_uri: str,
    concurrent: int,
    stored: SweepRecord | None,
    scaling: Scaling,
    local: bool,
    say: Callable[[str], None],
) -> RunConfig:
    """Returns ``base``, with fewer epochs where the search would not fit into ``sweep.budget_s``.

    A continued sweep keeps its epochs. On a cluster nothing is cut: this process does not run where trials will.
    """
    if stored is not None:
        return base.replace({"train.epochs": stored.epochs})
    if sweep.budget_s is None or not local:
        return base
    rate = images_per_s(base, data_uri, scaling.cpus_per_worker)
    num_train = read_manifest(data_uri).split(base.data.train_split).num_samples
    images = num_train // base.train.batch_size * base.train.batch_size * base.train.epochs
    grace = 1.0 if sweep.search == "pbt" else grace_fraction(sweep, base)
    size = batch_size(sweep.size) if sweep.search == "tpe" else sweep.size
    cohorts = [min(size, sweep.size - first) for first in range(0, sweep.size, size)]
    runs = (0 if sweep.variants else 1) + whole_runs(cohorts, grace, sweep.reduction_factor)  # 1: the baseline
    estimate_s = runs * images / rate / concurrent
    if estimate_s <= sweep.budget_s:
        say(f"warm-up: {rate:,.0f} images/s per trial, search in about {estimate_s:.0f} s")
        return base
    epochs = min(base.train.epochs, max(LEAST_EPOCHS, int(base.train.epochs * sweep.budget_s / estimate_s)))
    say(
        f"warm-up: {rate:,.0f} images/s per trial, so the search would take about {estimate_s:.0f} s instead of "
        f"{sweep.budget_s:.0f} s; training is cut from {base.train.epochs} to {epochs} epochs. "
        "For the full length: sweep.budget_s=null"
    )
    return base.replace({"train.epochs": epochs})
