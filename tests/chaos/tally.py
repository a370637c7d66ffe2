"""How a draw of faults keeps its time: one fault has a bound, all have one together, and a failure says what was survived."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FAULT_S = 1200.0
"""What one fault may take, from the wait for its moment to the end of the command that it ends. Measured: a minute."""
START_S, EACH_S = 1800.0, 180.0
"""What a draw may take if nobody says otherwise: once, for the undisturbed works, and for each fault."""


class TooLongError(AssertionError):
    """Something takes longer than its bound."""


def hours_for(faults: int) -> float:
    """Returns the most hours of a draw of so many faults."""
    return (START_S + EACH_S * faults) / 3600


@dataclass
class Tally:
    """What a draw has survived, and what it does now."""

    faults: int
    hours: float
    """Bound of the whole draw."""
    fault_s: float = FAULT_S
    """Bound of one fault."""
    survived: Counter[str] = field(default_factory=Counter)
    """Faults by kind, of computations that came to what they had to."""
    struck: Counter[str] = field(default_factory=Counter)
    """Faults by kind, of the computation that runs."""
    number: int = 0
    """Of the computation that runs."""
    work: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def missing(self) -> int:
        """Returns how many faults are still to strike."""
        return self.faults - self.survived.total() - self.struck.total()

    def begin(self, work: str) -> None:
        """Notes that a computation begins."""
        self.number, self.work = self.number + 1, work

    def end(self) -> None:
        """Notes that the computation came to what it had to."""
        self.survived += self.struck
        self.struck.clear()

    @contextlib.contextmanager
    def within(self, what: str) -> Iterator[None]:
        """Ends the block with TooLongError at the bound of one fault, or of all, wherever it waits."""
        left_s = self.hours * 3600 - (time.monotonic() - self.began)
        if left_s < self.fault_s:
            bound = f"{what}: the {self.hours:.3g} hours for all faults are over (LTCORE_FAULTS_HOURS)"
        else:
            bound = f"{what}: not over after {self.fault_s:g} s, the bound of one fault"
        with alarm(max(min(left_s, self.fault_s), 1e-3), bound):
            yield

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Adds to whatever ends the block early what was survived until then, and where it was."""
        try:
            yield
        except BaseException as error:
            error.add_note(str(self))
            raise

    def __str__(self) -> str:
        minutes = (time.monotonic() - self.began) / 60
        return (
            f"{self.survived.total()} of {self.faults} faults survived in {minutes:.0f} min: {dict(self.survived)}; "
            f"computation {self.number} ({self.work}) was struck by {dict(self.struck)}"
        )


@contextlib.contextmanager
def alarm(seconds: float, message: str) -> Iterator[None]:
    """Raises TooLongError in the middle of the block once so much time has passed; an alarm around it waits meanwhile."""

    def ring(*_: Any) -> None:
        raise TooLongError(message)

    handler = signal.signal(signal.SIGALRM, ring)
    around_s = signal.setitimer(signal.ITIMER_REAL, seconds)[0]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, around_s)
