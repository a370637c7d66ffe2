"""Names in an object store are not paths: one that climbs is refused by whatever copies it to a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

import ltcore
from ltcore import storage, stores
from ltcore.errors import DataError
from ltcore.training.fetch import fetched
from ltcore.training.stage2.source import stage1_checkpoint
from ltcore.training.sync import RunSync
from ltcore.tuning.report import of_report
from tests.peaks import within

HOSTILE = [
    "../escaped",
    "checkpoints/../../escaped",
    "/etc/escaped",
    "a//b",
    "./run.json",
    "a/./b",
    "a\\..\\b",
    "a\0b",
    "..",
]


class Evil:
    """A store that lists a name beside an ordinary run, and answers every read."""

    def __init__(self, name: str) -> None:
        self.names = ["run.json", "checkpoints/best-00000001/meta.json", "checkpoints/best-00000001/model.pt", name]

    def get_file_info(self, what: Any) -> Any:
        if isinstance(what, str):
            return pafs.FileInfo(what, pafs.FileType.Directory)
        return [pafs.FileInfo(f"bucket/run/{name}", pafs.FileType.File) for name in self.names]

    def open_input_file(self, path: str) -> Any:
        raise AssertionError(f"{path} was read")


def mirrored(uri: str, folder: Path) -> None:
    (folder / "scratch").mkdir()
    RunSync(uri, folder / "scratch").pull()


def copied(uri: str, folder: Path) -> None:
    with fetched(uri, lambda names: names):
        raise AssertionError("it was copied")


def stage1(uri: str, folder: Path) -> None:
    with stage1_checkpoint(uri, weights=True):
        raise AssertionError("it was copied")


def reported(uri: str, folder: Path) -> None:
    with fetched(uri, of_report):
        raise AssertionError("it was copied")


COPIERS: list[Callable[[str, Path], Any]] = [mirrored, copied, stage1, reported, lambda uri, _: ltcore.load(uri)]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_name_of_an_object_leaves_the_folder_that_it_is_copied_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_remote_fs", lambda *_: Evil(name))
    for number, copy in enumerate(COPIERS):
        folder = tmp_path / str(number) / "inside"
        folder.mkdir(parents=True)
        with pytest.raises(DataError, match=r"s3://bucket/run holds an object named .*, which is no path below it"):
            copy("s3://bucket/run", folder)
        assert [path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"] == []
        assert [path.name for path in folder.parent.iterdir()] == ["inside"]


def pushed(uri: str, folder: Path) -> None:
    """Copies the files the other way, to another run of the bucket."""
    (copied := folder / "bucket" / "copy").mkdir()
    sync = RunSync(f"{uri.rpartition('/')[0]}/copy", folder / "bucket" / "run")
    sync.close()
    assert (copied / "model.pt").stat().st_size == 2**27


@pytest.mark.parametrize("copy", [mirrored, pushed, lambda uri, _: list_fetched(uri)])
def test_large_files_are_not_held_in_memory(
    copy: Callable[[str, Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bucket" / "run").mkdir(parents=True)
    with (tmp_path / "bucket" / "run" / "model.pt").open("wb") as file:
        file.truncate(2**27)
    fake = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(stores, "_remote_fs", lambda *_: fake)
    with within(2**26, 10.0):
        copy("s3://bucket/run", tmp_path)


def list_fetched(uri: str) -> None:
    with fetched(uri, lambda names: names) as folder:
        assert (folder / "model.pt").stat().st_size == 2**27


def test_ordinary_names_are_none_of_these(tmp_path: Path) -> None:
    for name in ("run.json", "checkpoints/best-1/meta.json", "...", "a..b/c", ".lease/x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert len(storage.list_files(str(tmp_path))) == 5
