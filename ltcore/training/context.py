"""The interface between the training loop and the environment it runs in.

The loop depends on this protocol only; the Ray implementation is in the runtime package.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from ltcore.config.records import Notice, RunRecord
from ltcore.errors import Terminated


class RunContext(Protocol):
    """The environment of a run. Every rank has one."""

    engine: str
    """'inline', 'trial' or 'train'."""
    rank: int
    world: int
    device: torch.device
    checkpoint_every_epoch: bool
    """Whether every report needs a checkpoint (population-based training passes them between trials)."""

    def report(self, metrics: Mapping[str, float | int | None], checkpoint: Path | None) -> None:
        """Reports the metrics of a finished epoch. Called by every rank, equally often."""

    def saved(self) -> None:
        """Signals that a checkpoint inside an epoch is complete on this node's disk.

        Called by every rank; never waits for slow storage.
        """

    def stop_requested(self) -> bool:
        """Tells whether the run should save a checkpoint at the next step boundary and end."""

    def notice_due(self) -> bool:
        """Tells whether it is time to ask for ``notice`` again. That of rank 0 counts."""

    def notice(self) -> Notice | None:
        """Returns why this group of workers is about to end, or None. Called by every rank, equally often."""

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        """Sends a heartbeat from inside an epoch: cheap, never blocks, may be dropped."""


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

    def notice_due(self) -> bool:
        """Asks the other context."""
        return self.inner.notice_due()

    def notice(self) -> Notice | None:
        """Asks the other context."""
        return self.inner.notice()

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        """Passes the sign of life on."""
        self.inner.beat(epoch, images_seen, total_images)


class LocalContext(AbstractContextManager["LocalContext"]):
    """This process without Ray.

    As a context manager: one Ctrl-C or SIGTERM saves and ends the run, two interrupt it; afterwards the process computes
    with as many threads as before.
    """

    engine = "inline"
    rank = 0
    world = 1
    checkpoint_every_epoch = False

    def __init__(self, device: torch.device | None = None, say: Callable[[str], None] = print) -> None:
        self._say = say
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._stop = 0
        """The first signal that arrived; 0 for none."""
        self._previous: dict[int, Any] = {}

    def report(self, metrics: Mapping[str, float | int | None], checkpoint: Path | None) -> None:
        """Does nothing, since there is no other process to report to."""

    def saved(self) -> None:
        """Does nothing, since there is no other disk."""

    def stop_requested(self) -> bool:
        """Tells whether a signal was received."""
        return self._stop > 0

    def interrupt(self, why: str = "") -> KeyboardInterrupt:
        """Returns what the command ends with after the signal that was received."""
        return Terminated(why) if self._stop == signal.SIGTERM else KeyboardInterrupt(why)

    def notice_due(self) -> bool:
        """Returns False: nobody but a signal announces the end of this process."""
        return False

    def notice(self) -> Notice | None:
        """Returns None, as nobody tells."""
        return None

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        """Does nothing, since there is no other process to report to."""

    def __enter__(self) -> LocalContext:
        self._threads = torch.get_num_threads()
        if threading.current_thread() is threading.main_thread():
            for sig in (signal.SIGINT, signal.SIGTERM):
                self._previous[sig] = signal.signal(sig, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for sig, handler in self._previous.items():
            signal.signal(sig, handler)
        torch.set_num_threads(self._threads)

    def _on_signal(self, sig: int, _: FrameType | None) -> None:
        if self._stop:
            raise self.interrupt()
        self._stop = sig
        self._say(f"{signal.Signals(sig).name}: saving a checkpoint, then stopping. Repeat to stop at once.")


DECIDE_EVERY = 16
"""Steps between the points at which ranks agree whether to save and whether to stop, and losses are checked to be
finite.
"""


class StopRequested(Exception):  # noqa: N818  (a request, not an error)
    """Raised after a checkpoint was saved because the context asked to stop."""


class Interrupted(StopRequested):
    """Raised after a checkpoint was saved because the workers are about to be taken away; the run goes on with others.

    ``record`` is what it had come to. In its directory there may be another one as soon as the directory is free.
    """

    def __init__(self, why: str, record: RunRecord) -> None:
        super().__init__(why)
        self.record = record
