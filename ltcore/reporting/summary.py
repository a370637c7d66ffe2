"""A sweep in sentences and as a ranked table, for the terminal and the report, from a parsed ``sweep.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltcore.evaluation.paired import PairedDifference, sentence
from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting.format import mean_sd, metric_name, parse_range, percent, range_text, short_names, value_text
from ltcore.reporting.records import difference_of, primary

Sweep = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The main result of a sweep in one sentence."""

    text: str
    kind: str
    """'better', 'worse', 'mixed' (better in one test, worse in another), 'same' (not distinguishable) or 'open'
    (nothing to compare).
    """
    details: tuple[str, ...] = ()
    """One sentence per test, with its interval."""


def trial_of(sweep: Sweep, trial_id: str | None) -> Mapping[str, Any] | None:
    """Returns the trial with this id, or None."""
    return next((t for t in sweep.get("trials", ()) if t["id"] == trial_id), None)


def searched(sweep: Sweep) -> list[Mapping[str, Any]]:
    """Returns the trials of the search: all except the baseline, which runs outside it."""
    return [t for t in sweep.get("trials", ()) if t["id"] != sweep.get("baseline")]


def verdict(sweep: Sweep) -> Verdict:
    """Returns the verdict on the winner against the baseline."""
    finished = [t for t in searched(sweep) if t["status"] == "finished"]
    if not finished:
        return Verdict(f"No trial has reached the end yet ({count_text(sweep)}).", "open")
    if sweep.get("winner") is None:
        return Verdict(f"The search is not over: {count_text(sweep)}.", "open")
    found = primary(sweep)
    if found is None:
        return Verdict(f"Trial {sweep['winner']} won on validation; it was not compared with the baseline.", "open")
    metric = found[1]
    deltas = {
        split: difference_of(sweep["comparison"][split][metric])
        for split in ordered_splits(sweep["comparison"])
        if metric in sweep["comparison"][split]
    }
    kinds = {split: difference_kind(delta) for split, delta in deltas.items()}
    differing = sorted({kind for kind in kinds.values() if kind != "same"})
    return Verdict(
        f"In {metric_name(metric)} the winner is {_all_tests(sweep, deltas, kinds)}.",
        "same" if not differing else differing[0] if len(differing) == 1 else "mixed",
        tuple(f"{_test_text(split, sweep)}: {sentence(delta)}." for split, delta in deltas.items()),
    )


def difference_kind(delta: PairedDifference) -> str:
    """Returns 'better', 'worse', or 'same' where the interval contains 0."""
    return "same" if not delta.distinguishable else "better" if delta.difference > 0 else "worse"


def _all_tests(sweep: Sweep, deltas: Mapping[str, PairedDifference], kinds: Mapping[str, str]) -> str:
    """Describes in which tests the two differ, by how much, and in which they do not."""
    clauses = [
        f"{100 * abs(deltas[split].difference):.1f} points {kind} than the baseline in {_test_name(split, sweep)}"
        for split, kind in kinds.items()
        if kind != "same"
    ]
    same = [_test_name(split, sweep) for split, kind in kinds.items() if kind == "same"]
    if same:
        clauses.append(f"not distinguishable from the baseline in {' and '.join(same)}")
    return (", but " if len(set(kinds.values())) > 1 else " and ").join(clauses)


def _test_name(split: str, sweep: Sweep) -> str:
    name, meaning = protocol_of(split, sweep)
    return meaning if name == "test" else name


def _test_text(split: str, sweep: Sweep) -> str:
    name, meaning = protocol_of(split, sweep)
    return meaning.capitalize() if name == "test" else f"{name} ({meaning})" if meaning else name


def count_text(sweep: Sweep) -> str:
    """Counts the trials by status: '8 trials: 5 finished, 3 stopped early'."""
    words = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "running": "running"}
    trials = searched(sweep)
    counts = {word: sum(t["status"] == status for t in trials) for status, word in words.items()}
    parts = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"{len(trials)} trial{'s' * (len(trials) != 1)}" + (f": {parts}" if parts else "")


def score(trial: Mapping[str, Any]) -> float | None:
    """Returns the value a trial is ranked by: the validation metric at the end of training, else its best."""
    value = trial.get("last", trial.get("best"))
    return None if value is None else float(value)


