"""Early stopping: when it ends a run, what the record says, and that a resume counts on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ltcore.errors import ConfigError
from ltcore.training import checkpoint as ckpt
from ltcore.training.context import StopRequested
from ltcore.training.evaluate import Evaluator
from ltcore.training.progress import TrainProgress
from tests.training.runs import StopAfter, WholeRun, assert_equal_runs, run, tiny_run, weights


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the evaluations of the validation split give, one after another; filled by the test."""
    given: list[float] = []
    real = Evaluator.metrics

    def metrics(self: Evaluator, counts: Any) -> dict[str, Any]:
        found = real(self, counts)
        return found | {"balanced_accuracy": given.pop(0)} if given else found

    monkeypatch.setattr(Evaluator, "metrics", metrics)
    return given


def epochs_of(values: Sequence[float], patience: int, min_delta: float) -> tuple[int, int]:
    """The epoch at which a run with these values ends, and that of the value it judged by: a naive loop."""
    peak, since = values[0], 1
    for epoch, value in enumerate(values, 1):
        if value > peak + min_delta:
            peak, since = value, epoch
        if epoch - since >= patience:
            return epoch, since
    return len(values), since


RISING = [0.1, 0.2, 0.15, 0.2, 0.25, 0.24, 0.255, 0.1]


@pytest.mark.parametrize("patience", [1, 2, 3, 8])
@pytest.mark.parametrize("min_delta", [0.0, 0.06])
def test_the_count_is_that_of_a_naive_loop(patience: int, min_delta: float) -> None:
    at = TrainProgress()
    for value in RISING:
        at.epoch += 1
        at.judge(value, min_delta)
        if at.in_vain >= patience:
            break
    assert (at.epoch, at.peak_epoch) == epochs_of(RISING, patience, min_delta)


def test_a_run_ends_as_finished_and_says_why(tiny_shards: str, tmp_path: Path, values: list[float]) -> None:
    values += [0.3, 0.5, 0.4, 0.5]
    record = run(tiny_run(train__epochs=10, train__patience=2), tiny_shards, tmp_path / "run")
    assert (record["status"], record["epochs_done"], record["epochs_planned"]) == ("finished", 4, 10)
    assert record["reason"] == "early stopping at epoch 4: no better val/balanced_accuracy since epoch 2"
    assert (record["best"]["epoch"], record["last"]["epoch"]) == (2, 4)
    assert set(record["test"]) == set(record["test_best"]) == {"test"}
    last, best = (ckpt.find(tmp_path / "run" / "checkpoints", tag) for tag in ("last", "best"))
    assert last is not None and best is not None and (last.meta["epoch"], best.meta["epoch"]) == (4, 2)
    assert run(tiny_run(train__epochs=10, train__patience=2), tiny_shards, tmp_path / "run") == record


def test_the_course_up_to_the_end_is_that_of_the_whole_run(
    tiny_shards: str, tmp_path: Path, values: list[float]
) -> None:
    """Learning rate and progress follow the planned epochs, and until it ends a run with patience is bitwise one without."""
    values += [0.5, 0.4, 0.4] * 2
    with pytest.raises(StopRequested):
        run(tiny_run(train__epochs=10), tiny_shards, tmp_path / "without", until=3)
    run(tiny_run(train__epochs=10, train__patience=2), tiny_shards, tmp_path / "with")
    assert_equal_runs(tmp_path / "without", tmp_path / "with")


def test_small_gains_do_not_count_but_are_still_the_best(tiny_shards: str, tmp_path: Path, values: list[float]) -> None:
    values += [0.5, 0.505, 0.509, 0.4]
    cfg = tiny_run(train__epochs=10, train__patience=3, train__min_delta=0.01)
    record = run(cfg, tiny_shards, tmp_path / "run")
    assert record["reason"] == "early stopping at epoch 4: no better val/balanced_accuracy since epoch 1"
    assert record["best"]["epoch"] == 3


def test_only_evaluations_count(tiny_shards: str, tmp_path: Path, values: list[float]) -> None:
    values += [0.5, 0.4, 0.4]
    record = run(tiny_run(train__epochs=10, train__eval_every=2, train__patience=2), tiny_shards, tmp_path / "run")
    assert record["reason"] == "early stopping at epoch 6: no better val/balanced_accuracy since epoch 2"


def test_at_the_last_epoch_nothing_is_early(tiny_shards: str, tmp_path: Path, values: list[float]) -> None:
    values += [0.5, 0.4, 0.3]
    record = run(tiny_run(train__epochs=3, train__patience=2), tiny_shards, tmp_path / "run")
    assert (record["status"], record["reason"], record["epochs_done"]) == ("finished", "", 3)


@pytest.mark.parametrize("questions", [1, 4, 6, 7])
def test_a_stopped_run_counts_on(
    tiny_shards: str,
    whole_run: WholeRun,
    tmp_path: Path,
    values: list[float],
    questions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 3)
    cfg, course = tiny_run(train__epochs=10, train__patience=2), [0.3, 0.5, 0.4, 0.5]
    values += course
    whole = whole_run(cfg, under=f"{course}")
    values[:] = course
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(questions))
    record = run(cfg, tiny_shards, tmp_path / "cut")
    assert record["reason"] == "early stopping at epoch 4: no better val/balanced_accuracy since epoch 2"
    assert_equal_runs(whole, tmp_path / "cut")


def test_a_run_that_was_lost_before_it_was_recorded_does_not_train_on(
    tiny_shards: str, tmp_path: Path, values: list[float]
) -> None:
    values += [0.5, 0.4]
    cfg, path = tiny_run(train__epochs=10, train__patience=1), tmp_path / "run" / "run.json"
    record = run(cfg, tiny_shards, tmp_path / "run")
    before = weights(tmp_path / "run")
    path.write_text(json.dumps({**record, "status": "running", "reason": ""}))
    again = run(cfg, tiny_shards, tmp_path / "run")
    assert (again["status"], again["reason"], again["epochs_done"]) == ("finished", record["reason"], 2)
    assert again["test"] == record["test"]
    after = weights(tmp_path / "run")
    assert all((after[name] == value).all() for name, value in before.items())


def test_a_part_of_a_trial_that_ends_early_is_finished(tiny_shards: str, tmp_path: Path, values: list[float]) -> None:
    """At or before the epoch until which it was to go."""
    for until, course in ((4, [0.5, 0.4, 0.4]), (3, [0.5, 0.4, 0.4])):
        values[:] = course
        cfg = tiny_run(train__epochs=10, train__patience=2)
        record = run(cfg, tiny_shards, tmp_path / str(until), kind="trial", until=until, test=False)
        assert (record["status"], record["epochs_done"]) == ("finished", 3)


def test_what_is_refused() -> None:
    for key, value, said in (("patience", 0, ">= 1, got 0"), ("min_delta", -0.1, r"in \[0, 1\), got -0.1")):
        with pytest.raises(ConfigError, match=rf"^train\.{key} must be {said}"):
            tiny_run(**{f"train__{key}": value})


def test_a_metric_that_is_better_when_lower_counts_downwards(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, real = [0.5, 0.4, 0.3, 0.35, 0.36], Evaluator.metrics
    monkeypatch.setattr(
        Evaluator, "metrics", lambda self, counts: real(self, counts) | {"ece": given.pop(0) if given else 0.9}
    )
    cfg = tiny_run(train__epochs=6, train__select="val/ece", train__patience=2)
    record = run(cfg, tiny_shards, tmp_path / "run")
    assert record["epochs_done"] == 5 and record["best"]["epoch"] == 3
