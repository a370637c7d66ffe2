"""A disk that is full: checkpoints are left out while training goes on, the last one stays whole, no bit is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore import retry, storage
from ltcore.errors import CheckpointError
from ltcore.lease import make_folder
from ltcore.tracking.base import FanOut
from ltcore.tracking.config import TrackingConfig
from ltcore.tracking.tensorboard_sink import TensorBoardSink
from ltcore.tracking.tracker import open_tracker
from ltcore.training import checkpoint as ckpt
from ltcore.training.fork import fork
from tests.faults import full_disk
from tests.tracking.events import read_events
from tests.training.runs import TERMS, WholeRun, assert_equal_runs, run, stage2_run, tiny_run


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(retry.VARIABLE, raising=False)
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(retry, "_known", retry._Outages())
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 1)
    monkeypatch.setattr("ltcore.training.pace.SAVE_AGAIN_S", 0.0)


def full_at(times: range) -> Callable[[Path, Any], None]:
    """Writes tensors, except in these calls, where the disk is full."""
    write, calls = ckpt._write_tensors, iter(range(10**6))

    def sometimes(file: Path, value: Any) -> None:
        if next(calls) in times:
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, value)

    return sometimes


CONFIG = tiny_run(**TERMS, train__checkpoint_every_s=0.0001)


def test_training_goes_on_and_ends_with_the_same_bits(
    tiny_shards: str,
    whole_run: WholeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = whole_run(CONFIG)
    monkeypatch.setattr(ckpt, "_write_tensors", full_at(range(2, 12)))
    record = run(CONFIG, tiny_shards, tmp_path / "full")
    assert record["status"] == "finished"
    assert_equal_runs(whole, tmp_path / "full")
    assert "No space left on device" in caplog.text and "training goes on, for up to 10 min" in caplog.text
    assert caplog.text.count("is left out for now") == 1, "said once"


def test_it_ends_after_a_while_with_the_last_checkpoint_whole_and_the_same_command_continues(
    tiny_shards: str, whole_run: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = whole_run(CONFIG)
    with monkeypatch.context() as patch:
        patch.setenv(retry.VARIABLE, "0.05")
        patch.setattr(ckpt, "_write_tensors", full_at(range(4, 10**6)))
        with pytest.raises(CheckpointError, match=r"could not be written: No space left on device.*same command"):
            run(CONFIG, tiny_shards, tmp_path / "full")
    folder = tmp_path / "full" / "checkpoints"
    found = ckpt.find(folder)
    assert found is not None and found.train_state() and found.model_state()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    record = json.loads((tmp_path / "full" / "run.json").read_text())
    assert (record["status"], record["retryable"]) == ("failed", True)
    run(CONFIG, tiny_shards, tmp_path / "full")
    assert_equal_runs(whole, tmp_path / "full")


def full_once(
    patch: pytest.MonkeyPatch, owner: Any, name: str, wanted: Callable[..., bool] = lambda *_: True
) -> list[str]:
    """From now on the function fails at its first wanted call, as on a full disk. Returns where it did, once it has."""
    act, failed = getattr(owner, name), list[str]()

    def once(*args: Any, **kwargs: Any) -> Any:
        if not failed and wanted(*args):
            failed.append(str(args[0]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return act(*args, **kwargs)

    patch.setattr(owner, name, once)
    return failed


@pytest.mark.parametrize("file", ["config.yaml", "run.json", "metrics.jsonl"])
def test_a_run_begins_on_a_full_disk(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    failed = full_once(monkeypatch, storage, "_write_local", lambda path, _: path.name == file)
    record = run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run")
    assert failed and record["status"] == "finished"
    assert (tmp_path / "run" / file).stat().st_size > 0


def test_stage_2_waits_for_room(tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "stage1")
    failed = full_once(monkeypatch, ckpt, "_write_tensors")
    record = run(stage2_run(tmp_path / "stage1", "ncm"), tiny_shards, tmp_path / "stage2")
    assert failed and record["status"] == "finished"
    assert ckpt.find(tmp_path / "stage2" / "checkpoints") is not None


def test_a_copied_checkpoint_waits_for_room(tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "source")
    failed = full_once(monkeypatch, shutil, "copyfile")
    fork(tmp_path / "source", tmp_path / "copy", {"a": 1})
    found = ckpt.find(tmp_path / "copy" / "checkpoints")
    assert failed and found is not None and found.meta["config"] == {"a": 1} and found.train_state()


def test_a_folder_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = full_once(monkeypatch, Path, "mkdir")
    make_folder(tmp_path / "runs" / "mine")
    assert failed and (tmp_path / "runs" / "mine").is_dir()


def test_what_did_not_fit_is_written_whole_once_there_is_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, and the events of TensorBoard."""
    with full_disk(tmp_path / "disk", 64 * 1024) as disk:
        options = TrackingConfig(wandb=False)
        log = open_tracker(run_dir=disk, run_id="a", group="", name="a", config_flat={}, options=options)
        log.log({"a": 1.0}, 1)
        filler, full = disk / "filler", [0, 0]
        heard: list[int] = []

        def fill() -> None:
            with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match=r"No space|too large"):
                while True:
                    file.write(bytes(1024))

        monkeypatch.setitem(retry.listeners, "a test", lambda: (heard.append(1), filler.unlink(missing_ok=True))[0])
        assert isinstance(log, FanOut)
        for step, sink in enumerate(log.sinks, 2):
            fill()
            sink.log({f"metric {n}": 0.5 for n in range(500)}, step)
            full[step - 2] = len(heard)
        log.finish({}, "finished")
        rows = [json.loads(line) for line in (disk / "metrics.jsonl").read_text().splitlines()]
        events = [event for event in read_events(disk / "tensorboard") if event.HasField("summary")]
    assert 0 < full[0] < full[1], "each had to wait"
    assert [row["step"] for row in rows] == [1, 2] and len(rows[1]) == 501
    assert [event.step for event in events] == [1, *[3] * 500]


def test_tensorboard_begins_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = full_once(monkeypatch, Path, "mkdir")
    TensorBoardSink(tmp_path / "tensorboard").log({"a": 1.0}, 1)
    assert failed and len(read_events(tmp_path / "tensorboard")) == 2


def test_no_moment_is_without_a_checkpoint_where_one_of_the_same_step_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(value: int) -> None:
        ckpt.save(tmp_path, "last", step=7, model={"w": torch.tensor(value)}, state=None, meta={})

    def there() -> int:
        found = ckpt.find(tmp_path)
        assert found is not None
        return int(found.model_state()["w"])

    save(1)
    rename, seen = Path.rename, []

    def watched(self: Path, target: Any) -> Path:
        moved = rename(self, target)
        seen.append(there())
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", watched)
        save(2)
    assert seen == [1, 2] and [path.name for path in tmp_path.iterdir()] == ["last-00000007"]

    def killed(self: Path, target: Any) -> Path:
        if ckpt._OLD in str(target):
            return rename(self, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save(3)
    assert there() == 2
    ckpt.save(tmp_path, "best", step=9, model={"w": torch.tensor(9)}, state=None, meta={})
    assert there() == 2, "the other tag's is not cleared away"
    save(4)
    assert there() == 4
