"""What a URI means in tars, and of which split each of them is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets.image_folder import ImageFolder
from ltcore.data.datasets.registry import on_other_data, recognize
from ltcore.data.datasets.tar_places import find_tars
from ltcore.data.datasets.web_dataset import WebDataset
from ltcore.errors import ConfigError, DataError

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket

pytest_plugins = ["tests.s3"]


def touch(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def found(uri: str, *, needs_train: bool = True) -> dict[str, str]:
    return {tar.path: tar.split for tar in find_tars(uri, needs_train=needs_train)}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return touch(tmp_path / "set", [f"{n:03d}.tar" for n in range(12)])


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("{000..003}.tar", range(4)),
        ("{002,007}.tar", (2, 7)),
        ("00{1,2}.tar", (1, 2)),
        ("0{0..1}0.tar", (0, 10)),
        ("*.tar", range(12)),
        ("00[2-4].tar", (2, 3, 4)),
        ("00?.tar", range(10)),
        ("{000,01*}.tar", (0, 10, 11)),
        ("005.tar", (5,)),
        ("00*.tar*", range(10)),
        ("*.{tar,tgz}", range(12)),
        ("", range(12)),
    ],
)
def test_patterns_files_and_folders_mean_tars(shards: Path, pattern: str, numbers: Iterable[int]) -> None:
    for uri in (f"{shards}/{pattern}", f"file://{shards}/{pattern}"):
        assert recognize(uri) is WebDataset
        assert found(uri) == {f"{n:03d}.tar": "train" for n in numbers}


def test_a_name_with_brackets_is_itself(tmp_path: Path) -> None:
    touch(tmp_path, ["a[1].tar", "a1.tar"])
    assert list(found(str(tmp_path / "a[1].tar"))) == ["a[1].tar"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-000.tar", "val-000.tar", "test-000.tar"), ("train", "val", "test")),
        (("train/000.tar", "validation/000.tar", "Test/000.tar"), ("train", "val", "test")),
        (("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"), ("train", "val")),
        (("split/train/0.tar", "split/valid/0.tar"), ("train", "val")),
        (("training_1.tar.gz", "testing_1.TGZ"), ("train", "test")),
        (("test/train-0.tar",), ("train",)),
        (("a.tar", "b/c.tar"), ("train", "train")),
        (("devset-trainer-1.tar",), ("train",)),
    ],
)
def test_splits_are_read_off_names_and_folders(tmp_path: Path, names: tuple[str, ...], splits: tuple[str, ...]) -> None:
    touch(
        tmp_path / "test" / "of",
        [*names, "wids.json", "README.md", "train-000.tar.idx", "a.tar.sha256", "train/._x.tar", ".cache/y.tar"],
    )
    tars = dict(zip(names, splits, strict=True))
    assert found(str(tmp_path / "test" / "of")) == tars


def test_a_folder_named_test_is_a_test_only_to_who_evaluates(tmp_path: Path) -> None:
    uri = str(touch(tmp_path / "test", ["0.tar"]))
    assert found(uri) == {"0.tar": "train"}
    assert found(uri, needs_train=False) == {"0.tar": "test"}


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, ["train/0.tar"])
    (tmp_path / "train" / "up").symlink_to("..")
    (tmp_path / "more").symlink_to("train")
    touch(tmp_path.parent / "elsewhere", ["val/1.tar"])
    (tmp_path / "val").symlink_to(tmp_path.parent / "elsewhere" / "val")
    assert found(str(tmp_path)) == {"train/0.tar": "train", "val/1.tar": "val"}


def test_class_folders_beside_a_tar_of_them_are_class_folders(tmp_path: Path) -> None:
    assert recognize(str(touch(tmp_path / "a", ["cat/0.jpg", "dog/0.jpg", "all.tar"]))) is ImageFolder
    assert recognize(str(touch(tmp_path / "b", ["train-0.tar", "preview.jpg"]))) is WebDataset
    assert recognize(str(tmp_path / "nowhere")) is ImageFolder


@pytest.mark.parametrize(
    ("names", "uri", "error", "words"),
    [
        ((), "*.tar", DataError, "there is no such tar"),
        (("0.tar",), "{0..1}.tar", DataError, "1.tar does not exist"),
        (("0.tar",), "{0..99999999999}.tar", ConfigError, "means more than 100000 tars"),
        (("0.tar",), "{0..1.tar", ConfigError, "Unbalanced braces"),
        (("train-0.tar", "x.tar"), "", DataError, "x.tar is of no split, but other tars are of train"),
        (("val-0.tar", "test-0.tar"), "", DataError, "has tars of val, test, by their names, but none of train"),
        (("a.tar.zst",), "", DataError, "a.tar.zst is no .tar and no .tar.gz"),
        (("a.tar/b",), "a.tar", DataError, "there is no such tar"),
        (("0.tar",), "s3://*/0.tar", ConfigError, "the bucket must be named"),
    ],
)
def test_what_means_no_tars_is_said_in_one_sentence(
    tmp_path: Path, names: tuple[str, ...], uri: str, error: type[Exception], words: str
) -> None:
    touch(tmp_path, names)
    with pytest.raises(error, match=words):
        find_tars(uri if "://" in uri else f"{tmp_path}/{uri}")


def test_commands_are_not_run(tmp_path: Path) -> None:
    command = f"pipe:touch {tmp_path}/x; curl https://example.org/0.tar"
    with pytest.raises(ValueError, match="uri is a command"):
        DataConfig(uri=command)
    with pytest.raises(ConfigError, match=r"data\.uri is a command"):
        on_other_data(DataConfig(), command)


def test_tars_in_a_store(bucket: Bucket) -> None:
    for name in ("d/train-000.tar", "d/train-001.tar", "d/deep/train-002.tar", "d/val-000.tar", "d/wids.json"):
        bucket.put(name, b"x")
    uri = f"{bucket.uri}/d"
    assert recognize(uri) is recognize(f"{uri}/*.tar") is WebDataset
    assert found(f"{uri}/train-*.tar") == {"train-000.tar": "train", "train-001.tar": "train"}
    assert found(f"{uri}/{{train-001,val-000}}.tar") == {"train-001.tar": "train", "val-000.tar": "val"}
    assert len(found(uri)) == 4 and found(f"{uri}/**/train*.tar") == {"train-002.tar": "train"}
    assert {tar.base for tar in find_tars(uri)} == {uri}
