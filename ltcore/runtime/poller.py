"""A thread that looks at something every few seconds, beside the Ray driver that started it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod


class Poller(threading.Thread, ABC):
    """Calls ``poll`` every ``every_s`` seconds until ``end`` or until it returns False."""

    def __init__(self, name: str, every_s: float) -> None:
        super().__init__(daemon=True, name=f"ltcore-{name}")
        self._every_s = every_s
        self._ended = threading.Event()

    @abstractmethod
    def poll(self) -> bool:
        """Looks once. Returns whether there is anything left to look at."""

    def end(self) -> None:
        """Asks the thread to end; it does so within ``every_s`` and one look."""
        self._ended.set()

    def run(self) -> None:
        """Polls until the end; runs in the thread."""
        while not self._ended.wait(self._every_s):
            if not self.poll():
                return
