"""What lies below a local folder: links around in a circle end, and nothing is listed twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.parquet import Parquet
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import DataError
from ltcore.limits import MAX_DEPTH
from tests.data.small import write_small

pytestmark = pytest.mark.timeout(60)


def in_circles(folder: Path) -> None:
    """Links a folder to itself from two places, of which all paths together are endless."""
    for name in ("a", "b"):
        (folder / name).symlink_to(".")
    (folder / "itself").symlink_to("itself")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.txt").write_text("12")
    (tmp_path / "near" / "z").mkdir(parents=True)
    (tmp_path / "near" / "z" / "y.txt").write_text("3")
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "a").symlink_to("z")
    (tmp_path / "near" / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "near" / "pipe")
    in_circles(tmp_path / "near" / "z")
    found = storage.describe_files(str(tmp_path / "near"))
    assert [(info.name, info.size) for info in found] == [("a/y.txt", 1), ("link/x.txt", 2), ("z/y.txt", 1)]
    assert found[1].version == str((tmp_path / "far" / "x.txt").stat().st_mtime_ns)
    assert storage.list_files(str(tmp_path / "nothing")) == []


def test_folders_that_lie_too_deep_are_refused(tmp_path: Path) -> None:
    (tmp_path / "/".join("a" * (MAX_DEPTH + 1))).mkdir(parents=True)
    with pytest.raises(DataError, match=f"lies more than {MAX_DEPTH} folders deep"):
        storage.list_files(str(tmp_path))


def test_a_data_set_with_links_in_circles_is_checked_to_the_end(tmp_path: Path) -> None:
    write_small(str(tmp_path / "shards"))
    in_circles(tmp_path / "shards")
    assert [problem.where for problem in check_dataset(str(tmp_path / "shards"))] == [
        "manifest.json"
    ] * 2  # no val, no test


def test_a_folder_of_parquet_with_links_in_circles_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    in_circles(tmp_path)
    with pytest.raises(DataError, match=r"train\.parquet"):
        Parquet(DataConfig(uri=str(tmp_path)))
