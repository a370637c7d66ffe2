"""What a sweep says of the runs that were trained after its search, with paired seeds, and tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ltcore.config.json_record import JsonRecord
from ltcore.evaluation.paired import PairedDifference

Comparison = Mapping[str, Mapping[str, PairedDifference]]
"""Test split -> metric -> winner against baseline."""


@dataclass(frozen=True, kw_only=True)
class RetrainRecord(JsonRecord):
    """A run of the winner's or the baseline's configuration with one of the paired seeds."""

    role: Literal["winner", "baseline"]
    seed: int
    run_dir: str
    """Below the directory of the sweep."""


@dataclass(frozen=True, kw_only=True)
class BalancedRecord(JsonRecord):
    """Winner and baseline trained on classes that are balanced, which tests the attributes alone (ALT).

    Both fields are empty where the data have no such training split.
    """

    runs: tuple[RetrainRecord, ...]
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class SettingRecord(JsonRecord):
    """A term of the winner alone with one setting, trained with the seed of the search, and not tested."""

    trial: str
    """The trial that had this setting."""
    params: Mapping[str, Any]
    """The term's swept keys and their values."""
    run_dir: str
    """Below the directory of the sweep."""
    value: float
    """The sweep's metric at the end of training."""


@dataclass(frozen=True, kw_only=True)
class AblationRecord(JsonRecord):
    """A term of the winner alone, or a control of it, trained with the paired seeds."""

    term: str
    control: str = ""
    """Options that make the control, such as 'neighbor_mass=0'; '' of the term itself."""
    without: str = ""
    """What the control leaves out, for readers."""
    changes: Mapping[str, Any]
    """Dotted keys in which it differs from the recipe."""
    seeds: tuple[int, ...]
    run_dirs: tuple[str, ...]
    """One for each seed, below the directory of the sweep."""
    over_baseline: Comparison
    """This row (as ``winner``) against the baseline; holds the values of every seed."""
    term_over_control: Comparison | None = None
    """Of a control: the term alone (as ``winner``) against it (as ``baseline``)."""
    settings: tuple[SettingRecord, ...] | None = None
    """Of a term alone: the settings among which its own was chosen on validation, the best first; None where it was not
    chosen alone, of controls and in older records."""
