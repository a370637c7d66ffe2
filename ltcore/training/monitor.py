"""Bookkeeping of training steps: losses that are not finite, means over an epoch, time spent waiting for data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch
from ltcore.errors import NumericError
from ltcore.training import checkpoint as ckpt

LEAST_SCALE = 2.0**-14
"""Of the loss, for float16. Halved from 2^16 on, it is reached after 30 steps in a row without a finite gradient."""


class NonFiniteGuard:
    """Finds the first step whose loss is not finite, without synchronizing with the device at every step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, parts: dict[str, Tensor]) -> None:
        """Records the loss and its parts at a step, still on the device."""
        self._seen.append((step, parts))

    def check(self) -> None:
        """Raises NumericError for the first step since the last check with a number that is not finite."""
        values = [value.float() for _, parts in self._seen for value in parts.values()]
        if values and torch.stack(values).isfinite().all():  # synchronizes once instead of once per number
            self._seen.clear()
        for step, parts in self._seen:
            bad = [name for name, value in parts.items() if name != "loss" and not math.isfinite(value)]
            if bad or not math.isfinite(parts["loss"]):
                self._fail(
                    f"Step {step}: {' and '.join(bad) or 'the total loss'} is not finite ({float(parts[(bad or ['loss'])[0]])})"
                )
        self._seen.clear()

    def skipped(self, step: int, scale: float) -> None:
        """Records a step that was left out because a gradient in float16 overflowed, and the scale of the loss since then.

        Raises NumericError where the scale is so small that the gradient itself is not finite.
        """
        if scale < LEAST_SCALE:
            self._fail(
                f"Step {step}: the gradient is not finite, even of the loss times {scale:.1e}, the scale of float16"
            )

    def _fail(self, what: str) -> None:
        good = ckpt.find(self._folder)
        where = f"the last good checkpoint is {good.path}" if good else "there is no checkpoint yet"
        raise NumericError(
            f"{what}; {where}. Lower train.optim.lr, set train.optim.clip_norm, or train.precision=fp32."
        )


class MeanMetrics:
    """Means of the loss parts over the steps of an epoch.

    A term that starts within the epoch is averaged over the steps from then on.

    Args:
        sums, counts: those of an interrupted epoch, as returned by ``over_ranks``.
        device: where the parts are, and collectives take place.
    """

    def __init__(self, sums: Mapping[str, float], counts: Mapping[str, int], device: torch.device) -> None:
        self._sums = {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in sums.items()}
        self._counts = dict(counts)

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Adds the loss and its parts at a step."""
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.double()
            self._counts[name] = self._counts.get(name, 0) + 1

    def over_ranks(self) -> tuple[dict[str, float], dict[str, int]]:
        """Returns sums over the steps, averaged over ranks, and the numbers of steps. A collective.

        The sums are averaged because a rank's loss parts are its share of those of the global batch.
        """
        names = sorted(self._sums)
        if not names:  # every step so far was left out
            return {}, {}
        sums = dist.all_reduce_sum_(torch.stack([self._sums[name] for name in names])) / dist.world()
        return dict(zip(names, sums.tolist(), strict=True)), dict(self._counts)

    def means(self) -> dict[str, float]:
        """Returns the mean of each part over steps and ranks. A collective."""
        sums, counts = self.over_ranks()
        return {name: value / counts[name] for name, value in sums.items()}


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yields each batch with the seconds that the loop waited for it."""
    while True:
        started = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - started
