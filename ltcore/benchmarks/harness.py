"""Interleaved measurements and their comparison with targets, independent of what is measured."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ltcore.errors import LtcoreError

NO_AIM = "no aim"
MET = "met"


@dataclass(frozen=True)
class Measurement:
    """One round of one side."""

    side: str
    round: int
    value: float
    """In the unit of its section."""
    seconds: float | None = None
    """Duration of the round; None where neither a time nor a rate is measured."""
    amount: float | None = None
    """Work done in that time: images, calls."""


@dataclass(frozen=True)
class Aim:
    """The target of a rung."""

    sign: str
    """'>=', '<=' or '<'."""
    bound: float
    on: str = "ratio"
    """'ratio' to the peer, or 'median' of the rung itself."""

    def __str__(self) -> str:
        return f"{self.on if self.on != 'ratio' else ''} {self.sign} {self.bound:g}".strip()

    def verdict(self, measured: float) -> str:
        """Returns 'met', or by which part of the bound it was missed."""
        if self.sign == ">=":
            missed = 1 - measured / self.bound
            met = measured >= self.bound
        else:
            missed = measured / self.bound - 1
            met = measured <= self.bound if self.sign == "<=" else measured < self.bound
        return MET if met else f"missed by {100 * missed:.1f}%"


@dataclass(frozen=True)
class Rung:
    """A side against its peer, both measured in the same run."""

    name: str
    peer: str
    aim: Aim | None = None


@dataclass
class Section:
    """Rungs that share a unit. The ratio is always that of the medians, rung over peer."""

    title: str
    unit: str
    measurements: list[Measurement] = field(default_factory=list)
    rungs: list[Rung] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def values(self, side: str) -> list[float]:
        """Returns the measured values of a side."""
        return [m.value for m in self.measurements if m.side == side]

    def median(self, side: str) -> float:
        """Returns the median of a side."""
        return statistics.median(self.values(side))

    def ratio(self, rung: Rung) -> float:
        """Returns the ratio of the medians of a rung and its peer."""
        return self.median(rung.name) / self.median(rung.peer)

    def verdict(self, rung: Rung) -> str:
        """Returns the verdict on a rung."""
        if rung.aim is None:
            return NO_AIM
        return rung.aim.verdict(self.ratio(rung) if rung.aim.on == "ratio" else self.median(rung.name))

    def plain(self) -> dict[str, Any]:
        """Returns the section as plain JSON."""
        return {
            "title": self.title,
            "unit": self.unit,
            "notes": list(self.notes),
            "rungs": [
                {
                    "name": rung.name,
                    "measured": _spread(self.values(rung.name)),
                    "peer": rung.peer,
                    "peer_measured": _spread(self.values(rung.peer)),
                    "ratio": self.ratio(rung),
                    "wanted": str(rung.aim or ""),
                    "verdict": self.verdict(rung),
                }
                for rung in self.rungs
            ],
            "measurements": [asdict(measurement) for measurement in self.measurements],
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rate(side: str, turn: int, seconds: float, amount: float) -> Measurement:
    """Records ``amount`` per second."""
    return Measurement(side, turn, amount / seconds, seconds, amount)


def duration(side: str, turn: int, seconds: float, amount: float) -> Measurement:
    """Records the seconds per unit of ``amount``."""
    return Measurement(side, turn, seconds / amount, seconds, amount)


def milliseconds(side: str, turn: int, seconds: float, amount: float) -> Measurement:
    """Records the milliseconds per unit of ``amount``."""
    return Measurement(side, turn, 1000 * seconds / amount, seconds, amount)


Work = Callable[[], float]
"""Does one round's work and returns its amount."""


def interleave(
    sides: Mapping[str, Work],
    rounds: int,
    make: Callable[[str, int, float, float], Measurement] = rate,
) -> list[Measurement]:
    """Runs each side once unmeasured, then ``rounds`` times in turns (A B A B ...).

    Drift of the machine then affects all sides equally.
    """
    for work in sides.values():
        work()
    measured = []
    for turn in range(rounds):
        for side, work in sides.items():
            began = time.perf_counter()
            amount = work()
            measured.append(make(side, turn, time.perf_counter() - began, amount))
    return measured


def repeated(call: Callable[[], object], least_s: float) -> Work:
    """Makes rounds of as many calls as take about ``least_s`` seconds.

    A single call would be shorter than the clock's noise.
    """
    calls = 0

    def work() -> float:
        nonlocal calls
        if not calls:  # the unmeasured round determines the number
            call()
            began = time.perf_counter()
            call()
            calls = max(1, round(least_s / max(time.perf_counter() - began, 1e-9)))
            return 2
        for _ in range(calls):
            call()
        return calls

    return work


def in_new_process(module: str, *words: object, what: str) -> Any:
    """Returns what ``python -m module words`` prints, JSON in its last line.

    Raises LtcoreError, which says that ``what`` could not be measured, where the process fails.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LtcoreError(f"{what} could not be measured: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
