"""The whole step fed from the node's cache: with images gathered on the host, and with those that stay on the device."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from ltcore.batch import Batch
from ltcore.benchmarks.harness import Aim, Rung, Section, Work, interleave
from ltcore.benchmarks.machine import wait_for
from ltcore.config.schema import RunConfig
from ltcore.data.loading.loader import CachedLoader, Loader
from ltcore.data.loading.resident import ResidentLoader
from ltcore.training.build import Components, build
from ltcore.training.context import LocalContext
from ltcore.training.descent import build_descent, take_step

HOST, RESIDENT = "from the host", "resident"
NOTE = (
    "the whole step on images of the node's cache: gathered on the host and copied to the device, or kept on the device "
    "(data.resident), where row numbers and draws alone cross; the ratio is the gain"
)
PROGRESS = 0.5


def measure_resident(
    section: Section,
    label: str,
    cfg: RunConfig,
    side: int,
    place: torch.device,
    *,
    steps: int,
    turns: int,
    compiled: str,
    aim: Aim | None,
) -> None:
    """Adds images/s of training steps in both ways, and the rung that compares them, on images of ``side`` pixels.

    Batches come through the loaders of runs, one after another through all epochs. With ``compiled`` not off, the second way
    is measured with that ``train.compile``, too, of which ``aim`` is what is wanted.
    """
    cfg = cfg.replace({"data.image_size": side, "data.loader": "cache"})
    options: dict[str, Any] = {"batch_size": cfg.train.batch_size, "seed": cfg.seed}
    on = dataclasses.replace(cfg.data, resident="on")
    host, resident = f"{label}: {HOST}", f"{label}: {RESIDENT}"
    ways, rungs = {host: cfg, resident: cfg}, [Rung(resident, host)]
    if compiled != "off":
        name = f"{resident}, compiled ({compiled})"
        ways[name] = cfg.replace({"train.compile": compiled})
        rungs.append(Rung(name, host, aim))
    with contextlib.ExitStack() as opened:
        sides = {}
        for name, how in ways.items():
            loader: Loader = (
                CachedLoader(cfg.data, cfg.data.uri, **options)
                if name == host
                else ResidentLoader(on, cfg.data.uri, device=place, **options)
            )
            opened.callback(loader.close)
            sides[name] = _fed(loader, build(how, loader, LocalContext(place)), how, place, steps)
        section.measurements += interleave(sides, turns)
    section.rungs += rungs


def _fed(loader: Loader, parts: Components, cfg: RunConfig, place: torch.device, steps: int) -> Work:
    """Returns rounds of ``steps`` training steps, as the training loop does them, whose amount is images."""
    descent = build_descent(cfg.train, parts, place)
    batches = _numbered(loader)

    def work() -> float:
        for _ in range(steps):
            raw, epoch = next(batches)
            batch = parts.augment(raw.to(place), epoch, raw)
            take_step(parts, descent, batch, PROGRESS, accumulate=1)
        wait_for(place)
        return steps * cfg.train.batch_size

    return work


def _numbered(loader: Loader) -> Iterator[tuple[Batch, int]]:
    """Yields the batches of all epochs, each with the number of its epoch."""
    for epoch in itertools.count():
        for raw in loader.train_batches(epoch):
            yield raw, epoch
