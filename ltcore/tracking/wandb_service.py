"""W&B's service process, for which W&B itself waits without limit."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Set
from pathlib import Path

import psutil

END_S = 30.0  # the upload at the end of a run has a limit of its own and is over by then


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Ends the service process by force where the block takes longer; what waits for it in there then fails.

    A process has one service. One that has not answered for so long is of no use to other runs of this process either.
    """
    timer = threading.Timer(seconds, _kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_service() -> None:
    """Ends the service process of W&B, if this process has one, by force after ``END_S``."""
    import wandb

    # It fails where the service holds the id of a failed run or has died, and its bound where no thread can be started.
    with contextlib.suppress(Exception, SystemExit), bounded(END_S):
        wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)  # the address of that process
    _remove_left(living={child.pid for child in _services()})


def bound_exit() -> None:
    """Ends the service by force ``END_S`` after this process began to end.

    To be called when the service runs: W&B's own hook, which waits for it, was registered before then and acts after this.
    """
    ending = threading.Event()
    atexit.register(ending.set)
    threading.Thread(target=_kill_after, args=(ending,), daemon=True).start()  # none can be started during the exit


def _kill_after(ending: threading.Event) -> None:
    ending.wait()
    time.sleep(END_S)
    _kill()


def _kill() -> None:
    for child in _services():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    _remove_left(living=set())


def _services() -> list[psutil.Process]:
    """Returns the service processes of this process that have not ended."""
    found = list[psutil.Process]()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith("wandb-core") and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def _remove_left(living: Set[int]) -> None:
    """Removes the sockets that killed services of this process, and their monitors, leave where Go puts temporary files."""
    place = Path(os.environ.get("TMPDIR") or "/tmp")
    for folder in place.glob(f"wandb-{os.getpid()}-*-*"):
        service = folder.name.split("-")[2]
        if service not in map(str, living):
            for left in place.glob(f"wandb_symon-{service}-*.sock"):
                with contextlib.suppress(OSError):  # another person's, who has a process of this number elsewhere
                    left.unlink()
            shutil.rmtree(folder, ignore_errors=True)
