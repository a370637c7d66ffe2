"""Ctrl-C and SIGTERM while Ray computes runs: they save a checkpoint first, and a second signal ends everything at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from ltcore.errors import Terminated
from ltcore.runtime.heartbeat import SAVE_S, Watchdog


@contextlib.contextmanager
def saving_first(watch: Watchdog, say: Callable[[str], None]) -> Iterator[None]:
    """Lets runs save a checkpoint when a signal asks the command to end, which it does where this block ends.

    The block must come to its end once ``watch.saving`` is set and no run is left, at the latest when
    ``watch.stop_wanted``. Raises KeyboardInterrupt or Terminated there, or from anywhere in it after a second signal.
    Outside the main thread, where Python takes no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def ask(sig: int, _: FrameType | None) -> None:
        received.append(sig)
        if len(received) > 1:
            raise _interrupt(sig)
        watch.save_and_end()
        say(
            f"{signal.Signals(sig).name}: running trainings save a checkpoint first, within {SAVE_S:g} s. "
            "Repeat to stop at once."
        )

    before = {sig: signal.signal(sig, ask) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
    if received:
        raise _interrupt(received[0])


def _interrupt(sig: int) -> KeyboardInterrupt:
    return Terminated() if sig == signal.SIGTERM else KeyboardInterrupt()
