"""The seam between the loop and the place it runs in. The loop knows this protocol alone; Ray implements it elsewhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch


class RunContext(Protocol):
    """Where a run executes. Every rank has one."""

    engine: str
    """'inline', 'trial' or 'train'."""
    rank: int
    world: int
    device: torch.device
    checkpoint_every_epoch: bool
    """Whether whoever takes the reports wants a checkpoint with each (population-based training hands them around)."""

    def report(self, metrics: Mapping[str, float | int | None], checkpoint: Path | None) -> None:
        """Hands the metrics of a finished epoch upwards. Called by every rank, equally often."""

    def saved(self) -> None:
        """A checkpoint inside an epoch is whole on this node's disk. Called by every rank; never waits for a slow storage."""

    def stop_requested(self) -> bool:
        """True once the run should save a checkpoint at the next step boundary and end."""

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        """A sign of life from inside an epoch: cheap, never blocks, may be dropped."""


class ForwardingContext:
    """Passes everything on to another context; what a subclass overrides comes in between."""

    def __init__(self, inner: RunContext) -> None:
        self.inner = inner
        self.engine, self.rank, self.world, self.device = inner.engine, inner.rank, inner.world, inner.device
        self.checkpoint_every_epoch = inner.checkpoint_every_epoch

    def report(self, metrics: Mapping[str, float | int | None], checkpoint: Path | None) -> None:
        """Passes the metrics on."""
        self.inner.report(metrics, checkpoint)

    def saved(self) -> None:
        """Passes the word on."""
        self.inner.saved()

    def stop_requested(self) -> bool:
        """Asks the other context."""
        return self.inner.stop_requested()

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        """Passes the sign of life on."""
        self.inner.beat(epoch, images_seen, total_images)


class LocalContext(AbstractContextManager["LocalContext"]):
    """This process, no Ray. As a context manager: one Ctrl-C or SIGTERM lets the loop save and end, two interrupt."""

    engine = "inline"
    rank = 0
    world = 1
    checkpoint_every_epoch = False

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._stop = False
        self._previous: dict[int, Any] = {}

    def report(self, metrics: Mapping[str, float | int | None], checkpoint: Path | None) -> None:
        """Nobody is above this process: what was logged is all there is."""

    def saved(self) -> None:
        """This disk is all there is."""

    def stop_requested(self) -> bool:
        """True after the first signal."""
        return self._stop

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        """Nobody listens."""

    def __enter__(self) -> LocalContext:
        if threading.current_thread() is threading.main_thread():
            for sig in (signal.SIGINT, signal.SIGTERM):
                self._previous[sig] = signal.signal(sig, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for sig, handler in self._previous.items():
            signal.signal(sig, handler)

    def _on_signal(self, sig: int, _: FrameType | None) -> None:
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True
        print(
            f"\n{signal.Signals(sig).name}: saving a checkpoint, then stopping. Once more to stop at once.", flush=True
        )


DECIDE_EVERY = 16
"""Steps between the points at which ranks agree on 'checkpoint now?' and 'stop?', and losses are checked to be finite."""


class StopRequested(Exception):  # noqa: N818  (a wish, not an error)
    """The context asked to stop; a checkpoint was saved."""
