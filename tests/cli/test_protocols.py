"""``evaluate --protocols``: from one run to the table, with what is missing trained."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ltcore
from ltcore.api.results import Run
from ltcore.cli import parsers
from ltcore.cli.epoch_lines import EpochLines
from ltcore.cli.protocols import cell_text, run
from ltcore.data.shards.source import Sample
from ltcore.errors import CheckpointError, ConfigError
from ltcore.evaluation.protocol_table import Measured
from tests.conftest import png
from tests.shards import write_dataset

COUNTS_CA = {
    "train": ((9, 3, 2), (6, 2, 1), (2, 1, 1)),
    "train_cbl": ((5, 2, 1),) * 3,
    "val": ((2, 2, 2),) * 3,
    "test_cbl": ((4, 2, 1),) * 3,
    "test_gbl": ((2, 2, 2),) * 3,
    "test_glt": ((4, 2, 1), (2, 1, 1), (1, 1, 1)),
}
KEYS: dict[str, Any] = {
    "model.name": "resnet8",
    "train.epochs": 1,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.precision": "fp32",
    "tracking.wandb": False,
    "tracking.tensorboard": False,
}


def samples(split: str, seed: int) -> Iterator[Sample]:
    rng = np.random.default_rng(seed)
    for label, counts in enumerate(COUNTS_CA[split]):
        for attribute, count in enumerate(counts):
            for n in range(count):
                yield Sample(f"{split}_{label}_{attribute}_{n}", png(rng), "png", label, attribute)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = tmp_path_factory.mktemp("glt") / "shards"
    splits = {split: samples(split, seed) for seed, split in enumerate(COUNTS_CA)}
    write_dataset(
        uri,
        classes=["ant", "bee", "cat"],
        attributes=["day", "dusk", "night"],
        splits=splits,
        image_size=16,
        shot_rule="rank",
    )
    return str(uri)


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("LTCORE_DATA", "LTCORE_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def train(shards: str, storage: Path, name: str, seed: int = 1, **keys: Any) -> Run:
    changes = {**KEYS, **keys}
    return ltcore.train("cifar100_lt_ce", data=shards, storage=storage, name=name, seed=seed, verbose=False, **changes)


@pytest.fixture(scope="module")
def trained(shards: str, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Both training splits with two seeds; do not change them."""
    storage = tmp_path_factory.mktemp("runs")
    runs = [train(shards, storage, f"lt{seed}", seed) for seed in (1, 2)]
    return runs + [train(shards, storage, f"cbl{seed}", seed, **{"data.train_split": "train_cbl"}) for seed in (1, 2)]


def near(metrics: Mapping[str, float | None]) -> dict[str, Any]:
    return {name: None if value is None else pytest.approx(value, rel=1e-6) for name, value in metrics.items()}


def evaluate(*words: object) -> None:
    run(parsers.read_evaluate("", [*map(str, words), "--protocols"]))


def test_one_run_finds_its_counterpart_and_gives_the_table(
    trained: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(trained[0].uri, "--output", tmp_path / "p.json")
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("CLT", "ALT", "GLT", "Test-GLT", "rare attributes", "worst group", "ECE"))
    assert "1,000 resamples of the test images" in shown and "Trained on train_cbl: cbl1" in shown
    found = json.loads((tmp_path / "p.json").read_text())
    columns = {column["protocol"]: column for column in found["columns"]}
    assert list(columns) == ["CLT", "ALT", "GLT", "Test-GLT"]
    for protocol, of, split in (("CLT", 0, "test_cbl"), ("ALT", 2, "test_gbl"), ("GLT", 0, "test_gbl")):
        column, stored = columns[protocol], trained[of]
        assert (column["runs"], column["seeds"], column["test_split"]) == ([stored.uri], [1], split)
        best = (stored.record.test_best or {})[split]
        values = {name: cell["mean"] for name, cell in column["metrics"].items()}
        assert values == near(best), "confidences are rounded as batches are cut"
        cell = column["metrics"]["attribute_rank/majority"]
        low, high = cell["interval"] or (cell["mean"], cell["mean"])  # of a network that says one class, nothing varies
        assert cell["sd"] is None and 0 <= low <= cell["mean"] <= high <= 1
    assert "/best-" in columns["CLT"]["checkpoints"][0], "the epoch that was best on validation"
    assert ltcore.evaluate_protocols(trained[2], verbose=False).record == found, (
        "the same from the other side, and again"
    )


def test_ranks_of_both_training_splits_are_those_of_the_long_tail(shards: str, trained: list[Run]) -> None:
    from ltcore.training.predict import load

    for stored in (trained[0], trained[2]):
        assert np.array_equal(load(stored.uri).attribute_counts.table_CA(), COUNTS_CA["train"])


