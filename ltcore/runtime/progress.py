"""What a person sees while Ray computes runs: one block that is redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table

from ltcore.evaluation.catalog import VALIDATION, goodness, title_of
from ltcore.reporting.format import percent
from ltcore.reporting.live import NotebookBlock, can_redraw, live_block
from ltcore.reporting.terminal import Terminal, styled


class ProgressDisplay:
    """Stages, running trials, best value, throughput, time left. Thread-safe enough: one writer thread per field."""

    def __init__(self, console: Terminal | None = None, metric: str = VALIDATION + "balanced_accuracy") -> None:
        """Shows ``metric`` of the runs, and the best value of it."""
        self.console, self.metric = console or Terminal(), metric
        self.stages: dict[str, float] = {}
        self._stage = ""
        self._stage_began = self._began = time.monotonic()
        self._runs: dict[str, dict[str, Any]] = {}
        self._before: set[str] = set()
        """Runs of earlier stages, which the workers' actor still remembers."""
        self._ended: set[str] = set()
        self._at_first: dict[str, int] = {}
        """Images that each run had seen when it was first heard of in this stage: it may have been begun by another command."""
        self._resting: dict[str, dict[str, Any]] = {}
        """Runs that wait to be continued, and what was heard of them last."""
        self._expected = 0
        self._live: Live | NotebookBlock | None = None
        self._last_line = 0.0

    @contextmanager
    def stage(self, name: str, expected: int = 0) -> Iterator[None]:
        """Times a stage and shows it; ``expected`` is the number of runs that will report in it."""
        self._stage, self._stage_began, self._expected = name, time.monotonic(), expected
        self._before |= set(self._runs)
        self._runs, self._ended, self._at_first = {}, set(), {}
        self.say((name, "bold"))
        try:
            if expected and can_redraw(self.console):
                self._live = live_block(self.console, self._render)
                with self._live:
                    yield
            else:
                yield
        finally:
            self._live = None
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - self._stage_began

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Prints a message, made of strings and of pairs (string, style)."""
        elapsed = time.monotonic() - self._began
        line = styled((f"{elapsed:6.1f} s", "dim"), "  ", *parts)
        self.console.progress(line, soft_wrap=not self.console.is_terminal)

    def update(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Takes the latest state of all runs.

        Prints a line now and then where there is no terminal.
        """
        self._runs = {run: state for run, state in snapshot.items() if run not in self._before}
        for run, state in self._runs.items():
            if "images_seen" in state:
                self._at_first.setdefault(run, state["images_seen"])
        if isinstance(self._live, NotebookBlock):
            self._live.refresh()
        elif self._live is None and time.monotonic() - self._last_line > 10 and self._expected:
            self._last_line = time.monotonic()
            self.say(self._headline())

    def ended(self, run: str, *parts: str | tuple[str, str]) -> None:
        """Notes that a run ended; it is no longer shown as running.

        ``parts`` tell how it ended, if there is more to say.
        """
        self._ended.add(run)
        if parts:
            self.say(*parts)

    def rest(self, run: str) -> None:
        """Takes a run as idle until it reports again."""
        self._resting[run] = self._runs.get(run, {})

    def _moves(self, run: str, state: dict[str, Any]) -> bool:
        return run not in self._ended and not _at_end(state) and self._resting.get(run) != state

    def _headline(self) -> str:
        running = [state for run, state in self._runs.items() if self._moves(run, state)]
        rate = sum(state.get("images_per_s", 0.0) for state in running)
        found = [state.get(self.metric) for state in self._runs.values()]
        values = [value for value in found if value is not None]
        value = max(values, key=lambda value: goodness(self.metric, value), default=None)
        best = "" if value is None else f", best {title_of(self.metric)} so far {percent(value)}"
        left = self._time_left()
        return (
            f"{self._stage}: {len(self._ended)} of {self._expected} done, {len(running)} running, "
            f"{rate:,.0f} images/s{best}" + (f", at most {left:.0f} s left" if left is not None else "")
        )

    def _time_left(self) -> float | None:
        """Estimates the time left from the elapsed time and the images still to come.

        It is an upper bound, since trials may be stopped early.
        """
        totals = [state["total_images"] for state in self._runs.values() if state.get("total_images")]
        if not totals:
            return None
        whole = self._expected * max(totals)
        done = sum(
            max(totals) if run in self._ended else state.get("images_seen", 0) for run, state in self._runs.items()
        )
        # what ended without a word of its images had been trained before
        before = sum(self._at_first.get(run, max(totals) if run in self._ended else 0) for run in self._runs)
        elapsed, seen_here = time.monotonic() - self._stage_began, done - before
        return None if seen_here <= 0 else elapsed * max(whole - done, 0) / seen_here

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("run", "epoch", "seen", title_of(self.metric), "images/s"):
            table.add_column(name, justify="left" if name == "run" else "right")
        for run, state in self._runs.items():
            if self._moves(run, state):
                share = state.get("images_seen", 0) / max(state.get("total_images", 0), 1)
                value = state.get(self.metric)
                table.add_row(
                    run,
                    str(state.get("epoch", 0)),
                    f"{100 * min(share, 1):.0f}%",
                    percent(value),
                    f"{state.get('images_per_s', 0):,.0f}",
                )
        return Group(self._headline(), table)


def _at_end(state: dict[str, Any]) -> bool:
    """Tells whether a run has seen all its images: what is left takes seconds."""
    return 0 < state.get("total_images", 0) <= state.get("images_seen", 0)
