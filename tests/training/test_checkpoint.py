"""Checkpoints are complete or absent, versioned, and refuse what they do not belong to."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore import retry
from ltcore.errors import CheckpointError, LtcoreError, StorageError
from ltcore.training import checkpoint as ckpt
from ltcore.training.same_run import check_same_run

META: dict[str, Any] = {"config": {"seed": 0, "train.epochs": 3}, "data_hash": "a" * 64}


def write(folder: Path, step: int, tag: str = "last") -> Path:
    return ckpt.save(folder, tag, step=step, model={"w": torch.full((2,), float(step))}, state={"n": step}, meta=META)


def test_the_newest_is_found_and_older_ones_go(tmp_path: Path) -> None:
    for step in (1, 20, 3):
        write(tmp_path, step)
    found = ckpt.find(tmp_path)
    assert found is not None
    assert found.meta["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last-00000003"]
    assert torch.equal(found.model_state()["w"], torch.full((2,), 3.0))
    assert found.train_state() == {"n": 3}


def test_best_and_last_live_side_by_side(tmp_path: Path) -> None:
    write(tmp_path, 5)
    ckpt.save(tmp_path, "best", step=4, model={}, state=None, meta=META)
    best = ckpt.find(tmp_path, "best")
    assert best is not None
    assert best.meta["step"] == 4
    with pytest.raises(CheckpointError, match="only inference weights"):
        best.train_state()


def test_a_half_written_checkpoint_is_never_taken(tmp_path: Path) -> None:
    write(tmp_path, 1)
    torn = tmp_path / ".last-00000002.999"
    torn.mkdir()
    (torn / "model.pt").write_bytes(b"half")
    (torn / "meta.json").write_text("{}")
    found = ckpt.find(tmp_path)
    assert found is not None
    assert found.meta["step"] == 1
    write(tmp_path, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["last-00000003"], "the leftover of a killed write is cleared"


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*untouched"):
        write(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["last-00000001"]


@contextlib.contextmanager
def on_the_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int | str]]:
    """Yields what is done, in its order: the number of each file or folder that is synced, 'rename' and 'remove'."""
    events: list[int | str] = []

    def recorded(act: Any, event: Any) -> Any:
        def recording(*args: Any, **options: Any) -> Any:
            events.append(event(*args))
            return act(*args, **options)

        return recording

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", recorded(os.fsync, lambda fd: os.fstat(fd).st_ino))
        patch.setattr(Path, "rename", recorded(Path.rename, lambda *_: "rename"))
        patch.setattr(ckpt.shutil, "rmtree", recorded(shutil.rmtree, lambda *_: "remove"))
        yield events


def test_every_file_is_on_the_disk_before_the_rename_and_the_rename_before_older_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    with on_the_disk(monkeypatch) as events:
        path = write(tmp_path, 2)
    *files, own, renamed, folder, removed = events
    assert len(files) == 3 and set(files) == {file.stat().st_ino for file in path.iterdir()}
    assert (own, renamed, folder, removed) == (path.stat().st_ino, "rename", tmp_path.stat().st_ino, "remove")


def test_another_runs_checkpoint_is_on_the_disk_before_those_it_replaces_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    write(folder, 3)
    path = write(tmp_path / "other", 5)
    with on_the_disk(monkeypatch) as events:
        ckpt.adopt(folder, path)
    remove_torn, *files, own, renamed, synced, torn, removed, named, synced_again = events
    copy = folder / path.name
    assert len(files) == 3 and set(files) == {file.stat().st_ino for file in copy.iterdir()}
    assert own == copy.stat().st_ino and synced == synced_again == folder.stat().st_ino
    assert (remove_torn, renamed, torn, removed, named) == ("remove", "rename", "rename", "remove", "rename")


def test_a_foreign_version_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "schema": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        ckpt.read(path)


def test_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / "model.pt").write_bytes(b"PK\x03\x04garbage")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ckpt.read(path).model_state()


@pytest.fixture
def stale(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A place where a network file system has lost its server: so many more reads of a checkpoint's files fail."""
    left = [0]
    stat = Path.stat

    def lost(self: Path, **kwargs: Any) -> os.stat_result:
        if left[0] > 0 and self.suffix in (".json", ".pt"):
            left[0] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return stat(self, **kwargs)

    monkeypatch.setattr(Path, "stat", lost)
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_S", 0.02)
    yield left
    left[0] = 0


def test_storage_that_is_disturbed_is_waited_for(
    tmp_path: Path, stale: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(retry.VARIABLE, raising=False)
    write(tmp_path, 1)
    stale[0] = 3
    found = ckpt.find(tmp_path)
    assert stale[0] == 0 and found is not None
    stale[0] = 3
    assert found.train_state() == {"n": 1} and stale[0] == 0


def test_storage_that_stays_disturbed_is_no_reason_to_delete_a_checkpoint(
    tmp_path: Path, stale: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    found = ckpt.find(tmp_path)
    assert found is not None
    monkeypatch.setenv(retry.VARIABLE, "0.05")
    for read in (lambda: ckpt.find(tmp_path), found.model_state):
        stale[0] = 10**6
        with pytest.raises(StorageError, match=r"cannot be read: .*it stayed so for") as caught:
            read()
        assert "elete" not in str(caught.value)


@pytest.mark.parametrize("name", ["meta.json", "model.pt"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 1)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(LtcoreError, match=f"{name} is no plain file"):
        ckpt.read(path).model_state()


def test_pickled_code_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, ("true",)

    path = write(tmp_path, 1)
    torch.save({"w": Evil()}, path / "model.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ckpt.read(path).model_state()


def test_another_configuration_is_refused_with_the_key(tmp_path: Path) -> None:
    found = ckpt.read(write(tmp_path, 1))
    check_same_run(found, {**META["config"], "tracking.wandb": False}, "a" * 64)
    with pytest.raises(CheckpointError, match=r"train.epochs: 3 there, 5 now"):
        check_same_run(found, {**META["config"], "train.epochs": 5}, "a" * 64)
    with pytest.raises(CheckpointError, match="data"):
        check_same_run(found, META["config"], "b" * 64)


def test_a_place_without_checkpoint_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected meta\.json"):
        ckpt.read(tmp_path)


@pytest.mark.parametrize("moment", range(9))
def test_another_runs_checkpoint_takes_the_place_of_all_and_there_is_one_at_any_moment(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill before each of the operations on the disk, or within it where it removes."""
    folder, source = tmp_path / "checkpoints", tmp_path / "other"
    for tag, step in (("best", 3), ("last", 7)):
        write(folder, step, tag)
    write(source, 5)
    left, remove = [None] * moment, shutil.rmtree

    class Killed(BaseException):
        pass

    def counted(act: Any) -> Any:
        def counting(*args: Any, **options: Any) -> Any:
            if not left and act is remove:
                (args[0] / "model.pt").unlink(missing_ok=True)
            if not left:
                raise Killed
            left.pop()
            return act(*args, **options)

        return counting

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(ckpt.shutil, "rmtree", counted(remove))
        patch.setattr(ckpt.shutil, "copytree", counted(shutil.copytree))
        patch.setattr(Path, "rename", counted(Path.rename))
        ckpt.adopt(folder, source / "last-00000005")
    found = ckpt.find(folder)
    assert found is not None and found.meta["step"] in (5, 7) and found.model_state()
    ckpt.adopt(folder, source / "last-00000005")
    assert [path.name for path in folder.iterdir()] == ["last-00000005"]
