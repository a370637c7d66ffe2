"""A group of workers ends at once where one of them meets an error that comes again, and the record says which."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from ltcore import retry
from ltcore.config.records import RunRecord
from ltcore.errors import CapacityError, ConfigError, DataError, LtcoreError, NumericError, RemovedError
from ltcore.lease import exclusive
from ltcore.runtime import ray_train
from ltcore.runtime.final_errors import EndAtFinalError
from ltcore.runtime.placement import Scaling
from ltcore.training.record import RunInfo
from ltcore.training.run import Job
from tests.records import run_record

ROOT = Path(__file__).parents[2]
ENDS_ON_RANK_1 = """
from dataclasses import dataclass
from ltcore import Base, dist, errors, plugins
@plugins.loss("one_sided", summary="meets an error on rank 1 alone, while rank 0 waits for its gradient")
class OneSided(Base):
    @dataclass(frozen=True)
    class Config:
        pass
    steps = 0
    def forward(self, out, labels_B, ctx):
        self.steps += 1
        if dist.rank() == 1 and self.steps == 3:
            raise errors.NumericError("rank 1 alone")
        return out.mean_logits_BC.square().mean()
"""


def job(folder: Path) -> Job:
    return Job(config={}, data_uri="data", run_uri=str(folder), info=RunInfo(id="run"))


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_of_one_rank_ends_the_run_at_once(tiny_shards: str, tmp_path: Path) -> None:
    (tmp_path / "one_sided.py").write_text(ENDS_ON_RANK_1)
    command = ["train", "cifar100_lt_ce", "--plugin", "one_sided", "--engine", "train", "--workers", "2"]
    command += ["--name", "mine", "--data", tiny_shards, "--storage", str(tmp_path / "runs")]
    keys = {
        "objective.base": "one_sided",
        "model.name": "resnet8",
        "train.epochs": "30",
        "train.batch_size": "8",
        "train.threads": "1",
        "train.optim.warmup": "0",
        "tracking.wandb": "false",
    }
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "LTCORE_CACHE": str(tmp_path / "cache")}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "ltcore", *command, *(f"{key}={value}" for key, value in keys.items())],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1 and done.stderr.endswith("rank 1 alone\n") and "Traceback" not in done.stderr
    record = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())
    assert (record["status"], record["retryable"], record["world"]) == ("failed", False, 2)
    assert record["reason"] == "NumericError: rank 1 alone"
    assert len(record["starts"]) == 1, "the workers were started again"


@pytest.mark.parametrize(
    ("errors", "ends"),
    [
        ({0: RuntimeError("the other rank is gone"), 1: NumericError("not finite")}, "not finite"),
        ({1: SimpleNamespace(cause=ConfigError("no such key"))}, "no such key"),
        ({1: CapacityError("the memory is full")}, "the memory is full"),
        ({0: RemovedError("the run was removed"), 1: RuntimeError("the other rank is gone")}, "was removed"),
        ({0: DataError("the disk is full")}, None),
        ({0: RuntimeError("the other rank is gone")}, None),
        ({}, None),
    ],
)
def test_only_a_final_error_takes_the_place_of_rays_decision(errors: dict[int, Any], ends: str | None) -> None:
    callback = EndAtFinalError()
    callback.after_worker_group_poll_status(SimpleNamespace(errors={1: NumericError("of an earlier look")}))
    callback.after_worker_group_poll_status(SimpleNamespace(errors=errors))
    if ends is None:
        callback.before_controller_execute_failure_decision("retry")
    else:
        with pytest.raises(LtcoreError, match=ends):
            callback.before_controller_execute_failure_decision("retry")


def test_ray_hands_it_to_its_controller(tmp_path: Path) -> None:
    trainer = ray_train._trainer(job(tmp_path), Scaling(workers=2), None, [])
    assert [c for c in trainer._create_default_callbacks() if isinstance(c, EndAtFinalError)]


@pytest.mark.parametrize(
    ("status", "error", "noted"),
    [
        ("running", NumericError("not finite"), True),  # rank 0 waited for another rank, and was ended
        ("failed", NumericError("not finite"), True),  # or failed of that one's end
        ("running", DataError("the disk is full"), False),
        ("finished", NumericError("not finite"), False),
    ],
)
def test_the_record_says_what_the_run_failed_of(
    status: Any, error: LtcoreError, noted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_record(status=status, reason="RuntimeError: connection closed" if status == "failed" else "")

    def fit() -> None:
        before.write(tmp_path)
        raise ray.train.ControllerError(error)

    monkeypatch.setattr(ray_train, "_trainer", lambda *_: SimpleNamespace(fit=fit))
    with pytest.raises(type(error), match=str(error)):
        ray_train.fit_with_train(job(tmp_path), Scaling(workers=2), None, [])
    after = RunRecord.read(tmp_path)
    assert after is not None
    if noted:
        assert (after.status, after.reason, after.retryable) == ("failed", "NumericError: not finite", False)
    else:
        assert after == before


def test_the_record_of_an_earlier_start_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_record(status="running")
    before.write(tmp_path)

    def fit() -> None:
        raise ray.train.ControllerError(NumericError("before this start made a record"))

    monkeypatch.setattr(ray_train, "_trainer", lambda *_: SimpleNamespace(fit=fit))
    with pytest.raises(NumericError):
        ray_train.fit_with_train(job(tmp_path), Scaling(workers=2), None, [])
    assert RunRecord.read(tmp_path) == before


def test_the_error_is_raised_also_where_the_record_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltcore.lease.PREDECESSOR_S", 0.3)

    def fit() -> None:
        run_record(status="running").write(tmp_path)
        raise ray.train.ControllerError(NumericError("not finite"))

    monkeypatch.setattr(ray_train, "_trainer", lambda *_: SimpleNamespace(fit=fit))
    with exclusive(str(tmp_path)), pytest.raises(NumericError, match="not finite"):
        ray_train.fit_with_train(job(tmp_path), Scaling(workers=2), None, [])


@pytest.mark.parametrize(("times", "ends"), [(2, False), (4, True)])
def test_the_process_that_watches_over_the_workers_is_started_again(
    times: int, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [True] * times

    def fit() -> None:
        if left:
            left.pop()
            raise ray.exceptions.ActorDiedError
        run_record(status="finished").write(tmp_path)

    monkeypatch.setattr(ray_train, "_trainer", lambda *_: SimpleNamespace(fit=fit))
    if ends:
        with pytest.raises(LtcoreError, match=r"was lost 4 times .*The same command continues"):
            ray_train.fit_with_train(job(tmp_path), Scaling(workers=2), None, [])
    else:
        assert ray_train.fit_with_train(job(tmp_path), Scaling(workers=2), None, []).status == "finished"


@pytest.mark.parametrize(("patience", "waits_s"), [("", 720), ("0", 720), ("900", 1020), ("inf", 604920), ("nan", 720)])
def test_collectives_wait_for_longer_than_any_rank_waits_for_its_storage(
    patience: str, waits_s: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retry.VARIABLE, patience)
    trainer = ray_train._trainer(job(tmp_path), Scaling(workers=2), None, [])
    assert trainer.backend_config.timeout_s == waits_s
