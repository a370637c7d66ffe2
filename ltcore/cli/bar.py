"""How far a command is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from ltcore.cli.entry import say
from ltcore.reporting.terminal import Terminal

LINE_S = 10.0
"""Between lines of progress where there is no terminal."""


@contextlib.contextmanager
def progress(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many images are done; the function that it yields is told each time how many more are."""
    terminal = Terminal(stderr=True)
    if not terminal.is_terminal:
        yield _Lines(doing, total).advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


class _Lines:
    """Says every ``LINE_S`` how many images are done."""

    def __init__(self, doing: str, total: int) -> None:
        self._doing, self._total, self._done, self._said = doing, total, 0, time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said > LINE_S:
            self._said = time.monotonic()
            say(f"{self._doing}: {self._done:,} of {self._total:,} images")
