"""What a run chooses, tests and keeps: the balanced accuracy by default, and every number of both weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ltcore.config.records import RunRecord
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.evaluation.calibration import NUM_BINS
from ltcore.evaluation.catalog import METRICS
from ltcore.evaluation.confused import MAX_EXAMPLES
from ltcore.evaluation.confusion_file import Cell, confusion_name, read_confusion
from ltcore.training import checkpoint as ckpt
from ltcore.training.evaluate import Evaluator
from ltcore.training.stored import remove
from ltcore.training.tested import log_tests, summary
from ltcore.training.trainer import Trainer
from tests.conftest import tiny_samples
from tests.shards import write_dataset
from tests.training.runs import run, tiny_run


class Heard:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.logged: dict[str, Any] = {}

    def table(self, name: str, columns: Any, rows: Any) -> None:
        self.logged[name] = [list(columns), *map(list, rows)]

    def bars(self, name: str, label: str, value: str, rows: Any) -> None:
        self.logged[name] = rows

    def confusion(self, name: str, classes: Any, counts: Any) -> None:
        self.logged[name] = counts


@pytest.fixture(scope="module")
def folder(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; do not change it."""
    path = tmp_path_factory.mktemp("tested") / "run"
    run(tiny_run(), tiny_shards, path)
    return path


@pytest.fixture
def record(folder: Path) -> RunRecord:
    found = RunRecord.read(folder)
    assert found is not None and found.test is not None
    return found


def test_run_json_holds_every_number_of_the_last_and_the_best_weights(
    record: RunRecord, folder: Path, tiny_shards: str
) -> None:
    assert record.test and record.test_best and record.support and record.calibration and record.calibration_best
    attributes = [name for name in record.test["test"] if name.startswith("attribute/")]
    assert list(record.test["test"]) == [*METRICS, *attributes]
    assert record.support["test"] == list(read_manifest(tiny_shards).class_counts["test"])
    assert record.data.uri == tiny_shards and read_manifest(record.data.uri).hash == record.data.hash
    assert record.data.class_counts == read_manifest(tiny_shards).class_counts["train"]
    of_weights = {
        "last": (record.test, record.per_class, record.calibration),
        "best": (record.test_best, record.per_class_best, record.calibration_best),
    }
    for weights, (test, per_class, calibration) in of_weights.items():
        assert test and per_class and calibration
        recalls = per_class["test"]
        known = [value for value in recalls if value is not None]
        assert test["test"]["balanced_accuracy"] == pytest.approx(sum(known) / len(known))
        confusion = read_confusion(folder / confusion_name("test", weights), 4)
        assert confusion is not None
        rows = confusion.dense()
        assert [sum(row) for row in rows] == record.support["test"]
        assert recalls == pytest.approx([row[c] / sum(row) for c, row in enumerate(rows)])
        bins = calibration["test"]
        assert len(bins) == NUM_BINS and sum(found.count for found in bins) == sum(record.support["test"])
        gaps = [
            found.count * abs(found.accuracy - found.confidence)
            for found in bins
            if found.accuracy is not None and found.confidence is not None
        ]
        assert test["test"]["ece"] == pytest.approx(sum(gaps) / sum(record.support["test"]))


def test_the_confused_pairs_are_those_of_the_confusion_matrix(
    record: RunRecord, folder: Path, tiny_shards: str
) -> None:
    confusion = read_confusion(folder / confusion_name("test", "last"), 4)
    assert confusion is not None and record.confused
    pairs = record.confused["test"]
    assert [Cell(pair.label, pair.prediction, pair.count) for pair in pairs] == confusion.confused(20)
    labels_N = ShardStore(tiny_shards).labels("test")
    for pair in pairs:
        assert set(labels_N[list(pair.examples)]) == {pair.label}
        assert len(pair.examples) == min(pair.count, MAX_EXAMPLES)


