"""The loop: repeatable to the bit, resumable to the bit, honest about what it did."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.errors import CheckpointError, ConfigError, DataError, NumericError
from ltcore.lease import exclusive
from ltcore.tracking.jsonl_sink import JsonlTracker
from ltcore.training import checkpoint as ckpt
from ltcore.training.context import StopRequested
from tests.training.runs import (
    TERMS,
    StopAfter,
    WholeRun,
    assert_equal_runs,
    assert_equal_weights,
    run,
    tiny_run,
    weights,
)


def test_a_run_leaves_a_complete_record(tiny_shards: str, tmp_path: Path) -> None:
    record = run(tiny_run(), tiny_shards, tmp_path / "run")
    assert record == json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["epochs_done"] == 3
    assert record["images_seen"] == 3 * 5 * 8
    assert set(record["test"]) == {"test"}
    assert 0 <= record["test"]["test"]["top1"] <= 1
    assert len(record["per_class"]["test"]) == 4
    assert record["config"]["train.epochs"] == 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["val/top1"] == record["last"]["val/top1"]
    assert record["best"]["val/balanced_accuracy"] == max(line["val/balanced_accuracy"] for line in lines)
    assert (tmp_path / "run" / "config.yaml").exists()


def test_training_learns(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(train__epochs=12, augment__view1="none"), tiny_shards, tmp_path / "run")
    losses = [json.loads(line)["train/loss"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("terms", [{}, TERMS], ids=["base", "all-terms"])
def test_twice_the_same_run_is_bitwise_the_same(tiny_shards: str, tmp_path: Path, terms: dict[str, Any]) -> None:
    for name in ("a", "b"):
        run(tiny_run(**terms), tiny_shards, tmp_path / name)
    assert_equal_runs(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("terms", [{"train.optim.warmup": 0.4}, TERMS], ids=["base, short warm-up", "all-terms"])
@pytest.mark.parametrize("questions", [0, 1, 2, 4])
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    tiny_shards: str,
    whole_run: WholeRun,
    tmp_path: Path,
    terms: dict[str, Any],
    questions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 3)  # stops inside epochs, not only between them
    cfg = tiny_run(**terms)
    whole = whole_run(cfg)
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(questions))
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "stopped"
    record = run(cfg, tiny_shards, tmp_path / "cut")
    assert record["status"] == "finished"
    assert_equal_runs(whole, tmp_path / "cut")


def test_a_run_stops_where_it_was_told_to_however_often_it_is_started(tiny_shards: str, tmp_path: Path) -> None:
    """Also where it died between the checkpoint and the record: a further epoch would be one that was not asked for."""
    cfg, path = tiny_run(train__checkpoint_every_s=1e9), tmp_path / "part" / "run.json"
    for _ in range(2):
        with pytest.raises(StopRequested, match="after epoch 2 of 3"):
            run(cfg, tiny_shards, tmp_path / "part", until=2)
        record = json.loads(path.read_text())
        assert (record["status"], record["epochs_done"], record["last"]["epoch"]) == ("stopped", 2, 2)
        assert record["best"]["epoch"] in (1, 2)
        path.write_text(json.dumps({**record, "status": "running", "epochs_done": 0, "last": {}, "best": {}}))
    run(cfg, tiny_shards, tmp_path / "part")
    run(cfg, tiny_shards, tmp_path / "whole")
    assert_equal_runs(tmp_path / "part", tmp_path / "whole")


def test_an_epoch_that_was_logged_but_not_saved_is_logged_once(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, with a checkpoint of the epoch's last step: the epoch ends again after it."""
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 1)
    cfg = tiny_run(train__checkpoint_every_s=0.0001)
    run(cfg, tiny_shards, tmp_path / "whole")
    log = JsonlTracker.log

    def killed(tracker: JsonlTracker, metrics: Any, step: int) -> None:
        log(tracker, metrics, step)
        if step == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(JsonlTracker, "log", killed)
        run(cfg, tiny_shards, tmp_path / "cut")
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_two_processes_do_not_train_into_one_directory(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltcore.lease.PREDECESSOR_S", 0.3)
    with (
        exclusive(str(tmp_path / "run")),
        pytest.raises(DataError, match=r"/run is in use by process \d+ of this machine"),
    ):
        run(tiny_run(), tiny_shards, tmp_path / "run")
    assert run(tiny_run(), tiny_shards, tmp_path / "run")["status"] == "finished"


def test_a_finished_run_is_not_repeated(tiny_shards: str, tmp_path: Path) -> None:
    first = run(tiny_run(), tiny_shards, tmp_path / "run")
    stamp = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    assert run(tiny_run(), tiny_shards, tmp_path / "run") == first
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_terms_that_are_off_leave_every_bit_of_the_base(tiny_shards: str, tmp_path: Path) -> None:
    off = {
        "objective.terms.lpa.weight": 0.0,
        "objective.terms.dro.weight": 0.0,
        "objective.terms.ifl.num_envs": 1,
        "objective.terms.ifl.center_weight": 0.0,
    }
    run(tiny_run(), tiny_shards, tmp_path / "base")
    run(tiny_run(**off), tiny_shards, tmp_path / "off")
    assert_equal_weights(tmp_path / "base", tmp_path / "off")


def test_terms_that_have_not_started_leave_every_bit_of_the_base(tiny_shards: str, tmp_path: Path) -> None:
    late = {
        "objective.terms.lpa.start": 0.99,
        "objective.terms.lpa.freeze_fraction": 1.0,
        "objective.terms.dro.start": 0.99,
    }
    run(tiny_run(), tiny_shards, tmp_path / "base")
    run(tiny_run(**late), tiny_shards, tmp_path / "late")
    late_weights = weights(tmp_path / "late")
    for name, value in weights(tmp_path / "base").items():
        assert torch.equal(value, late_weights[name]), name


def test_accumulation_equals_the_whole_batch_without_batch_statistics(tiny_shards: str, tmp_path: Path) -> None:
    records = [
        run(tiny_run(train__accumulate=k, model__ghost_batch=4, train__epochs=1), tiny_shards, tmp_path / str(k))
        for k in (1, 2)
    ]
    assert records[0]["last"]["train/loss"] == pytest.approx(records[1]["last"]["train/loss"], rel=1e-5)


def test_accumulation_is_refused_where_it_changes_the_loss() -> None:
    with pytest.raises(ConfigError, match=r"accumulate.*dro"):
        tiny_run(train__accumulate=2, objective__terms__dro__weight=1.0)


def test_a_loss_that_is_not_finite_names_part_and_step(tiny_shards: str, tmp_path: Path) -> None:
    with pytest.raises(NumericError, match=r"Step \d+: base.*not finite.*optim.lr"):
        run(tiny_run(train__optim__lr=1e30), tiny_shards, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["retryable"]) == ("failed", False)
    assert "not finite" in record["reason"]


def test_the_averaged_weights_are_those_evaluated_and_saved(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(train__ema_decay=0.9), tiny_shards, tmp_path / "ema")
    run(tiny_run(), tiny_shards, tmp_path / "plain")
    ema, plain = weights(tmp_path / "ema"), weights(tmp_path / "plain")
    assert any(not torch.equal(ema[name], plain[name]) for name in plain)


def test_validation_is_of_the_averaged_weights(tiny_shards: str, tmp_path: Path) -> None:
    import ltcore
    from ltcore.training.predict import evaluate

    record = run(tiny_run(train__ema_decay=0.9, train__epochs=1), tiny_shards, tmp_path / "run")
    averaged = evaluate(ltcore.load(tmp_path / "run"), tiny_shards, ["val"], [])["splits"]["val"]
    assert {name: record["last"][f"val/{name}"] for name in averaged} == pytest.approx(averaged, abs=1e-6)


def test_the_model_of_a_checkpoint_predicts(tiny_shards: str, tmp_path: Path) -> None:
    import ltcore

    record = run(tiny_run(**TERMS), tiny_shards, tmp_path / "run")
    predictor = ltcore.load(tmp_path / "run")
    assert predictor.classes == ("ant", "bee", "cat", "dog")
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert predictor(images).sum(1).tolist() == pytest.approx([1.0] * 3)
    from ltcore.training.predict import evaluate

    again = evaluate(predictor, tiny_shards, [], [])
    assert again["splits"]["test"]["top1"] == record["test_best"]["test"]["top1"]
    with pytest.raises(
        ConfigError, match=r"--protocol alt does not go with a model trained on split 'train' \(use clt, glt\)"
    ):
        evaluate(predictor, tiny_shards, [], ["alt"])


def test_hot_keys_may_change_between_starts_and_their_course_is_recorded(tiny_shards: str, tmp_path: Path) -> None:
    mutable = ("train.optim.lr",)
    with pytest.raises(StopRequested):
        run(tiny_run(), tiny_shards, tmp_path / "run", StopAfter(0), mutable=mutable)
    record = run(tiny_run(train__optim__lr=0.01), tiny_shards, tmp_path / "run", mutable=mutable)
    assert record["schedule"] == [
        {"images_seen": 0, "train.optim.lr": 0.05},
        {"images_seen": 40, "train.optim.lr": 0.01},
    ]


def test_a_resumed_run_is_the_same_for_trackers_and_one_that_starts_anew_is_not(
    tiny_shards: str, tmp_path: Path
) -> None:
    ids = []
    for questions in (0, 99):
        with contextlib.suppress(StopRequested):
            run(tiny_run(), tiny_shards, tmp_path / "run", StopAfter(questions))
        ids.append(json.loads((tmp_path / "run" / "run.json").read_text())["wandb_id"])
    assert ids[0] == ids[1] and ids[0].startswith("tiny-")
    assert run(tiny_run(), tiny_shards, tmp_path / "other")["wandb_id"] != ids[0]


def test_other_keys_may_not(tiny_shards: str, tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        run(tiny_run(), tiny_shards, tmp_path / "run", StopAfter(0))
    with pytest.raises(CheckpointError, match=r"train.optim.lr: 0.05 there, 0.01 now"):
        run(tiny_run(train__optim__lr=0.01), tiny_shards, tmp_path / "run")


def test_options_of_the_optimizer_that_changed_between_two_parts_hold(tiny_shards: str, tmp_path: Path) -> None:
    """As population-based training changes them: a second part without decay ends elsewhere than one with it."""
    mutable = ("train.optim.weight_decay", "train.optim.momentum")
    for name, decay in [("same", 0.3), ("changed", 0.0)]:
        with pytest.raises(StopRequested):
            run(tiny_run(train__optim__weight_decay=0.3), tiny_shards, tmp_path / name, StopAfter(1), mutable=mutable)
        run(tiny_run(train__optim__weight_decay=decay), tiny_shards, tmp_path / name, mutable=mutable)
    same, changed = (weights(tmp_path / name)["heads.0.weight"].norm() for name in ("same", "changed"))
    assert changed > 1.05 * same


def test_the_best_epoch_of_a_lost_part_is_the_one_whose_weights_are_there(tiny_shards: str, tmp_path: Path) -> None:
    """The best checkpoint is written at once, the last one now and then: after a crash it may be ahead."""
    cfg = tiny_run(train__epochs=2)
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "run", StopAfter(0))
    folder = tmp_path / "run" / "checkpoints"
    found = ckpt.find(folder)
    assert found is not None
    ahead = found.meta | {"metrics": found.meta["metrics"] | {"val/balanced_accuracy": 2.0, "epoch": 2}, "step": 10}
    ckpt.save(folder, "best", step=10, model=found.model_state(), state=None, meta=ahead)
    assert run(cfg, tiny_shards, tmp_path / "run")["best"]["val/balanced_accuracy"] == 2.0


def test_the_state_of_another_version_is_refused_with_words(tiny_shards: str, tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        run(tiny_run(), tiny_shards, tmp_path / "run", StopAfter(0))
    found = ckpt.find(tmp_path / "run" / "checkpoints")
    assert found is not None
    state = found.train_state()
    del state["running_stats"]
    torch.save(state, found.path / "state.pt")
    with pytest.raises(CheckpointError, match="written by another version of ltcore"):
        run(tiny_run(), tiny_shards, tmp_path / "run")
