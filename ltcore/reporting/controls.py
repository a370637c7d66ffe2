"""Pairs of variants that tell what a part of a method is worth: with and without a term, and a term beside its controls.

A gain over the base may come from anything that came with a term. Its controls keep all of that but the part that gives the
method its name (``objective.controls``), so a term that does no better than its control owes its gain to something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltcore.config.records import SweepRecord, VariantRecord
from ltcore.config.sweep import STARTS
from ltcore.evaluation.paired import PairedDifference, paired_difference, points
from ltcore.objective.controls import CONTROLS
from ltcore.reporting.compared import difference_kind, interval_text

_TERMS = "objective.terms."


@dataclass(frozen=True)
class Pair:
    """Two variants that differ in one part of one term."""

    term: str
    variant: str
    other: str
    without: str
    """What of the term ``other`` lacks as its control; '' where it lacks the whole term."""
    difference: PairedDifference
    """Of ``variant`` to ``other``."""
    kind: str
    """'better', 'worse', or 'same' where the interval contains 0."""


def pairs(sweep: SweepRecord, split: str, metric: str) -> list[Pair]:
    """Returns the pairs of a comparison, in the order of its variants, by one metric of one test split."""
    tested = [variant for variant in sweep.variants if _values(variant, split, metric)]
    changes = {variant.name: _all_changes(variant, sweep) for variant in sweep.variants}
    found = []
    for variant in tested:
        for other in tested:
            for term, without in _parts(changes[variant.name], changes[other.name]):
                difference = paired_difference(_values(variant, split, metric), _values(other, split, metric))
                kind = difference_kind(metric, difference)
                found.append(Pair(term, variant.name, other.name, without, difference, kind))
    return found


def _values(variant: VariantRecord, split: str, metric: str) -> list[float]:
    """Returns one value per seed; [] where any is missing."""
    values = (variant.test or {}).get(split, {}).get(metric, ())
    return [] if None in values else [value for value in values if value is not None]


def _all_changes(variant: VariantRecord, sweep: SweepRecord) -> dict[str, Any]:
    """Returns the changes of a variant and of those that it starts from; a term that it switches on again is on."""
    by_name = {v.name: v for v in sweep.variants}
    parents = [by_name[name] for key in STARTS if (name := variant.changes.get(key)) in by_name]
    own = {key: value for key, value in variant.changes.items() if key not in STARTS}
    above = _all_changes(parents[0], sweep) if parents else {}
    kept = {key: value for key, value in above.items() if not any(mine.startswith(f"{key}.") for mine in own)}
    return {**kept, **own}


def _parts(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (term, what the other lacks of it) for every single part in which one variant goes beyond another one."""
    missing = object()
    for term, controls in CONTROLS.items():
        own = {key for key in (*ours, *theirs) if f"{key}.".startswith(f"{_TERMS}{term}.")}
        lacks = theirs.get(f"{_TERMS}{term}", missing) is None
        if lacks and f"{_TERMS}{term}" not in ours and _without(ours, own) == _without(theirs, own):
            yield term, ""
        for control in controls:
            keys = {f"{_TERMS}{term}.{key}": value for key, value in control.changes.items()}
            is_control = all(theirs.get(key, missing) == value for key, value in keys.items())
            is_same = all(ours.get(key, missing) == value for key, value in keys.items())
            if is_control and not is_same and _without(ours, set(keys)) == _without(theirs, set(keys)):
                yield term, control.without


def _without(changes: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if key not in keys}


def pair_lines(found: Sequence[Pair], what: str) -> list[str]:
    """Returns what the pairs show: a sentence for each term, then one for each control.

    ``what`` names split and metric. Pairs of one seed show nothing.
    """
    told = [pair for pair in found if pair.difference.low is not None]
    lines = []
    for term in dict.fromkeys(pair.term for pair in told):
        kinds: dict[str, list[str]] = {}
        for pair in told:
            if pair.term == term and not pair.without:
                text = f"{pair.variant} than {pair.other} ({points(pair.difference.difference)})"
                kinds.setdefault(pair.kind, []).append(text)
        if kinds:
            told_as = {"better": "better", "same": "no clear difference", "worse": "worse"}
            parts = (f"{words}: {', '.join(kinds[kind])}" for kind, words in told_as.items() if kind in kinds)
            lines.append(f"With {term}, in {what}: {'; '.join(parts)}.")
    return lines + [_beside_control(pair, what) for pair in told if pair.without]


def _beside_control(pair: Pair, what: str) -> str:
    amount = f"({points(pair.difference.difference)}, {interval_text(pair.difference)})"
    if pair.kind == "better":
        return (
            f"{pair.variant} is better than its control {pair.other}, which lacks {pair.without}, in {what} {amount}."
        )
    says = "worse than" if pair.kind == "worse" else "not distinguishable from"
    return (
        f"{pair.variant} is {says} its control {pair.other}, which lacks {pair.without}, in {what} {amount}: what it gains over "
        "its base is not shown to come from that part."
    )