def test_sinks_get_tables_of_everything_and_charts_of_a_moderate_number_of_classes(
    record: RunRecord, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    log_tests(heard, record, folder)  # type: ignore[arg-type]  # a part of a tracker
    assert record.test and record.per_class and record.support
    metrics = {row[0]: row[1:] for row in heard.logged["test/metrics"][1:]}
    assert metrics["ece"] == [record.test["test"]["ece"], (record.test_best or {})["test"]["ece"]]
    ant = heard.logged["test/per_class"][1]
    assert ant == ["ant", "many", 5, record.per_class["test"][0], (record.per_class_best or {})["test"][0]]
    assert heard.logged["test/last/recall"][0] == ("ant", record.per_class["test"][0])
    assert [sum(row) for row in heard.logged["test/best/confusion"]] == record.support["test"]
    assert len(heard.logged["test/last/calibration"]) == 1 + NUM_BINS
    label, other, count, share = heard.logged["test/last/most_confused"][1]
    assert label != other and share == count / record.support["test"][record.data.classes.index(label)]
    monkeypatch.setattr("ltcore.training.tested.MAX_CHARTED_CLASSES", 3)
    many = Heard()
    log_tests(many, record, folder)  # type: ignore[arg-type]
    assert heard.logged.keys() - many.logged.keys() == {
        f"test/{weights}/{chart}" for weights in ("last", "best") for chart in ("recall", "confusion")
    }
    tables = {file.name for file in (folder / "tables").iterdir()}
    assert tables == {f"{name.replace('/', '.')}.json" for name in many.logged}


def test_the_summary_names_the_tests_of_both_weights(record: RunRecord) -> None:
    values = summary(record)
    assert values["test/balanced_accuracy"] == (record.test or {})["test"]["balanced_accuracy"]
    assert values["best/test/ece"] == (record.test_best or {})["test"]["ece"]
    assert values["last/val/ece"] == record.last["val/ece"]


SERIES = {
    "val/balanced_accuracy": [0.3, 0.6, 0.5],
    "val/top1": [0.7, 0.5, 0.6],
    "val/ece": [0.3, 0.2, 0.1],
    "val/few/ece": [0.1, 0.2, 0.3],
}


@pytest.mark.parametrize(
    ("select", "epoch"),
    [(None, 2), ("val/top1", 1), ("val/ece", 3), ("val/few/ece", 1)],
    ids=["default", "top1", "ece", "few"],
)
def test_the_best_epoch_is_that_of_the_metric_in_its_own_direction(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str | None, epoch: int
) -> None:
    """The large classes are recognized best in epoch 1, all alike in epoch 2."""

    def validated(trainer: Trainer) -> dict[str, float]:
        return {name: values[trainer.at.epoch - 1] for name, values in SERIES.items()}

    monkeypatch.setattr(Trainer, "_validate", validated)
    cfg = tiny_run() if select is None else tiny_run(train__select=select)
    assert run(cfg, tiny_shards, tmp_path / "run")["best"]["epoch"] == epoch
    found = ckpt.find(tmp_path / "run" / "checkpoints", "best")
    assert found is not None and found.meta["epoch"] == epoch


def test_on_an_unbalanced_validation_split_the_default_is_the_mean_recall(tmp_path: Path) -> None:
    """Validation on the images of the test, of which the classes have five to two."""
    splits = {"train": tiny_samples("train"), "val": tiny_samples("test"), "test": tiny_samples("test")}
    facts: dict[str, Any] = {"image_size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3, "seed": 0, "shot_rule": "rank"}
    classes, uri = ["ant", "bee", "cat", "dog"], str(tmp_path / "shards")
    write_dataset(uri, name="own", classes=classes, attributes=["day", "night"], splits=splits, provenance={}, **facts)
    record = run(tiny_run(), uri, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert record["best"]["val/balanced_accuracy"] == max(row["val/balanced_accuracy"] for row in rows)
    assert any(row["val/balanced_accuracy"] != row["val/top1"] for row in rows)
    assert all(0 <= row["val/ece"] <= 1 and row["val/top5"] is None for row in rows)
    last, test = record["last"], record["test"]["test"]
    assert {name: last[f"val/{name}"] for name in METRICS} == pytest.approx({name: test[name] for name in METRICS})


@pytest.mark.parametrize(("best", "passes"), [(3, 1), (1, 2)], ids=["same", "other"])
def test_weights_that_are_both_last_and_best_are_tested_once(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int, passes: int
) -> None:
    tested: list[str] = []
    whole = Evaluator.tested

    def counted(evaluator: Evaluator, split: str, **options: Any) -> Any:
        tested.append(split)
        return whole(evaluator, split, **options)

    monkeypatch.setattr(Evaluator, "tested", counted)
    monkeypatch.setattr(Trainer, "_validate", lambda self: {"val/balanced_accuracy": float(self.at.epoch == best)})
    record = run(tiny_run(), tiny_shards, tmp_path / "run")
    assert tested == ["test"] * passes and record["best"]["epoch"] == best
    assert record["test_best"].keys() == record["per_class_best"].keys() == {"test"}
    assert (record["test"] == record["test_best"]) == (best == 3)


def test_a_trial_of_a_sweep_keeps_the_last_weights_alone(tiny_shards: str, tmp_path: Path) -> None:
    record = run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run", kind="retrain")
    assert record["test_best"] == record["per_class_best"] == record["calibration_best"] == {}
    assert [file.name for file in (tmp_path / "run" / "confusion").iterdir()] == ["test-last.npz"]


def test_fresh_removes_the_matrices(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run")
    remove(str(tmp_path / "run"))
    assert not (tmp_path / "run" / "confusion").exists()