def ranked(sweep: Sweep) -> list[tuple[int | None, Mapping[str, Any]]]:
    """Returns (rank, trial): finished ones by score, then stopped, running and failed ones without a rank."""
    order = ("finished", "stopped", "running", "failed")

    def place(trial: Mapping[str, Any]) -> tuple[int, bool, float]:
        value = score(trial)
        return order.index(trial["status"]), trial["id"] != sweep.get("winner"), math.inf if value is None else -value

    trials = sorted(searched(sweep), key=place)
    finished = sum(t["status"] == "finished" for t in trials)
    return [(i + 1 if i < finished else None, trial) for i, trial in enumerate(trials)]


def ranked_table(sweep: Sweep) -> list[dict[str, Any]]:
    """Returns one flat row per trial for a terminal: rank, trial, swept keys by short name, metric, epochs, status."""
    rows = []
    for rank, trial in ranked(sweep):
        names = short_names(trial["params"])
        rows.append(
            {
                "rank": rank,
                "trial": trial["id"],
                **{names[key]: value for key, value in trial["params"].items()},
                sweep.get("metric", "metric"): score(trial),
                "epochs": trial.get("epochs_done"),
                "status": trial["status"],
            }
        )
    return rows


def summary_lines(sweep: Sweep) -> list[str]:
    """Returns verdict, winner, tests and next steps, one sentence per line."""
    found = verdict(sweep)
    lines = [found.text, *found.details]
    winner = trial_of(sweep, sweep.get("winner"))
    if winner is not None:
        names = short_names(winner["params"])
        params = ", ".join(f"{names[key]}={value_text(value)}" for key, value in winner["params"].items())
        lines.append(f"Winner {winner['id']}: {params}; {metric_name(sweep['metric'])} {percent(score(winner))}.")
    for split in ordered_splits(sweep.get("comparison") or {}):
        cell = sweep["comparison"][split].get("top1")
        if cell is not None:
            lines.append(
                f"{protocol_of(split, sweep)[0]} ({split}) top-1: winner {mean_sd(cell['winner'])}, "
                f"baseline {mean_sd(cell['baseline'])}."
            )
    return lines + next_steps(sweep)


EDGE = 0.1
"""A winner within this fraction of the end of a range suggests a wider range."""
MAX_SEEDS = 100


def next_steps(sweep: Sweep) -> list[str]:
    """Returns what the numbers suggest to try next, possibly nothing."""
    steps = []
    winner = trial_of(sweep, sweep.get("winner"))
    params = winner["params"] if winner else {}
    for key, value in params.items():
        end = _near_end(sweep["space"][key], value)
        if end is not None:
            within = range_text(sweep["space"][key])
            steps.append(f"{key}={value_text(value)} is at the {end} end of its searched range ({within}): widen it.")
    found = primary(sweep)
    if found is not None:
        delta = difference_of(sweep["comparison"][found[0]][found[1]])
        if delta.low is None or delta.high is None:
            steps.append("Retrain with at least three paired seeds: one tells nothing about the spread.")
        elif not delta.distinguishable:
            half = (delta.high - delta.low) / 2
            need = math.ceil(delta.num_seeds * (half / delta.difference) ** 2) if delta.difference else MAX_SEEDS + 1
            seeds = f"about {need}" if need <= MAX_SEEDS else f"more than {MAX_SEEDS}"
            steps.append(
                f"The interval is ±{100 * half:.1f} points wide with {delta.num_seeds} seeds; telling a difference of "
                f"{100 * abs(delta.difference):.1f} points from 0 takes {seeds} at the same spread."
            )
    return steps


def _near_end(spec: str, value: Any) -> str | None:
    """Returns 'lower' or 'upper' where the value is near an end of a continuous range."""
    found = parse_range(spec)
    if found is None or found[0] == "int" or not isinstance(value, int | float):
        return None
    kind, low, high = found
    scale = math.log if kind == "log" else float
    at = (scale(value) - scale(low)) / (scale(high) - scale(low))
    return "lower" if at < EDGE else "upper" if at > 1 - EDGE else None
