"""What the loop notes about its steps: losses that are not finite, means over an epoch, time lost to waiting for data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch
from ltcore.errors import NumericError
from ltcore.training import checkpoint as ckpt


class Watch:
    """Notices the first step whose loss is not finite, without waiting for the device at every step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, parts: dict[str, Tensor]) -> None:
        """Takes the loss and its parts at a step, still on the device."""
        self._seen.append((step, parts))

    def check(self) -> None:
        """Raises NumericError for the first step since the last check with a number that is not finite."""
        for step, parts in self._seen:
            bad = [name for name, value in parts.items() if name != "loss" and not math.isfinite(value)]
            if bad or not math.isfinite(parts["loss"]):
                good = ckpt.find(self._folder)
                where = f"the last good checkpoint is {good.path}" if good else "there is no checkpoint yet"
                raise NumericError(
                    f"Step {step}: {' and '.join(bad) or 'the total loss'} is not finite ({float(parts[(bad or ['loss'])[0]])}); "
                    f"{where}. Lower train.optim.lr, set train.optim.clip_norm, or train.precision=fp32."
                )
        self._seen.clear()


def global_means(sums: dict[str, Tensor], steps: int) -> dict[str, float]:
    """Mean over steps and ranks; a rank's loss parts are its share of the global batch's."""
    names = sorted(sums)
    stacked = dist.all_reduce_sum_(torch.stack([sums[name].cpu() for name in names])) / (dist.world() * steps)
    return dict(zip(names, stacked.tolist(), strict=True))


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that the loop waited for it."""
    while True:
        started = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - started
