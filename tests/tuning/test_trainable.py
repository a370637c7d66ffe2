"""What a trial of a population hands to Tune, and takes from it, while the storage is disturbed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from ray import tune

from ltcore import retry
from ltcore.runtime.ray_task import TaskContext
from ltcore.training import checkpoint as ckpt
from ltcore.training.record import RunInfo
from ltcore.training.run import Job
from ltcore.tuning.trainable import TrialContext, _adopt_checkpoint
from tests.training.runs import run, tiny_run

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket

pytest_plugins = ["tests.s3"]

BUSY = OSError("When creating key 'x' in bucket 'b': AWS Error SLOW_DOWN during PutObject operation: reduce your rate")


class Disturbed:
    """Fails twice, then does what it is for."""

    def __init__(self) -> None:
        self.left, self.done = 2, list[Any]()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if self.left:
            self.left -= 1
            raise BUSY
        self.done.append((args, kwargs))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(retry.VARIABLE, raising=False)
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.002)


def test_a_report_waits_for_the_store_that_takes_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Disturbed()
    monkeypatch.setattr(tune, "report", report)
    monkeypatch.setattr(TaskContext, "report", lambda *_: None)
    job = Job(config={}, data_uri="", run_uri="s3://b/trials/0", info=RunInfo(id="trial"))
    context = TrialContext(job, keep_checkpoints=True)
    context.report({"val/top1": 0.5, "images_seen": 3}, tmp_path)
    (((metrics,), options),) = report.done
    assert metrics["val/top1"] == 0.5 and options["checkpoint"].path == str(tmp_path)


@pytest.mark.parametrize(("gpus", "device"), [(0.0, "cpu"), (0.25, "cuda"), (1.0, "cuda")])
def test_a_trial_that_was_given_no_gpu_takes_none(gpus: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as in Ray, which hides none
    job = Job(config={}, data_uri="", run_uri="s3://b/trials/0", info=RunInfo(id="trial"), gpus=gpus)
    assert TaskContext(job).device.type == device


def test_a_copied_checkpoint_is_fetched_until_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"w": torch.ones(2)}
    source = ckpt.save(tmp_path / "better", "last", step=5, model=weights, state={"n": 5}, meta={})
    fetch = Disturbed()

    class Handed:
        @contextlib.contextmanager
        def as_directory(self) -> Iterator[str]:
            fetch()
            yield str(source)

    monkeypatch.setattr(tune, "get_checkpoint", Handed)
    _adopt_checkpoint(str(tmp_path / "run"))
    found = ckpt.find(tmp_path / "run" / "checkpoints")
    assert fetch.done and found is not None and found.train_state() == {"n": 5}


def test_a_member_that_takes_over_another_leaves_nothing_of_its_own_on_the_store(
    bucket: Bucket, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its best weights so far were others, and would be loaded as those of this trial."""
    run(tiny_run(), tiny_shards, f"{bucket.uri}/trial")
    before = {key.split("/")[-2] for key in bucket.names("trial/checkpoints/")}
    assert {name.split("-")[0] for name in before} == {"best", "last"}
    source = ckpt.save(tmp_path / "better", "last", step=5, model={"w": torch.ones(2)}, state={"n": 5}, meta={})
    handed = SimpleNamespace(as_directory=lambda: contextlib.nullcontext(str(source)))
    monkeypatch.setattr(tune, "get_checkpoint", lambda: handed)
    _adopt_checkpoint(f"{bucket.uri}/trial")
    assert {key.split("/")[-2] for key in bucket.names("trial/checkpoints/")} == {"last-00000005"}
