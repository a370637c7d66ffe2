"""What an ablation compares each term with, beside the run without any term. Reading it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Control:
    """The same term without what it claims to add: it has to be worse than the term for the claim to hold."""

    changes: Mapping[str, Any]
    """Options of the term and their values in the control."""
    without: str
    """What the control leaves out, for readers."""
    moot: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Options and those values with which the control is the term itself, though its options differ."""


CONTROLS: dict[str, tuple[Control, ...]] = {
    "lpa": (Control({"neighbor_mass": 0.0}, "pseudo-attributes", {"neighbors": (0,)}),),
    "dro": (),
    "ifl": (
        Control({"tail_ratio": 1.0}, "scores", {"num_envs": (1,), "env_type": ("correctness", "uniform")}),
        Control({"num_envs": 1}, "environments"),
    ),
}
"""The controls of every term of the registry; () of one whose control is the baseline."""
