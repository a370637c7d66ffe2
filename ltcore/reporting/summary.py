"""A sweep in words and as a ranked table; the same for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltcore.config.records import SweepRecord, TrialRecord
from ltcore.evaluation.catalog import goodness, minimized, title_of
from ltcore.evaluation.paired import sentence
from ltcore.reporting.ablation import ablation_lines
from ltcore.reporting.compared import ComparedTest, compared_tests, difference_kind
from ltcore.reporting.format import mean_sd, parse_range, percent, range_text, short_names, value_text
from ltcore.reporting.records import primary
from ltcore.text import counted


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


def searched(sweep: SweepRecord) -> list[TrialRecord]:
    """Returns the trials of the search: all but the baseline, which runs outside it."""
    return [trial for trial in sweep.trials or () if trial.id != sweep.baseline]


def verdict(sweep: SweepRecord) -> Verdict:
    if not any(trial.status == "finished" for trial in searched(sweep)):
        return Verdict(f"No trial has reached the end yet ({count_text(sweep)}).", "open")
    if sweep.winner is None:
        return Verdict(f"The search is not over: {count_text(sweep)}.", "open")
    found = primary(sweep)
    if found is None:
        return Verdict(f"Trial {sweep.winner} won on validation; it was not compared with the baseline.", "open")
    _, metric, _ = found
    tests = [test for test in compared_tests(sweep) if metric in test.cells]
    kinds = {test.name: difference_kind(metric, test.cells[metric]) for test in tests}
    differing = sorted({kind for kind in kinds.values() if kind != "same"})
    return Verdict(
        f"In {title_of(metric)} the winner is {_all_tests(tests, metric, kinds)}.",
        "same" if not differing else differing[0] if len(differing) == 1 else "mixed",
        tuple(f"{_test_text(test)}: {sentence(test.cells[metric], minimize=minimized(metric))}." for test in tests),
    )


def _all_tests(tests: Sequence[ComparedTest], metric: str, kinds: Mapping[str, str]) -> str:
    """Names every test in which the two differ, with its points, and those in which they cannot be told apart."""
    clauses = []
    for kind in dict.fromkeys(kind for kind in kinds.values() if kind != "same"):
        first, *others = [
            (f"{100 * abs(test.cells[metric].difference):.1f}", _test_name(test))
            for test in tests
            if kinds[test.name] == kind
        ]
        listed = [
            f"{first[0]} points {kind} than the baseline in {first[1]}",
            *(f"{by} in {name}" for by, name in others),
        ]
        clauses.append(_joined(listed))
    if same := [_test_name(test) for test in tests if kinds[test.name] == "same"]:
        clauses.append(f"not distinguishable from the baseline in {_joined(same)}")
    return ", but ".join(clauses)


def _joined(words: Sequence[str]) -> str:
    """Joins words as in 'a, b and c'."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _test_name(test: ComparedTest) -> str:
    return test.meaning if test.name == "test" else test.name


def _test_text(test: ComparedTest) -> str:
    if test.name == "test":
        return test.meaning.capitalize()
    return f"{test.name} ({test.meaning})" if test.meaning else test.name


def count_text(sweep: SweepRecord) -> str:
    """Returns the number of trials by status, such as '8 trials: 5 finished, 3 stopped early'."""
    words = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "running": "running"}
    trials = searched(sweep)
    counts = {word: sum(trial.status == status for trial in trials) for status, word in words.items()}
    parts = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return counted(len(trials), "trial") + (f": {parts}" if parts else "")


def ranked(sweep: SweepRecord) -> list[tuple[int | None, TrialRecord]]:
    """Returns (rank, trial) of all trials, best first.

    Trials that reached the end are ranked by their last value; stopped, running and failed ones follow without a rank.
    """
    order = ("finished", "stopped", "running", "failed")

    def place(trial: TrialRecord) -> tuple[int, bool, float]:
        return order.index(trial.status), trial.id != sweep.winner, -goodness(sweep.metric, trial.last)

    trials = sorted(searched(sweep), key=place)
    finished = sum(trial.status == "finished" for trial in trials)
    return [(i + 1 if i < finished else None, trial) for i, trial in enumerate(trials)]


