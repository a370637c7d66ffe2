"""What a run in this process prints while it trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.progress_bar import ProgressBar

from ltcore.reporting.live import live_block
from ltcore.reporting.terminal import Terminal, styled
from ltcore.text import duration
from ltcore.training.context import ForwardingContext, RunContext

LINE_EVERY_S = 2.0


class EpochLines(ForwardingContext):
    """Prints one line per epoch, at most every two seconds; in a notebook one block with a bar is redrawn instead."""

    def __init__(self, inner: RunContext, epochs: int, console: Terminal | None = None) -> None:
        super().__init__(inner)
        self._console = console or Terminal()
        self._epochs = epochs
        self._began: tuple[float, int] | None = None
        self._printed = 0.0
        self._line = ""
        self._share = 0.0
        self._block = live_block(self._console, self._render) if self._console.is_jupyter else None

    def __enter__(self) -> EpochLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._block is not None:
            self._block.__exit__(None, None, None)

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        """Moves the bar."""
        self._share = images_seen / max(total_images, 1)
        if self._block is not None:
            self._block.refresh()
        super().beat(epoch, images_seen, total_images)

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        """Tells the metrics of a finished epoch."""
        now = time.monotonic()
        epoch = int(metrics["epoch"])
        if self._began is None:
            self._began = (now, epoch)
        self._line, self._share = self._described(epoch, metrics, now - self._began[0]), epoch / self._epochs
        if self._block is not None and epoch < self._epochs:
            self._block.refresh()
        elif now - self._printed > LINE_EVERY_S or epoch == self._epochs:
            self._printed = now
            self._console.progress(styled(self._line), soft_wrap=True)
        super().report(metrics, checkpoint)

    def _described(self, epoch: int, metrics: Mapping[str, Any], seconds: float) -> str:
        assert self._began is not None, "it is set before"
        done = epoch - self._began[1]
        left = f", about {duration(seconds / done * (self._epochs - epoch))} left" if done else ""
        value = metrics.get("val/balanced_accuracy")
        shown = "" if value is None else f"  val balanced accuracy {100 * value:5.2f}%"
        ncm = metrics.get("val/ncm_balanced_accuracy")
        shown += "" if ncm is None else f", of the nearest class mean {100 * ncm:5.2f}%"
        loss = metrics.get("train/loss")
        loss_words = "no step taken, all overflowed" if loss is None else f"loss {loss:.4f}"
        return (
            f"epoch {epoch:4d}/{self._epochs}  {loss_words}{shown}  lr {metrics['lr']:.4g}  "
            f"{metrics['images_per_s']:,.0f} images/s, data wait {100 * metrics['data_wait_fraction']:.0f}%{left}"
        )

    def _render(self) -> Group:
        return Group(ProgressBar(total=1.0, completed=self._share, width=60), styled(self._line or "first epoch"))
