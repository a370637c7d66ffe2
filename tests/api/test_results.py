"""What runs and sweeps show of themselves in a notebook, and what a sweep's winner is."""

from __future__ import annotations

from pathlib import Path

import pytest

import ltcore
from ltcore.api.results import Run, Sweep
from ltcore.config.retrained import RetrainRecord
from ltcore.errors import CheckpointError
from ltcore.evaluation.paired import paired_difference
from tests.records import run_record, sweep_record, trial_record
from tests.reporting.comparison import comparison

HOSTILE = '<script>alert("1")</script>\x1b[31m'


def finished_sweep(folder: Path, **fields: object) -> Sweep:
    trials = (
        trial_record("00000", params={"train.optim.lr": 0.1}, last=0.5, best=0.6),
        trial_record("00001", params={"train.optim.lr": 0.2}, last=0.7, best=0.7),
        trial_record("00002", params={"train.optim.lr": 0.3}, status="stopped", last=0.1),
    )
    own = {"status": "finished", "trials": trials, "winner": "00001", "space": {"train.optim.lr": "log:0.1,1"}}
    sweep_record(**{**own, **fields}).write(folder)
    for place in ("trials/00001", "retrain/winner-seed1"):
        (folder / place).mkdir(parents=True)
        run_record(name=place.replace("/", "-"), test={"test": {"top1": 0.7}}).write(folder / place)
    return ltcore.open_sweep(folder)


def test_everything_shown_is_escaped() -> None:
    for shown in (
        Run(run_record(name=HOSTILE, test={HOSTILE: {HOSTILE: 0.5}}, reason=HOSTILE), HOSTILE),
        Sweep(sweep_record(name=HOSTILE, trials=(trial_record(HOSTILE, params={}),)), HOSTILE),
    ):
        page = shown._repr_html_()
        assert "<script" not in page and "\x1b" not in page and "&lt;script&gt;" in page
        assert "\x1b" not in repr(shown)


def test_a_run_shows_its_tests() -> None:
    page = Run(run_record(test={"test": {"top1": 0.5, "many": None}}, epochs_done=3), "/runs/x")._repr_html_()
    assert "<th>top1</th><th>many</th>" in page
    assert "<td>test, last epoch</td><td>0.5</td><td>-</td>" in page
    assert "3 of 16 epochs" in page and "/runs/x" in page


def test_the_winner_is_its_first_retrain_or_its_trial(tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path)
    assert sweep.best.uri == f"{tmp_path}/trials/00001" and sweep.params == {"train.optim.lr": 0.2}
    (tmp_path / "b").mkdir()
    retrain = (
        RetrainRecord(role="baseline", seed=1, run_dir="retrain/baseline-seed1"),
        RetrainRecord(role="winner", seed=1, run_dir="retrain/winner-seed1"),
    )
    compared = {"test": {"top1": paired_difference([0.6, 0.8], [0.5, 0.5])}}
    again = finished_sweep(tmp_path / "b", retrain=retrain, comparison=compared)
    assert again.best.name == "retrain-winner-seed1"
    assert again.metrics == {"test": {"top1": pytest.approx(0.7)}} and sweep.metrics == {}


def test_trials_are_a_table_best_first(tmp_path: Path) -> None:
    table = finished_sweep(tmp_path).to_dataframe()
    assert list(table["trial"]) == ["00001", "00000", "00002"]
    assert list(table["rank"].fillna(0)) == [1, 2, 0]
    assert list(table["train.optim.lr"]) == [0.2, 0.1, 0.3] and list(table["val/top1"]) == [0.7, 0.5, 0.1]


def test_without_a_winner_that_is_said(tmp_path: Path) -> None:
    sweep_record(status="stopped").write(tmp_path)
    sweep = ltcore.open_sweep(tmp_path)
    assert sweep.params == {} and sweep.to_dataframe().empty and "stopped" in sweep._repr_html_()
    with pytest.raises(CheckpointError, match=r"Sweep demo \(stopped\) has no winner yet"):
        sweep.predictor()


def test_of_compared_methods_the_chosen_one_is_the_best(tmp_path: Path) -> None:
    trials = tuple(trial_record(f"lpa-seed{seed}", params={}, run_dir=f"trials/lpa-seed{seed}") for seed in range(3))
    others = tuple(
        trial_record(f"{name}-seed{seed}") for name in ("ce", "dro", "balanced_softmax", "paco") for seed in range(3)
    )
    comparison(3, trials=trials + others).write(tmp_path)
    (tmp_path / "trials" / "lpa-seed0").mkdir(parents=True)
    run_record(name="trial-lpa-seed0").write(tmp_path / "trials" / "lpa-seed0")
    sweep = ltcore.open_sweep(tmp_path)
    assert sweep.best.name == "trial-lpa-seed0"
    assert sweep.params == {"objective.base": "lpa"}
    assert sweep.metrics["test"] == {"top1": pytest.approx(0.61), "few": None}
    rows = sweep.to_dataframe()
    assert len(rows) == 15 and set(rows["variant"]) == {"lpa", "ce", "dro", "balanced_softmax", "paco"}
    assert rows.loc[(rows["variant"] == "ce") & (rows["trial"] == "ce-seed1"), "test/top1"].item() == 0.31
    page = sweep._repr_html_()
    assert "Chosen on validation: lpa" in page and "<th>verdict</th>" in page and "baseline" not in page


def test_every_function_and_result_of_the_package_is_in_its_api_too() -> None:
    own = {name for name in ltcore.__all__ if getattr(getattr(ltcore, name), "__module__", "").startswith("ltcore.api")}
    assert own <= set(ltcore.api.__all__) and "evaluate_protocols" in own
