"""The commands as functions: what they return, raise, print and leave behind."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import ltcore
from ltcore.api.results import Run
from ltcore.cli.epoch_lines import EpochLines
from ltcore.cli.parsers import read_train
from ltcore.cli.train import train as train_command
from ltcore.config.load import load_run
from ltcore.errors import CheckpointError, ConfigError, DataError, LtcoreError
from tests.commands import command

__all__ = ["command"]
KEYS: dict[str, Any] = {
    "model.name": "resnet8",
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.precision": "fp32",
    "tracking.wandb": False,
    "tracking.tensorboard": False,
}


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LTCORE_DATA", "LTCORE_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def train(data: object, storage: Path, recipe: Any = "cifar100_lt_ce", **changes: Any) -> Run:
    own = {key: changes.pop(key) for key in list(changes) if key in ("name", "seed", "fresh", "verbose", "engine")}
    return ltcore.train(recipe, data=data, storage=storage, **own, **KEYS, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny_shards, tmp_path_factory.mktemp("runs"), verbose=False)


def test_a_run_says_what_its_record_says(trained: Run) -> None:
    record = trained.record
    assert (trained.status, trained.name) == ("finished", record.name)
    assert trained.metrics == record.test and trained.metrics["test"]["top1"] == record.test["test"]["top1"]
    assert trained.best["epoch"] in (1, 2) and trained.best["val/top1"] == record.best["val/top1"]
    first = ", ".join(f"test {name}={record.test['test'][name]:.4f}" for name in ("balanced_accuracy", "top1"))
    assert repr(trained) == f"<Run {record.name}, finished, {first}, {trained.uri}>"


def test_its_course_is_a_table_with_a_row_for_each_epoch(trained: Run) -> None:
    table = trained.to_dataframe()
    assert list(table["epoch"]) == [1, 2]
    assert table["val/top1"].iloc[-1] == trained.record.last["val/top1"]
    assert {"train/loss", "lr", "images_per_s"} <= set(table.columns)


def test_it_predicts(trained: Run) -> None:
    predictor = trained.predictor()
    probabilities = predictor(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert probabilities.shape == (2, 4) and predictor.classes == ("ant", "bee", "cat", "dog")


def test_the_command_line_continues_what_python_began(trained: Run, tiny_shards: str) -> None:
    words = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in KEYS.items()]
    storage = str(Path(trained.uri).parent)
    record = train_command(read_train(None, ["cifar100_lt_ce", "--data", tiny_shards, "--storage", storage, *words]))
    assert record == trained.record and len(list(Path(storage).iterdir())) == 1


def test_a_configuration_is_a_recipe_too(trained: Run, tiny_shards: str, tmp_path: Path) -> None:
    cfg = load_run("cifar100_lt_ce", {**KEYS, "name": "mine"})
    assert cfg.data.imbalance_factor == 100  # of CIFAR-100; it does not hold for other data
    run = train(tiny_shards, tmp_path, recipe=cfg, verbose=False)
    assert run.name == "mine" and run.metrics == trained.metrics
    other = train(tiny_shards, tmp_path, recipe=cfg, name="other", verbose=False, **{"train.optim.lr": 0.01})
    assert other.name == "other" and other.record.config["train.optim.lr"] == 0.01


def test_a_recipe_may_be_a_file_and_settings_come_from_the_environment(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("base: cifar100_lt_ce\nseed: 3\n")
    monkeypatch.setenv("LTCORE_DATA", tiny_shards)
    monkeypatch.setenv("LTCORE_STORAGE", str(tmp_path / "runs"))
    run = ltcore.train(tmp_path / "mine.yaml", name="mine", verbose=False, **KEYS)
    assert (run.uri, run.record.seed) == (str(tmp_path / "runs" / "mine"), 3)
    assert run.record.config["data.uri"] == tiny_shards


def test_nothing_is_printed_where_nothing_is_wanted(
    trained: Run, tiny_shards: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny_shards, tmp_path, verbose=False)
    ltcore.evaluate(run, verbose=False)
    assert capfd.readouterr() == ("", "")
    train(tiny_shards, tmp_path, fresh=True)
    said = capfd.readouterr()
    assert said.err == "" and "epoch    2/2" in said.out and "--fresh: removed" in said.out
    assert "┃" not in said.out, "results are returned, not printed"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"recipe": "cifar100_lt_cee"}, ConfigError, "Did you mean cifar100_lt_ce"),
        ({"data": "/no/such"}, DataError, "there is nothing"),
        ({"train.epoch": 3}, ConfigError, "Did you mean train.epochs"),
        ({"train.optim.lr": -1}, ConfigError, "train.optim.lr must be a finite number > 0, got -1"),
        ({"engine": "spark"}, ConfigError, "engine must be one of auto, inline, trial, train, got 'spark'"),
        ({"workers": 0}, ConfigError, "workers=0: expected a whole number >= 1"),
        ({"gpus_per_worker": "auto"}, ConfigError, "gpus_per_worker='auto': expected a number >= 0."),
        ({"data.uri": "digits-glt"}, ConfigError, "data.uri is given twice"),
        ({"engine": "inline", "workers": 2}, ConfigError, "--engine inline is one process"),
    ],
)
def test_mistakes_are_typed_errors(
    arguments: Mapping[str, Any], error: type[LtcoreError], words: str, tiny_shards: str, tmp_path: Path
) -> None:
    merged: dict[str, Any] = {"recipe": "cifar100_lt_ce", "data": tiny_shards, **KEYS, **arguments}
    with pytest.raises(error, match=words):
        ltcore.train(storage=tmp_path, verbose=False, **merged)
    assert not list(tmp_path.glob("*/run.json"))


def test_mistakes_in_sweeps_and_evaluations_are_typed_errors(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean tune_lpa"):
        ltcore.tune(sweep="tune_lpaa", storage=tmp_path, verbose=False)
    with pytest.raises(ConfigError, match=r"sweep.space.seed='any' is not a search space"):
        ltcore.tune(space={"seed": "any"}, storage=tmp_path, verbose=False)
    with pytest.raises(ConfigError, match=r"protocols must be one of glt, clt, alt, got 'cltt'"):
        ltcore.evaluate(trained, protocols=["cltt"], verbose=False)
    for opened in (ltcore.open_run, ltcore.open_sweep, ltcore.evaluate):
        with pytest.raises(CheckpointError, match="no/such"):
            opened(tmp_path / "no" / "such")  # type: ignore[operator]


def test_an_interrupted_run_goes_on_where_it_stopped(
    trained: Run, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = EpochLines.report

    def interrupted(self: EpochLines, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        report(self, metrics, checkpoint)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(EpochLines, "report", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped after epoch 1 of 2"):
            train(tiny_shards, tmp_path / "runs", verbose=False)
    stopped = ltcore.open_run(next((tmp_path / "runs").iterdir()))
    assert (stopped.status, stopped.record.epochs_done, stopped.metrics) == ("stopped", 1, {})
    assert list(stopped.to_dataframe()["epoch"]) == [1]
    assert train(tiny_shards, tmp_path / "runs", verbose=False).metrics == trained.metrics
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_evaluation_holds_metrics_by_split(trained: Run, tiny_shards: str) -> None:
    found = ltcore.evaluate(trained, verbose=False)
    assert found.metrics.keys() == {"test"}
    chosen = ltcore.evaluate(Path(trained.uri), tiny_shards, splits=["val", "test"], verbose=False)
    assert chosen.metrics["test"] == found.metrics["test"] and "val" in chosen.metrics
    assert list(chosen.to_dataframe().index) == ["val", "test"]
    assert chosen.to_dataframe().loc["test", "top1"] == found.metrics["test"]["top1"]
    assert ltcore.evaluate(found.predictor(), verbose=False).metrics == found.metrics
    assert not (Path(trained.uri) / "metrics").exists(), "it is returned, not stored"
