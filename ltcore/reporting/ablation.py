"""What each term of a winner contributes, in words and in numbers, for the terminal and the report.

The words follow from the intervals over paired seeds alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ltcore.config.records import SweepRecord
from ltcore.config.retrained import AblationRecord, Comparison
from ltcore.evaluation.catalog import minimized, title_of
from ltcore.evaluation.paired import PairedDifference, points, sentence
from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting.compared import difference_kind, interval_text
from ltcore.reporting.format import mean_sd, value_text
from ltcore.reporting.records import primary, test_metric
from ltcore.text import counted


@dataclass(frozen=True)
class AblationRow:
    """A configuration of an ablation and its tests."""

    name: str
    title: str
    tests: tuple[tuple[str, str, Sequence[float]], ...]
    """(split, metric, value for each seed) of every test that has them."""
    over_baseline: PairedDifference | None
    """In the first test; None of the baseline itself."""


def ablation_rows(sweep: SweepRecord) -> list[AblationRow]:
    """Returns baseline, winner, each term alone and its controls; [] without an ablation."""
    compared = sweep.comparison or {}
    if not sweep.ablation or primary(sweep) is None:
        return []
    rows = [_row("baseline", "baseline", sweep, compared, of_baseline=True)]
    rows.append(_row("winner", "winner (all its terms)", sweep, compared))
    return rows + [
        _row(name_of(entry), title_of_row(sweep, entry), sweep, entry.over_baseline) for entry in sweep.ablation
    ]


def _row(name: str, title: str, sweep: SweepRecord, compared: Comparison, *, of_baseline: bool = False) -> AblationRow:
    cells = {split: _cell(sweep, compared, split) for split in ordered_splits(compared)}
    tests = tuple(
        (split, metric, cell.baseline if of_baseline else cell.winner)
        for split, (metric, cell) in ((split, found) for split, found in cells.items() if found is not None)
    )
    first = next((found[1] for found in cells.values() if found is not None), None)
    return AblationRow(name, title, tests, None if of_baseline else first)


def _cell(sweep: SweepRecord, compared: Comparison, split: str) -> tuple[str, PairedDifference] | None:
    cells = compared.get(split, {})
    metric = test_metric(sweep, cells)
    return None if metric is None else (metric, cells[metric])


def name_of(entry: AblationRecord) -> str:
    """Returns the name of the directories of a row's runs: 'lpa', 'lpa-neighbor_mass0'."""
    return entry.run_dirs[0].rpartition("/")[2].rpartition("-seed")[0]


def title_of_row(sweep: SweepRecord, entry: AblationRecord) -> str:
    """Returns what a row is for readers: 'LPA alone (weight=0.5)', 'LPA with neighbor_mass=0'."""
    if entry.control:
        return f"{entry.term.upper()} with {entry.control}"
    setting = _setting(sweep, entry.term, entry.changes)
    return f"{entry.term.upper()} alone" + (f" ({setting})" if setting else "")


def _setting(sweep: SweepRecord, term: str, values: Mapping[str, Any]) -> str:
    """Writes the options of a term that the sweep varies; '' where there is none."""
    own = f"objective.terms.{term}."
    options = [key for key in sweep.space if key.startswith(own) and key in values]
    return ", ".join(f"{key.removeprefix(own)}={value_text(values[key])}" for key in options)


def ablation_table(sweep: SweepRecord) -> list[dict[str, str]]:
    """Returns the rows as text: mean and deviation of each test in percent, and the points to the baseline in the first."""
    rows = ablation_rows(sweep)
    texts = []
    for row in rows:
        shown = {"": row.title}
        for split, _, values in row.tests:
            shown[protocol_of(split, sweep.train_split)[0]] = mean_sd(values).removesuffix("%")
        cell = row.over_baseline
        shown[f"{_first(sweep)} over baseline"] = (
            "" if cell is None else f"{points(cell.difference)} ({interval_text(cell)})"
        )
        texts.append(shown)
    return texts


def _first(sweep: SweepRecord) -> str:
    found = primary(sweep)
    assert found is not None, "there are rows"
    return protocol_of(found[0], sweep.train_split)[0]


def ablation_lines(sweep: SweepRecord) -> list[str]:
    """Returns sentences for each term alone, and one for each of its controls; [] without an ablation."""
    found = primary(sweep)
    if found is None:
        return []
    split, metric, _ = found
    lines = []
    for entry in sweep.ablation or ():
        over, control = entry.over_baseline.get(split, {}), (entry.term_over_control or {}).get(split, {})
        if not entry.control and metric in over:
            said = sentence(over[metric], minimize=minimized(metric))
            lines.append(f"{title_of_row(sweep, entry)}, {title_of(metric)} in {_first(sweep)}: {said}.")
            if entry.settings:
                lines.append(_of_setting(sweep, entry, len(entry.settings)))
        elif metric in control:
            lines.append(_of_control(entry, metric, control[metric], _first(sweep)))
    return lines


def _of_setting(sweep: SweepRecord, entry: AblationRecord, num_settings: int) -> str:
    """Says how the setting that a term has alone was chosen, and whether the winner has another."""
    winner = sweep.trial(sweep.winner)
    alone, beside = (_setting(sweep, entry.term, of) for of in (entry.changes, winner.params if winner else {}))
    return (
        f"{entry.term.upper()}'s setting alone is the best of {num_settings} that trials had, by "
        f"{title_of(sweep.metric)} with the search's seed; in the winner it is {'the same' if alone == beside else beside}."
    )


def _of_control(entry: AblationRecord, metric: str, cell: PairedDifference, test: str) -> str:
    """Says what a term has over its control, the term without what it claims to add."""
    what = f"{entry.term.upper()}'s {entry.without}"
    numbers = (
        f"without them ({entry.control}) {100 * fmean(cell.baseline):.1f}%, with them {100 * fmean(cell.winner):.1f}% "
        f"in {test}: difference {points(cell.difference)} points"
    )
    if cell.low is None:
        return f"{what}: {numbers}, from one seed, which tells nothing of chance."
    words = {"same": "make no difference that can be told from chance", "better": "help", "worse": "do harm"}
    numbers += f" (95% CI {interval_text(cell)}, {counted(cell.num_seeds, 'seed')})"
    return f"{what} {words[difference_kind(metric, cell)]}: {numbers}."


def ablation_cells(sweep: SweepRecord) -> list[dict[str, Any]]:
    """Returns the rows for the report, with exact values beside their texts."""
    found = primary(sweep)
    metric = "" if found is None else found[1]
    rows = []
    for row in ablation_rows(sweep):
        cell = row.over_baseline
        rows.append(
            {
                "name": row.name,
                "title": row.title,
                "tests": [
                    {
                        "metric": f"{split}/{measured}",
                        "title": f"{protocol_of(split, sweep.train_split)[0]} {title_of(measured)}",
                        "mean": fmean(values),
                        "text": mean_sd(values),
                    }
                    for split, measured, values in row.tests
                ],
                "difference": cell,
                "points": "" if cell is None else points(cell.difference),
                "interval": "" if cell is None else interval_text(cell),
                "kind": "" if cell is None else difference_kind(metric, cell),
            }
        )
    return rows
