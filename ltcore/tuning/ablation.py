"""What an ablation trains: each term of the winner alone at its best setting, and its controls.

The terms name their controls in their registry. A setting of a term is what the sweep's space varies of it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ltcore.config.overrides import as_text
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.errors import ConfigError
from ltcore.objective.controls import Control
from ltcore.objective.registry import TERMS

MAX_SETTINGS = 4
"""Settings among which that of a term alone is chosen."""


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


def ablated(
    base: RunConfig, winner: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]] = {}
) -> Iterator[Ablated]:
    """Yields each term that acts in the winner, alone, and after it its controls.

    ``settings`` has terms with their setting; the others, and all other keys, have the winner's values. A control that is the
    term itself is left out, and so is one without any effect: that is the baseline. Raises ConfigError where a term does not go
    with the recipe alone.
    """
    for term in base.replace(winner).objective.active_terms():
        alone = term_alone(winner, term, settings.get(term, {}))
        options = _replaced(base, alone, term).objective.active_terms()[term]
        yield Ablated(term, alone)
        for control in TERMS[term].controls:
            changes = {**alone, **{f"{_key(term)}.{key}": value for key, value in control.changes.items()}}
            text = ", ".join(f"{key}={_short(value)}" for key, value in control.changes.items())
            row = Ablated(term, changes, text, control.without)
            if not _is_term_itself(control, options) and _replaced(base, changes, row.name).objective.active_terms():
                yield row


def _replaced(base: RunConfig, changes: Mapping[str, Any], name: str) -> RunConfig:
    try:
        return base.replace(changes)
    except ConfigError as error:
        raise ConfigError(f"sweep.ablation=true trains {name} alone: {error}") from None


def term_alone(winner: Mapping[str, Any], term: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes that make the term alone with this setting; all other keys have the winner's values."""
    others = [key for key in terms_off() if key != _key(term)]
    kept = {key: value for key, value in winner.items() if not key.startswith(tuple(f"{key}." for key in others))}
    return {**kept, **setting, **dict.fromkeys(others)}


def setting_of(params: Mapping[str, Any], term: str) -> dict[str, Any]:
    """Returns those of the parameters of a trial that are the term's own."""
    return {key: value for key, value in params.items() if f"{key}.".startswith(f"{_key(term)}.")}


def candidates(
    base: RunConfig, winner: Mapping[str, Any], term: str, trials: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Returns the settings that the term alone may have, each under the first trial with it.

    They are the distinct ones of ``trials``, in this order, as many as ``MAX_SETTINGS``. A setting with which the term does
    not act, or with which it is a control of itself that it need not be, is none.
    """
    found: dict[str, dict[str, Any]] = {}
    num_moot: dict[str, int] = {}
    for trial, params in trials.items():
        setting = setting_of(params, term)
        if setting in found.values():
            continue
        with contextlib.suppress(ConfigError):  # it may not go with what else the winner has
            if options := base.replace(term_alone(winner, term, setting)).objective.active_terms().get(term):
                found[trial] = setting
                num_moot[trial] = sum(_is_term_itself(control, options) for control in TERMS[term].controls)
    least = min(num_moot.values(), default=0)
    fitting = (trial for trial in found if num_moot[trial] == least)
    return {trial: found[trial] for trial in itertools.islice(fitting, MAX_SETTINGS)}


def _key(term: str) -> str:
    return f"objective.terms.{term}"


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
    yield from (base.replace(row.changes) for row in rows.values())
