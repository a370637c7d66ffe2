"""What an ablation trains: each term of the winner alone, and its controls. The terms name these in their registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ltcore.config.overrides import as_text
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.errors import ConfigError
from ltcore.objective.controls import Control
from ltcore.objective.registry import TERMS


def terms_off() -> dict[str, None]:
    """Returns the changes that make the baseline; terms of plugins are among them."""
    return {f"objective.terms.{name}": None for name in TERMS}


@dataclass(frozen=True)
class Ablated:
    """A configuration of an ablation."""

    term: str
    changes: Mapping[str, Any]
    """Dotted keys in which it differs from the recipe."""
    control: str = ""
    """The options that make it a control of the term, as text; '' of the term itself."""
    without: str = ""
    """What the control leaves out."""

    @property
    def name(self) -> str:
        """Returns its name in paths: 'lpa', 'lpa-neighbor_mass0'."""
        return f"{self.term}-{self.control.replace('=', '').replace(', ', '-')}" if self.control else self.term


def ablated(base: RunConfig, winner: Mapping[str, Any]) -> Iterator[Ablated]:
    """Yields each term that acts in the winner, alone at the winner's values, and after it its controls.

    A control that is the term itself is left out, and so is one without any effect: that is the baseline.
    """
    for term, options in base.replace(winner).objective.active_terms().items():
        own = f"objective.terms.{term}"
        others = [key for key in terms_off() if key != own]
        kept = {key: value for key, value in winner.items() if not key.startswith(tuple(f"{key}." for key in others))}
        alone = {**kept, **dict.fromkeys(others)}
        yield Ablated(term, alone)
        for control in TERMS[term].controls:
            changes = {**alone, **{f"{own}.{key}": value for key, value in control.changes.items()}}
            if not _is_term_itself(control, options) and base.replace(changes).objective.active_terms():
                text = ", ".join(f"{key}={_short(value)}" for key, value in control.changes.items())
                yield Ablated(term, changes, text, control.without)


def _is_term_itself(control: Control, options: Any) -> bool:
    same = all(getattr(options, key) == value for key, value in control.changes.items())
    return same or any(getattr(options, key) in values for key, values in control.moot.items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else as_text(value)


def has_retrains(sweep: SweepConfig) -> bool:
    """Tells whether winner and baseline are trained again after the search."""
    return sweep.retrain_seeds > 0 and sweep.search not in ("pbt", "variants")


def has_ablation(sweep: SweepConfig) -> bool:
    """Tells whether the terms of the winner are trained alone."""
    return sweep.ablation and has_retrains(sweep)


def ablated_runs(sweep: SweepConfig, base: RunConfig) -> Iterator[RunConfig]:
    """Yields runs as an ablation trains them, for the recipe's own values and for every end and choice of the space.

    There are none without an ablation. Raises ConfigError where a term does not go with the recipe alone.
    """
    if not has_ablation(sweep):
        return
    winners = [{}, *({key: value} for key, spec in sweep.space.items() for value in spec.probes())]
    rows = {frozenset(row.changes.items()): row for winner in winners for row in ablated(base, winner)}
    for row in rows.values():
        try:
            yield base.replace(row.changes)
        except ConfigError as error:
            raise ConfigError(f"sweep.ablation=true trains {row.name} alone: {error}") from None
