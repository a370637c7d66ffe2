"""What comes back from the data tasks: blocks, taken in a thread of their own, and put together to steps."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ltcore.data.loading.plan import Window

Block = dict[str, np.ndarray]
_LOOK_S = 0.2


class NothingCameError(Exception):
    """No data task ended for as long as the worker would wait."""


class Blocks:
    """The blocks of an execution. Whoever waits for the next one may give up, which Ray Data's own iterator does not allow."""

    def __init__(self, source: Iterator[Block]) -> None:
        self._ready: queue.Queue[Block | BaseException | None] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._pull, args=(source,), name="stream-blocks", daemon=True)
        self._thread.start()

    def next(self, patience_s: float | None) -> Block | None:
        """Returns the next block, None after the last. Raises what a task raised, and NothingCameError after ``patience_s``."""
        try:
            got = self._ready.get(timeout=patience_s)
        except queue.Empty:
            raise NothingCameError from None
        if isinstance(got, BaseException):
            raise got
        return got

    def close(self) -> None:
        """Ends the execution with its next block, and waits a moment for that."""
        self._closed.set()
        self._thread.join(timeout=2.0)

    def _pull(self, source: Iterator[Block]) -> None:
        try:
            for block in source:
                if not self._offer(block):
                    return  # the iterator goes with this frame, and ends the execution
        except BaseException as error:  # raised again where the blocks are used
            self._offer(error)
        else:
            self._offer(None)

    def _offer(self, item: Block | BaseException | None) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=_LOOK_S)
                return True
        return False


class Steps:
    """Puts the parts that come from the data tasks together to windows, and yields their steps in order.

    It raises NothingCameError where it waited ``patience_s`` for a block; None waits for ever.
    """

    def __init__(
        self, windows: list[Window], blocks: Iterator[Block], rows_per_step: int, patience_s: float | None = None
    ) -> None:
        self._windows, self._rows_per_step, self._patience_s = windows, rows_per_step, patience_s
        self._blocks = Blocks(blocks)
        self._open: dict[int, Block] = {}
        self._missing: dict[int, int] = {}
        self._steps = self._cut()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._steps)

    def close(self) -> None:
        """Ends the execution."""
        self._blocks.close()

    def _cut(self) -> Iterator[dict[str, Any]]:
        for number, window in enumerate(self._windows):
            while self._missing.get(number, -1):
                block = self._blocks.next(self._patience_s)
                assert block is not None, "each part of each window comes once"
                self._take(block)
            del self._missing[number]
            columns = {"index": window.rows.index_B, "copy": window.rows.copy_B, **self._open.pop(number)}
            for first in range(0, len(window.rows), self._rows_per_step):
                yield {name: column[first : first + self._rows_per_step] for name, column in columns.items()}

    def _take(self, block: Block) -> None:
        """Copies the rows of one block, which lie in pages that are read-only and shared, to their places."""
        number, place = int(block["window"][0]), block["place"]
        total = len(self._windows[number].rows)
        columns = self._open.setdefault(number, {})
        for name in sorted(block.keys() - {"window", "place"}):
            values = block[name]
            if name not in columns:
                columns[name] = np.empty((total, *values.shape[1:]), object if name == "bad" else values.dtype)
            columns[name][place] = values
        self._missing[number] = self._missing.get(number, total) - len(place)
