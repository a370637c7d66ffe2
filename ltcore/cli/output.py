"""Where a command says what it does, and whether it shows what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ltcore.cli.entry import say
from ltcore.config.records import RunRecord, SweepRecord
from ltcore.reporting.terminal import Terminal


@dataclass(frozen=True)
class Output:
    """What a command line prints; a caller in Python gives another one."""

    say: Callable[[str], None] = say
    """Takes remarks, apart from results."""
    terminal: Callable[[], Terminal] = Terminal
    """Makes the terminal that progress goes to."""
    shows_results: bool = True

    def show_run(self, record: RunRecord, uri: str) -> None:
        """Shows the numbers of a finished run."""
        if self.shows_results:
            from ltcore.cli import console

            console.show_run(record, uri)

    def show_sweep(self, record: SweepRecord, uri: str, *, age: bool) -> None:
        """Shows what a finished sweep came to."""
        if self.shows_results:
            from ltcore.cli import console

            console.show_result(record, uri, age=age)


COMMAND_LINE = Output()