def test_several_seeds_give_means_and_a_table_as_csv(trained: list[Run], tmp_path: Path) -> None:
    evaluate(trained[0].uri, trained[1].uri, "--output", tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    row = next(r for r in rows if (r["protocol"], r["metric"]) == ("ALT", "top1"))
    values = [(run.record.test_best or {})["test_gbl"]["top1"] or 0 for run in trained[2:]]
    assert float(row["mean"]) == pytest.approx(sum(values) / 2) and row["seeds"] == "2"


def test_python_gets_the_same_as_objects(trained: list[Run]) -> None:
    found = ltcore.evaluate_protocols(*trained, verbose=False)
    assert found.table.num_seeds == 2 and list(found.metrics) == ["CLT", "ALT", "GLT", "Test-GLT"]
    table = found.to_dataframe()
    assert set(table["protocol"]) == set(found.metrics) and "attribute_gap" in set(table["metric"])
    assert repr(found).startswith("<Protocols toy, CLT top1=") and "Test-GLT" in found._repr_html_()


def test_a_missing_counterpart_is_named_then_trained_and_after_an_interruption_continued(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = train(shards, tmp_path, "alone", **{"train.epochs": 2})
    with pytest.raises(
        ConfigError, match=r"holds no run like alone with data.train_split=train_cbl\. .* --train-missing"
    ):
        ltcore.evaluate_protocols(alone, verbose=False)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochLines, "report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ltcore.evaluate_protocols(alone, train_missing=True, verbose=False)
    begun = ltcore.open_run(tmp_path / "alone-train_cbl")
    assert begun.status == "stopped"
    with pytest.raises(ConfigError, match=r"alone-train_cbl is not finished \(stopped\)"):
        ltcore.evaluate_protocols(alone, verbose=False)
    found = ltcore.evaluate_protocols(alone, train_missing=True, verbose=False)
    other = ltcore.open_run(tmp_path / "alone-train_cbl")
    assert other.record.config == {
        **alone.record.config,
        "name": "alone-train_cbl",
        "data.train_split": "train_cbl",
    }
    assert found.metrics["ALT"] == near((other.record.test_best or {})["test_gbl"])


@pytest.mark.slow
def test_the_counterpart_of_stage_2_starts_from_that_of_stage_1(shards: str, tmp_path: Path) -> None:
    first = train(shards, tmp_path, "first")
    keys = {"stage2.from_run": first.uri, "stage2.method": "crt", "stage2.options.crt.epochs": 1}
    own = {key: KEYS[key] for key in ("train.threads", "train.precision", "tracking.wandb", "tracking.tensorboard")}
    second = ltcore.train(
        "cifar100_lt_crt", data=shards, storage=tmp_path, name="second", seed=1, verbose=False, **{**own, **keys}
    )
    ltcore.evaluate_protocols(second, train_missing=True, verbose=False)
    other = ltcore.open_run(tmp_path / "second-train_cbl").record
    assert other.config["stage2.from_run"] == str(tmp_path / "first-train_cbl")
    assert ltcore.open_run(tmp_path / "first-train_cbl").record.train_split == other.train_split == "train_cbl"


def test_what_cannot_be_tested_is_refused_before_a_counterpart_is_trained(shards: str, tmp_path: Path) -> None:
    first, second = (train(shards, tmp_path, f"s{seed}", seed) for seed in (1, 2))
    with pytest.raises(
        ConfigError, match=r"s1-train_cbl would be trained on data.uri=.* Train it without --data first"
    ):
        ltcore.evaluate_protocols(first, data=shards, train_missing=True, verbose=False)
    for weights in (tmp_path / "s2" / "checkpoints").glob("*/model.pt"):
        weights.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        ltcore.evaluate_protocols(first, second, train_missing=True, verbose=False)
    assert not (tmp_path / "s1-train_cbl").exists()


@pytest.mark.slow
def test_a_counterpart_goes_on_from_what_it_was_begun_with(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run that would serve as its start by now changes nothing."""
    balanced = {"data.train_split": "train_cbl"}
    start, other = train(shards, tmp_path, "start"), train(shards, tmp_path, "z", **balanced)
    run = train(shards, tmp_path, "run", **{"train.init_from": start.uri, "train.epochs": 2})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochLines, "report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ltcore.evaluate_protocols(run, train_missing=True, verbose=False)
    train(shards, tmp_path, "a", **balanced)  # comes before z
    ltcore.evaluate_protocols(run, train_missing=True, verbose=False)
    found = ltcore.open_run(tmp_path / "run-train_cbl").record
    assert (found.status, found.config["train.init_from"]) == ("finished", other.uri)


def test_data_without_the_splits_are_refused_before_anything_is_trained(tiny_shards: str, tmp_path: Path) -> None:
    plain = train(tiny_shards, tmp_path, "plain")
    with pytest.raises(ConfigError, match=r"tiny has no split test_cbl and no test_gbl \(it has test, train, val\)"):
        ltcore.evaluate_protocols(plain, train_missing=True, verbose=False)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["x", "--train-missing"], "--train-missing goes with --protocols"),
        (["x", "--protocols", "--logits"], "are of predictions, which --protocols does not make"),
        (["x", "--protocols", "--output", "p.parquet"], "expected the ending .json or .csv"),
        (["x", "--protocols", "--protocol", "clt"], "not allowed with argument"),
    ],
)
def test_flags_that_do_not_go_together(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsers.read_evaluate("", words)
    assert problem in capsys.readouterr().err


def test_cells() -> None:
    assert cell_text(None) == cell_text(Measured((None,), None)) == "-"
    assert cell_text(Measured((0.874,), (0.8512, 0.8957))) == "87.4 (85.1..89.6)"
    assert cell_text(Measured((0.5,), None)) == "50.0"
    assert cell_text(Measured((0.5, 0.7), (0.0, 1.0))) == "60.0 ± 14.1\n(0.0..100.0)"
