"""What a terminal shows of tests whose classes do not have as many images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ltcore.cli import console
from ltcore.cli import evaluate as assess
from ltcore.cli import parsers as cli
from ltcore.cli.class_table import MOST_CLASSES, class_table
from ltcore.config.records import RunRecord
from ltcore.evaluation.catalog import METRICS
from tests.records import run_record
from tests.training.runs import run, tiny_run

SAID = "test is not balanced (largest/smallest class 5/2): top-1 follows the large classes, balanced accuracy counts"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def trained(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(tiny_run(train__epochs=2), tiny_shards, folder)
    return folder


def rows_of(shown: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    return {first: rest for first, *rest in lines}


def test_a_finished_run_names_the_balanced_accuracy_first_and_says_why(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord.read(trained)
    assert record is not None and record.test is not None
    console.show_run(record, str(trained))
    shown = capsys.readouterr().out
    rows = rows_of(shown)
    assert list(rows)[:2] == ["balanced accuracy", "top-1"]
    assert rows["balanced accuracy"][0] == f"{100 * (record.test['test']['balanced_accuracy'] or 0):.2f}"
    assert "ECE" in rows and "top-5" not in rows, "four classes have no top-5"
    assert SAID in shown


def test_of_a_balanced_test_top1_is_enough(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {**{name: 0.5 for name in METRICS if not name.startswith("attribute_rank")}, "few": None}
    even = run_record(
        status="finished",
        test={"test": values},
        test_best={"test": values},
        support={"test": [3, 3]},
        best={"epoch": 1},
    )
    console.show_run(even, "run")
    shown = capsys.readouterr().out
    assert next(iter(rows_of(shown))) == "top-1" and "balanced" not in shown and "few-shot" not in shown
    assert "test, last epoch (also best on validation)" in shown
    console.show_run(replace(even, test_best={"test": {**values, "ece": 0.1}}), "run")
    assert "test, best on validation (epoch 1)" in capsys.readouterr().out


def test_evaluate_shows_every_metric_and_the_classes_and_stores_all(
    trained: Path, tiny_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(trained), "--data", tiny_shards, "--output", str(tmp_path / "m.json")]
    assess.run(cli.read_evaluate("", words))
    shown = capsys.readouterr().out
    rows = rows_of(shown)
    assert {metric.title for metric in METRICS.values()} <= rows.keys() and SAID in shown
    found = json.loads((tmp_path / "m.json").read_text())
    record = json.loads((trained / "run.json").read_text())
    for name, of_run in {"splits": "test_best", "per_class": "per_class_best"}.items():
        assert found[name]["test"] == pytest.approx(record[of_run]["test"], abs=1e-6)
    assert found["support"] == record["support"] and found["classes"] == ["ant", "bee", "cat", "dog"]
    assert [part["count"] for part in found["calibration"]["test"]] == [
        part["count"] for part in record["calibration_best"]["test"]
    ]
    confusion = found["confusion"]["test"]
    hits = [
        n
        for label, taken, n in zip(*(confusion[k] for k in ("label", "prediction", "count")), strict=True)
        if label == taken
    ]
    assert sum(hits) / sum(found["support"]["test"]) == pytest.approx(found["splits"]["test"]["top1"])
    assert rows["ant"][:2] == ["5", f"{100 * found['per_class']['test'][0]:.2f}"]


def evaluation(classes: int) -> dict[str, Any]:
    """Class 0 is never recognized and taken for 2, twice, and for 1; the others always are."""
    last = range(1, classes - 1)
    return {
        "classes": [f"class {c}" for c in range(classes)],
        "per_class": {"test": [0.0, *(1.0 for _ in last), None]},
        "support": {"test": [3, *(1 for _ in last), 0]},
        "confusion": {
            "test": {"label": [0, 0, *last], "prediction": [1, 2, *last], "count": [1, 2, *(1 for _ in last)]}
        },
    }


def test_the_lowest_recalls_come_first_and_a_long_table_is_cut() -> None:
    from ltcore.reporting.terminal import Terminal

    terminal = Terminal(record=True)
    terminal.print(class_table(evaluation(4), "test"))
    rows = rows_of(terminal.export_text())
    assert list(rows) == ["class 0", "class 1", "class 2"], "a class without images has no recall"
    assert rows["class 0"] == ["3", "0.00", "class 2 (2)"] and rows["class 1"] == ["1", "100.00", "-"]
    long = class_table(evaluation(50), "test")
    assert long.row_count == MOST_CLASSES and long.title == "test: 20 of 49 classes, lowest recall first"
