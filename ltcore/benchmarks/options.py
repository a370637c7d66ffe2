"""Options of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass

BENCHES = ("ladder", "sweep", "memory", "large", "losses", "glt", "scale", "gpu")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of ``bench.py``."""

    what: str = "ladder"
    """One of ``BENCHES``, or 'all'."""
    data: str | None = None
    """Images to measure with; None for generated ones."""
    rounds: int = 5
    """Measured rounds of every side."""
    trials: bool = False
    """Whether ``scale`` also starts trials in a real Ray."""
    only: str = ""
    """Part of the names of what ``gpu`` measures, such as 'resnet32 32 px bf16'; '' for all."""
    quick: bool = False
    """Use small sizes and one round: shows that everything runs, but not how fast."""
    output: str = "bench.json"
    """File for all measurements."""

    @property
    def turns(self) -> int:
        """Returns the measured rounds of every side."""
        return 1 if self.quick else self.rounds
