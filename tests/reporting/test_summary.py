"""A sweep in words and as a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ltcore.config.records import SweepRecord
from ltcore.evaluation.paired import paired_difference
from ltcore.evaluation.protocols import protocol_of
from ltcore.reporting.format import mean_sd, range_text, short_names, value_text
from ltcore.reporting.page import table_of_tests
from ltcore.reporting.records import StoredRun, primary, read_sweep
from ltcore.reporting.summary import count_text, next_steps, ranked, ranked_table, summary_lines, verdict
from tests.records import run_record, sweep_record, trial_record
from tests.reporting.fake_sweep import make_sweep


def sweep_of(*trials: tuple[str, str, float | None], **fields: Any) -> SweepRecord:
    entries = tuple(
        trial_record(i, status=status, params={"a.x": n}, last=value) for n, (i, status, value) in enumerate(trials)
    )
    return sweep_record(space={"a.x": "uniform:0,10"}, trials=entries, **fields)


def test_ranking() -> None:
    sweep = sweep_of(
        ("a", "stopped", 0.9),
        ("b", "finished", 0.5),
        ("c", "failed", None),
        ("d", "finished", 0.7),
        ("e", "finished", 0.7),
        winner="e",
    )
    rows = ranked_table(sweep)
    assert [(row["rank"], row["trial"]) for row in rows] == [(1, "e"), (2, "d"), (3, "b"), (None, "a"), (None, "c")]
    assert rows[0] == {"rank": 1, "trial": "e", "a.x": 4, "val/top1": 0.7, "epochs": 2, "status": "finished"}
    assert ranked_table(sweep_of()) == []


def test_the_baseline_is_no_trial_of_the_search() -> None:
    sweep = sweep_of(("a", "finished", 0.5), ("baseline", "finished", 0.9), winner="a", baseline="baseline")
    assert [row["trial"] for row in ranked_table(sweep)] == ["a"]
    assert count_text(sweep) == "1 trial: 1 finished"


def test_summary_of_a_whole_sweep(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    sweep = read_sweep(tmp_path).record
    lines = summary_lines(sweep)
    assert lines[0] == verdict(sweep).text
    assert lines[0].startswith("In balanced accuracy the winner is ")
    assert lines[1].startswith("GLT (tested with classes and attributes balanced): better than the baseline by ")
    assert lines[2].startswith(
        "CLT (tested with classes balanced, attributes as they come): better than the baseline by "
    )
    assert lines[3].startswith(f"Winner {sweep.winner}: lpa.weight=")
    assert lines[4].startswith("GLT (test_gbl) top-1: winner ")
    assert lines[5].startswith("CLT (test_cbl) top-1: winner ")


@pytest.mark.parametrize(
    ("sweep", "text"),
    [
        (sweep_of(), "No trial has reached the end yet (0 trials)."),
        (sweep_of(("a", "running", 0.2)), "No trial has reached the end yet (1 trial: 1 running)."),
        (sweep_of(("a", "finished", 0.2)), "The search is not over: 1 trial: 1 finished."),
        (
            sweep_of(("a", "finished", 0.2), winner="a"),
            "Trial a won on validation; it was not compared with the baseline.",
        ),
    ],
)
def test_nothing_to_compare(sweep: SweepRecord, text: str) -> None:
    assert (verdict(sweep).text, verdict(sweep).kind) == (text, "open")


def test_worse_is_said() -> None:
    comparison = {"test": {"top1": paired_difference([0.4, 0.41], [0.6, 0.61])}}
    found = verdict(sweep_of(("a", "finished", 0.2), winner="a", comparison=comparison))
    assert found.kind == "worse"
    assert found.text == "In top-1 the winner is 20.0 points worse than the baseline in the test split."
    assert found.details[0].startswith("The test split: worse than the baseline by 20.0 points (95% CI ")


GAIN, LOSS, NOTHING = ([0.485, 0.486], [0.4, 0.401]), ([0.4, 0.401], [0.485, 0.486]), ([0.5, 0.6], [0.5, 0.5])
BETTER, WORSE = "8.5 points better than the baseline in", "8.5 points worse than the baseline in"
SAME = "not distinguishable from the baseline in"


@pytest.mark.parametrize(
    ("glt", "clt", "kind", "text"),
    [
        (NOTHING, LOSS, "worse", f"{WORSE} CLT, but {SAME} GLT"),
        (NOTHING, NOTHING, "same", f"{SAME} GLT and CLT"),
        (GAIN, LOSS, "mixed", f"{BETTER} GLT, but {WORSE} CLT"),
        (LOSS, LOSS, "worse", f"{WORSE} GLT and 8.5 in CLT"),
        (GAIN, NOTHING, "better", f"{BETTER} GLT, but {SAME} CLT"),
    ],
)
def test_the_headline_names_every_protocol_and_losses_too(glt: Any, clt: Any, kind: str, text: str) -> None:
    comparison = {"test_cbl": {"top1": paired_difference(*clt)}, "test_gbl": {"top1": paired_difference(*glt)}}
    found = verdict(sweep_of(("a", "finished", 0.2), winner="a", comparison=comparison))
    assert (found.kind, found.text) == (kind, f"In top-1 the winner is {text}.")
    assert [line.split(" ")[0] for line in found.details] == ["GLT", "CLT"]
    assert all("95% CI" in line for line in found.details)


def test_the_verdict_is_about_the_selection_metric_on_the_glt_test() -> None:
    cells = {
        "balanced_accuracy": paired_difference([0.5, 0.6], [0.5, 0.5]),
        "macro_precision": paired_difference([0.5, 0.6], [0.5, 0.5]),
    }
    comparison = {"test": cells, "test_cbl": cells, "test_gbl": cells}
    for metric, found in (("val/macro_precision", "macro_precision"), ("val/few", "balanced_accuracy")):
        cell = cells[found]
        assert primary(sweep_record(metric=metric, comparison=comparison)) == ("test_gbl", found, cell)
    assert primary(sweep_record()) is None


def test_a_lower_calibration_error_is_better_and_ranks_first() -> None:
    comparison = {"test": {"ece": paired_difference([0.1, 0.11], [0.2, 0.21])}}
    record = sweep_of(("a", "finished", 0.3), ("b", "finished", 0.1), winner="b", comparison=comparison)
    record = replace(record, metric="val/ece")
    assert [trial.id for _, trial in ranked(record)] == ["b", "a"]
    found = verdict(record)
    assert (found.kind, found.text) == (
        "better",
        "In ECE the winner is 10.0 points better than the baseline in the test split.",
    )
    assert found.details[0].startswith("The test split: better than the baseline by 10.0 points")


def test_an_accuracy_that_is_not_top1_is_said_beside_it() -> None:
    same, other = paired_difference([0.5, 0.6], [0.4, 0.5]), paired_difference([0.3, 0.4], [0.2, 0.3])
    for balanced, said in ((same, ["top-1"]), (other, ["balanced accuracy", "top-1"])):
        comparison = {"test": {"balanced_accuracy": balanced, "top1": same}}
        lines = summary_lines(sweep_of(("a", "finished", 0.2), winner="a", comparison=comparison))
        assert [name for line in lines for name in said if line.startswith(f"test (test) {name}: winner")] == said
        assert sum(line.startswith("test (test) ") for line in lines) == len(said)


def test_next_steps() -> None:
    base = sweep_of(("a", "finished", 0.2), winner="a")  # a.x=0 is the lower end of 0..10
    assert next_steps(base) == ["a.x=0 is at the lower end of its searched range (0 to 10): widen it."]
    base = replace(base, space={"a.x": "int:0,4"})  # the end of a list of whole numbers is not 'near' anything
    assert next_steps(base) == []
    # deltas -0.01, 0.03: half width 12.706 * 0.02 = 0.254, mean 0.01: 2 * 25.4^2 seeds
    step = next_steps(replace(base, comparison={"test": {"top1": paired_difference([0.5, 0.53], [0.51, 0.5])}}))
    assert len(step) == 1
    assert "±25.4 points wide with 2 seeds" in step[0]
    assert "more than 100" in step[0]
    alike = paired_difference([1.0, 1.0], [1.0, 1.0])
    assert next_steps(replace(base, comparison={"test": {"top1": alike}})) == [], "no number of seeds tells them apart"
    alone = next_steps(replace(base, comparison={"test": {"top1": paired_difference([0.5], [0.1])}}))
    assert alone == ["Retrain with at least three paired seeds: one tells nothing about the spread."]


def test_words() -> None:
    keys = ["objective.terms.lpa.weight", "objective.terms.dro.weight", "train.optim.lr", "seed"]
    assert list(short_names(keys).values()) == ["lpa.weight", "dro.weight", "optim.lr", "seed"]
    assert list(short_names(["a.t.w", "b.t.w"]).values()) == ["a.t.w", "b.t.w"]
    assert [value_text(v) for v in (None, True, 0.1 + 0.2, 3, "x", [1, None])] == [
        "off",
        "yes",
        "0.3",
        "3",
        "x",
        "1, off",
    ]
    assert range_text("log:0.02,1.0") == "0.02 to 1, logarithmic"
    assert range_text("choice:a,1.0,null") == "a, 1, off"
    assert mean_sd([0.5]) == "50.0%"
    assert mean_sd([0.5, 0.6]) == "55.0 ± 7.1%"


def test_a_test_is_named_after_what_was_trained_on() -> None:
    long_tailed = run_record(config={"data.train_split": "train"})
    balanced = sweep_record(identity={"data.train_split": "train_cbl"})
    found = [protocol_of("test_gbl", record.train_split)[0] for record in (long_tailed, balanced, run_record())]
    assert found == ["GLT", "ALT", "GLT"]
    assert protocol_of("test_cbl", long_tailed.train_split)[0] == "CLT"
    assert protocol_of("test_cbl", balanced.train_split)[0] == "test_cbl"


def test_one_split_tests_glt_or_alt_by_what_was_trained_on() -> None:
    """Side by side they are two tables, whichever run comes first."""

    def stored(train_split: str) -> StoredRun:
        record = run_record(config={"data.train_split": train_split}, test={"test_gbl": {"top1": 0.5}})
        return StoredRun(Path(train_split), record, [])

    for order in (("train", "train_cbl"), ("train_cbl", "train")):
        tables = table_of_tests({split: stored(split) for split in order})
        found = {row["name"]: table["name"] for table in tables for row in table["rows"]}
        assert len(tables) == 2 and found["train"].startswith("GLT") and found["train_cbl"].startswith("ALT")
