"""A thread that looks at something every few seconds, beside the Ray driver that started it."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

_LOG = logging.getLogger("ltcore.runtime")


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
        """Polls until the end; runs in the thread. A look that fails is repeated: nobody else would take the watch over."""
        logged = set[type]()
        while not self._ended.wait(self._every_s):
            try:
                if not self.poll():
                    return
            except Exception as error:
                if type(error) not in logged:
                    logged.add(type(error))
                    _LOG.warning("%s: a look failed (%s: %s) and is repeated", self.name, type(error).__name__, error)
