"""A run seen from outside: Ray metrics for dashboards, and log lines that say which run, trial and rank they are of."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

GAUGES = {
    "images_per_s": "Training images per second of all workers of the run.",
    "data_wait_fraction": "Share of the epoch's time in which the loop waited for data.",
    "memory_bytes": "Most memory that this worker has held: on its GPU, or resident where there is none.",
    "checkpoint_s": "Seconds that writing checkpoints took in the last epoch.",
}
TAGS = ("run", "trial", "rank")


@functools.cache
def _gauges() -> dict[str, Gauge]:
    return {name: Gauge(f"ltcore_{name}", description=summary, tag_keys=TAGS) for name, summary in GAUGES.items()}


class RayMetrics:
    """One worker's end; called once per epoch."""

    def __init__(self, run: str, trial: str, rank: int) -> None:
        self._tags = {"run": run, "trial": trial, "rank": str(rank)}
        self._log = _logger()

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Sets the gauges to the values of a finished epoch, and logs it."""
        for name, gauge in _gauges().items():
            if metrics.get(name) is not None:
                gauge.set(float(metrics[name]), tags=self._tags)
        value = metrics.get("val/balanced_accuracy")
        self._log.info(
            "run=%s trial=%s rank=%s epoch=%s loss=%s%s images_per_s=%.0f",
            *self._tags.values(),
            metrics["epoch"],
            "none" if metrics.get("train/loss") is None else f"{metrics['train/loss']:.4f}",
            "" if value is None else f" val/balanced_accuracy={value:.4f}",
            metrics["images_per_s"],
        )


@functools.cache
def _logger() -> logging.Logger:
    """Returns a logger to stderr, which Ray keeps as the worker's log file."""
    log = logging.getLogger("ltcore.run")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    return log
