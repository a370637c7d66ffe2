"""A lock between processes, by a file."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from ltcore.retry import still_here


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds an exclusive lock between processes (and threads) on the file ``path``, which is created if missing.

    ``on_wait`` is called where another process holds it, before this one waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            _wait_for(stream)
        yield


def _wait_for(stream: TextIO) -> None:
    """Waits for a lock, which another process may hold for as long as it decodes a data set."""
    pause_s = 0.001
    while True:
        still_here()
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.2)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