def ranked_table(sweep: SweepRecord) -> list[dict[str, Any]]:
    """Returns one flat row per trial for a terminal.

    Its columns: rank, trial, the swept keys under short names, metric, epochs, status.
    """
    names = short_names(sweep.space)
    return [
        {
            "rank": rank,
            "trial": trial.id,
            **{names[key]: value for key, value in trial.params.items()},
            sweep.metric: trial.last,
            "epochs": trial.epochs_done,
            "status": trial.status,
        }
        for rank, trial in ranked(sweep)
    ]


def summary_lines(sweep: SweepRecord) -> list[str]:
    """Returns verdict, winner, tests and what to try next, one plain sentence per line."""
    found = verdict(sweep)
    lines = [found.text, *found.details]
    winner = sweep.trial(sweep.winner)
    if winner is not None:
        names = short_names(winner.params)
        params = ", ".join(f"{names[key]}={value_text(value)}" for key, value in winner.params.items())
        lines.append(f"Winner {winner.id}: {params}; {title_of(sweep.metric)} {percent(winner.last)}.")
    for test in compared_tests(sweep):
        balanced, top1 = test.cells.get("balanced_accuracy"), test.cells.get("top1")
        for metric, cell in {"balanced_accuracy": balanced, "top1": top1}.items():
            if cell is not None and (metric == "top1" or cell != top1):
                lines.append(
                    f"{test.name} ({test.split}) {title_of(metric)}: winner {mean_sd(cell.winner)}, baseline "
                    f"{mean_sd(cell.baseline)}."
                )
    return lines + ablation_lines(sweep) + next_steps(sweep)


EDGE = 0.1
"""A winner within this fraction of the end of a range suggests a wider range."""
MAX_SEEDS = 100


def next_steps(sweep: SweepRecord) -> list[str]:
    """Returns what the numbers suggest to try; empty where they suggest nothing."""
    steps = []
    if sweep.cut_from is not None and sweep.num_trials < sweep.cut_from:
        steps.append(
            f"Of {sweep.cut_from} trials the first {sweep.num_trials} were run, as many as sweep.budget_s allows on this "
            "machine: the same command with sweep.budget_s=null adds the others."
        )
    winner = sweep.trial(sweep.winner)
    for key, value in (winner.params if winner else {}).items():
        end = _near_end(sweep.space[key], value)
        if end is not None:
            within = range_text(sweep.space[key])
            steps.append(f"{key}={value_text(value)} is at the {end} end of its searched range ({within}): widen it.")
    found = primary(sweep)
    if found is not None:
        delta = found[2]
        if delta.low is None or delta.high is None:
            steps.append("Retrain with at least three paired seeds: one tells nothing about the spread.")
        elif delta.difference and not delta.distinguishable:
            half = (delta.high - delta.low) / 2
            need = math.ceil(delta.num_seeds * (half / delta.difference) ** 2)
            seeds = f"about {need}" if need <= MAX_SEEDS else f"more than {MAX_SEEDS}"
            steps.append(
                f"The interval is ±{100 * half:.1f} points wide with {counted(delta.num_seeds, 'seed')}; telling a difference of "
                f"{100 * abs(delta.difference):.1f} points from 0 takes {seeds} at the same spread."
            )
    return steps


def _near_end(spec: str, value: Any) -> str | None:
    """Returns 'lower' or 'upper' where the value is near an end of a continuous range."""
    found = parse_range(spec)
    if found is None or found[0] == "int" or not isinstance(value, int | float):
        return None
    kind, low, high = found
    if not low <= value <= high:
        return None
    scale = math.log if kind == "log" else float
    at = (scale(value) - scale(low)) / (scale(high) - scale(low))
    return "lower" if at < EDGE else "upper" if at > 1 - EDGE else None
