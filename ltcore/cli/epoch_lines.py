"""What a run in this process prints while it trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltcore.text import duration
from ltcore.training.context import ForwardingContext, RunContext


class EpochLines(ForwardingContext):
    """Prints one line per epoch, at most every two seconds."""

    def __init__(self, inner: RunContext, epochs: int) -> None:
        super().__init__(inner)
        self._epochs = epochs
        self._began: tuple[float, int] | None = None
        self._printed = 0.0

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        now = time.monotonic()
        epoch = int(metrics["epoch"])
        if self._began is None:
            self._began = (now, epoch)
        if now - self._printed > 2 or epoch == self._epochs:
            self._printed = now
            done = epoch - self._began[1]
            left = f", about {duration((now - self._began[0]) / done * (self._epochs - epoch))} left" if done else ""
            value = metrics.get("val/balanced_accuracy")
            shown = "" if value is None else f"  val balanced accuracy {100 * value:5.2f}%"
            print(
                f"epoch {epoch:4d}/{self._epochs}  loss {metrics['train/loss']:.4f}{shown}  lr {metrics['lr']:.4g}  "
                f"{metrics['images_per_s']:,.0f} images/s, data wait {100 * metrics['data_wait_fraction']:.0f}%{left}",
                flush=True,
            )
        super().report(metrics, checkpoint)
