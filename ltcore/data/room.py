"""Memory that the threads of a process share: who needs much waits until others have let go of theirs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Room:
    """Room for so many bytes, pixels or whatever else takes memory. Thread-safe.

    What is larger than all of it is let in alone. Nobody who holds a part may ask for another: two of them could wait for
    each other for ever.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, count: int) -> Iterator[None]:
        """Waits for room and holds it as long as the block lasts."""
        self.take(count)
        try:
            yield
        finally:
            self.give(count)

    def take(self, count: int, *, wait: bool = True) -> bool:
        """Takes room, and tells whether there was any, which is in question only where it does not ``wait``."""
        count = min(count, self._most)
        with self._changed:
            if not wait and self._left < count:
                return False
            self._changed.wait_for(lambda: self._left >= count)
            self._left -= count
        return True

    def give(self, count: int) -> None:
        """Gives room back."""
        with self._changed:
            self._left += min(count, self._most)
            self._changed.notify_all()
