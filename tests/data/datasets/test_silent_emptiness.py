"""What would be left out, counted twice or never tested in silence is taken, refused or said, before anything is trained."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets.folder_layout import read_folders
from ltcore.data.datasets.image_root import open_root
from ltcore.data.datasets.listed import read_lists
from ltcore.data.datasets.prepare import make, prepare, selection_remarks
from ltcore.data.datasets.registry import on_other_data
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.remarks import remarks
from ltcore.data.shards.validate import describe
from ltcore.data.shards.writer import WITHOUT_IMAGES
from ltcore.errors import ConfigError, DataError
from tests.data.small import tiny_png, write_small


def place(root: Path, counts: dict[str, int], pack: str = "folder") -> Path:
    """Images ``<folder>/<n>.png`` in a directory or zip; a count of 0 makes an empty folder."""
    folder = root / "set"
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            (folder / name / f"{n}.png").write_bytes(tiny_png(hash((name, n)) % 1000))
    if pack == "folder":
        return folder
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return root / "set.zip"


def each(*splits: str, count: int = 5) -> dict[str, int]:
    return {f"{split}/{name}": count for split in splits for name in ("cat", "dog")}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "valid", "test"), ["train", "val", "test"]),
        (("Train", "Val", "Test"), ["train", "val", "test"]),
        (("training", "testing"), ["train", "test"]),
        (("TRAIN", "validation"), ["train", "val"]),
        (("train", "dev"), ["train", "val"]),
    ],
)
def test_split_folders_may_have_the_names_that_people_use(
    tmp_path: Path, names: tuple[str, ...], splits: list[str]
) -> None:
    layout = read_folders(open_root(str(place(tmp_path, each(*names)))))
    assert list(layout.splits) == splits and layout.classes == ("cat", "dog")
    assert all(len(entries) == 10 for entries in layout.splits.values())


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    layout = read_folders(open_root(str(place(tmp_path, {"dev": 3, "test": 3}))))
    assert layout.classes == ("dev", "test") and list(layout.splits) == ["train"]


@pytest.mark.parametrize("pack", ["folder", "zip"])
@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (each("train", "val", "Valid"), "the folders Valid and val both mean val. Merge them."),
        (each("train", "test") | {"train/emu": 0}, "the folder train/emu holds no image. Fill or remove it."),
        (each("train") | {"test": 0}, "the folder test holds no image"),
        (each("train") | {"Valid/cat": 0, "Valid/dog": 0}, "the folder Valid holds no image"),
        ({"images": 5}, r"all training images are of one class, 'images', .*expected train.*one folder for each class"),
        ({"outer/images": 5}, "all training images are of one class, 'images'"),
        ({"train/images": 5, "test/images": 5}, "all training images are of one class, 'images'"),
    ],
)
def test_folders_that_would_be_lost_or_are_a_level_too_high_are_refused(
    tmp_path: Path, counts: dict[str, int], words: str, pack: str
) -> None:
    uri = str(place(tmp_path, counts, pack))
    with pytest.raises(DataError, match=words):
        prepare(DataConfig(uri=uri))


def test_a_folder_that_a_link_leads_back_to_is_named_and_not_walked_for_ever(tmp_path: Path) -> None:
    folder = place(tmp_path, each("train"))
    for name in ("cat", "dog"):
        (folder / "train" / name / "up").symlink_to("..")
    with pytest.raises(DataError, match=r"train/cat/up and train are the same folder, through a link\. Remove one"):
        open_root(str(folder))


def test_a_tree_of_links_without_a_circle_ends_as_well(tmp_path: Path) -> None:
    folder = place(tmp_path, each("train"))
    for n in range(40):  # 2^40 ways to the last one
        (tmp_path / f"level{n}").mkdir()
        for side in ("a", "b"):
            (tmp_path / f"level{n}" / side).symlink_to(tmp_path / f"level{n + 1}")
    (tmp_path / "level40").mkdir()
    (folder / "train" / "emu").symlink_to(tmp_path / "level0")
    with pytest.raises(DataError, match="are the same folder, through a link"):
        open_root(str(folder))


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    elsewhere = place(tmp_path / "far", {"emu": 4})
    folder = place(tmp_path, {"cat": 4})
    (folder / "emu").symlink_to(elsewhere / "emu")
    assert len(read_folders(open_root(str(folder))).splits["train"]) == 8


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scandir = place(tmp_path, each("train")), os.scandir

    def refuses(path: Any) -> Any:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(DataError, match=r"train/dog cannot be listed \(Permission denied\)"):
        open_root(str(folder))


def lists(folder: Path, *words: str) -> list[tuple[str, str]]:
    """A list of two classes for each word, of images of its own."""
    found = []
    for number, word in enumerate(words):
        lines = [f"{name}/{n}.png {label}" for label, name in enumerate(("cat", "dog")) for n in (number,)]
        file = folder.with_name(f"{number}.txt")
        file.write_text("\n".join(lines))
        found.append((word, str(file)))
    return found


@pytest.mark.parametrize(
    ("words", "splits"),
    [
        (("train", "valid"), ["train", "val"]),
        (("Train", "validation", "Test"), ["train", "val", "test"]),
        (("training", "dev", "testing"), ["train", "val", "test"]),
        (("train", "test_cbl", "test_gbl"), ["train", "test_cbl", "test_gbl"]),
    ],
)
def test_lists_may_have_the_names_that_people_use(tmp_path: Path, words: tuple[str, ...], splits: list[str]) -> None:
    folder = place(tmp_path, {"cat": 5, "dog": 5})
    manifest = make(DataConfig(uri=str(folder)), str(tmp_path / "out"), lists=lists(folder, *words))
    assert list(manifest.splits) == splits and (manifest.provenance["test"] == "none") == (len(splits) == 2)
    assert all(split.num_samples == 2 for split in manifest.splits.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("train", "vall"),
            r"--list vall=\.\.\.: there is no such split. Did you mean val.* Known: train, training, val,",
        ),
        (("train", "holdout"), r"--list holdout=\.\.\.: there is no such split. Known: train"),
        (("train", "val", "valid"), r"--list valid=.*: there is a list for val already, .*1.txt. Merge the two"),
        (("train", "Train"), "there is a list for train already"),
    ],
)
def test_a_list_that_nobody_would_use_is_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    folder = place(tmp_path, {"cat": 5, "dog": 5})
    with pytest.raises(ConfigError, match=message):
        read_lists(open_root(str(folder)), lists(folder, *words))


def test_classes_that_no_test_is_about_are_counted_and_named(tmp_path: Path) -> None:
    counts = {"ant": 40, "bee": 10, "cat": 4, "dog": 2, "emu": 1}
    uri = prepare(DataConfig(uri=str(place(tmp_path, counts))))
    manifest = read_manifest(uri)
    assert manifest.class_counts["train"] == (26, 7, 2, 1, 1)
    assert manifest.class_counts["val"] == (6, 1, 1, 0, 0)
    assert manifest.class_counts["test"] == (8, 2, 1, 1, 0)
    assert manifest.provenance[WITHOUT_IMAGES] == {"val": ["dog", "emu"], "test": ["emu"]}
    said = [
        "set: train 37, val 8, test 12 images; val and test are carved out of training, stratified by class and keyed by "
        "path (data.val_per_class says how).",
        "set: test has no image of 1 of 5 classes (emu); val has no image of 2 of 5 classes (dog, emu): their accuracy "
        "cannot be measured there.",
    ]
    assert remarks(manifest) == said
    assert all(f"  {line}\n" in describe(uri) for line in said) and WITHOUT_IMAGES not in describe(uri)


def test_many_classes_are_counted_and_the_first_named(tmp_path: Path) -> None:
    uri = prepare(DataConfig(uri=str(place(tmp_path, {"big": 10, **{f"c{n}": 1 for n in range(9)}}))))
    assert remarks(read_manifest(uri))[-1] == (
        "set: test and val have no image of 9 of 10 classes (c0, c1, c2, c3, c4 and 4 more): their accuracy cannot be "
        "measured there."
    )


def test_data_without_any_test_say_so_and_whole_data_say_nothing(tmp_path: Path, tiny_shards: str) -> None:
    uri = prepare(DataConfig(uri=str(place(tmp_path, {"cat": 1, "dog": 1}))))
    assert remarks(read_manifest(uri)) == ["set: there are no test images, so nothing will be tested."]
    assert remarks(read_manifest(tiny_shards)) == []


def test_a_selection_says_how_many_images_of_how_many_are_used(tmp_path: Path) -> None:
    cfg = DataConfig(uri=str(place(tmp_path, each("train", "test", count=20))), imbalance_factor=10, val_per_class=2)
    manifest = make(cfg, str(tmp_path / "out"))
    said = "set-if10-keyed: 22 of 40 training images are used (data.imbalance_factor=10)."
    assert selection_remarks(cfg, manifest)[0] == said and f"  {said}\n" in describe(str(tmp_path / "out"))
    made = DataConfig(uri=str(tmp_path / "out"), imbalance_factor=10)
    assert selection_remarks(made, manifest)[0] == said  # what is asked for is what they are
    other = DataConfig(uri=str(tmp_path / "out"), imbalance_factor=50)
    with pytest.raises(
        ConfigError, match=r"data.imbalance_factor=50 has no effect on .*out, finished shards whose factor is 10"
    ):
        selection_remarks(other, manifest)


def test_a_factor_on_shards_that_were_made_without_one_is_refused(small: Path) -> None:
    with pytest.raises(ConfigError, match=r"finished shards whose factor is None"):
        selection_remarks(DataConfig(uri=str(small), imbalance_factor=100), write_small(small))


def test_other_data_than_a_run_was_trained_on_are_evaluated_as_they_are() -> None:
    trained = DataConfig(uri="cifar100", imbalance_factor=100, subset="legacy", val_per_class=3)
    assert on_other_data(trained, "photos") == DataConfig(uri="photos", val_per_class=3)
    assert on_other_data(trained, "cifar100") == trained
    assert on_other_data(trained, "cifar10") == DataConfig(
        uri="cifar10", imbalance_factor=100, subset="legacy", val_per_class=3
    )
    photos = DataConfig(uri="photos", imbalance_factor=4)
    assert on_other_data(photos, "photos") == photos and on_other_data(photos, "photos2").imbalance_factor is None
