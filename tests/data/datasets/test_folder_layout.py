"""Which class and split an image is of: nested folders, folders around everything, names that are no UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets.folder_layout import read_folders
from ltcore.data.datasets.image_root import open_root
from ltcore.data.datasets.prepare import make, prepare, selection_remarks
from ltcore.data.datasets.registry import on_other_data
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import ConfigError, DataError
from tests.data.folders import PACKS, images, place
from tests.data.small import tiny_png

ANY_PACK = pytest.mark.parametrize("pack", PACKS)
NESTED = images("cats/siamese", "cats/persian", "dogs/pug", "emu")


@ANY_PACK
@pytest.mark.parametrize("splits", [("",), ("train/", "Test/")])
@pytest.mark.parametrize(
    ("classes_from", "classes"),
    [("depth", ("cats", "dogs", "emu")), ("path", ("cats/persian", "cats/siamese", "dogs/pug", "emu"))],
)
def test_nested_folders_are_classes_by_depth_or_path(
    tmp_path: Path, pack: str, splits: tuple[str, ...], classes_from: str, classes: tuple[str, ...]
) -> None:
    files = {f"{split}{name}": data for split in splits for name, data in NESTED.items()}
    layout = read_folders(open_root(place(tmp_path, files, pack)), classes_from=classes_from)
    assert layout.classes == classes and len(layout.splits) == len(splits)
    for entry in layout.splits["train"]:
        inner = entry.path.removeprefix("train/").rpartition("/")[0]
        assert classes[entry.label] == (inner if classes_from == "path" else inner.split("/")[0])


def test_nested_folders_without_a_choice_name_both(tmp_path: Path) -> None:
    words = (
        r"cats/persian/0\.png lies deeper than <class>/<image> \(and 14 more\)\. .*data\.classes_from=depth makes it 'cats', "
        r"data\.classes_from=path makes it 'cats/persian' \(make_shards\.py: --classes-from\)"
    )
    with pytest.raises(DataError, match=words):
        prepare(DataConfig(uri=place(tmp_path, NESTED)))


def test_the_choice_makes_other_shards(tmp_path: Path) -> None:
    uri = place(tmp_path, NESTED)
    by_depth, by_path = (prepare(DataConfig(uri=uri, classes_from=way)) for way in ("depth", "path"))
    assert by_depth != by_path and len(read_manifest(by_path).classes) == 4
    assert selection_remarks(DataConfig(uri=by_path, classes_from="path"), read_manifest(by_path))
    with pytest.raises(
        ConfigError, match=r"data\.classes_from=depth has no effect on .*, finished shards made with path"
    ):
        selection_remarks(DataConfig(uri=by_path, classes_from="depth"), read_manifest(by_path))


def test_a_choice_without_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes_from must be one of depth, path, got 'folder'"):
        DataConfig(classes_from="folder")
    with pytest.raises(ConfigError, match=r"data\.classes_from=path is about folders of images; digits-glt has none"):
        prepare(DataConfig(classes_from="path"))
    uri = place(tmp_path, NESTED)
    (tmp_path / "train.txt").write_text("emu/0.png 0\n")
    cfg = DataConfig(uri=uri, classes_from="path")
    with pytest.raises(ConfigError, match=r"data\.classes_from=path has no effect beside list files"):
        make(cfg, str(tmp_path / "out"), lists=[("train", str(tmp_path / "train.txt"))])
    assert on_other_data(cfg, "digits-glt").classes_from is None
    assert on_other_data(cfg, str(tmp_path)).classes_from == "path"


@ANY_PACK
@pytest.mark.parametrize("outer", ["data/", "data/version 2/"])
@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
def test_folders_around_everything_change_nothing(
    tmp_path: Path, outer: str, splits: tuple[str, ...], pack: str
) -> None:
    files = {f"{split}{name}": data for split in splits for name, data in images("cat", "dog", count=9).items()}
    wrapped = {f"{outer}{name}": data for name, data in files.items()} | {"data/README.md": b"x"}
    plain, packed = place(tmp_path, files, name="plain"), place(tmp_path, wrapped, pack, name="wrapped")
    stores = [ShardStore(prepare(DataConfig(uri=uri, val_per_class=2))) for uri in (plain, packed)]
    assert stores[0].manifest.classes == stores[1].manifest.classes == ("cat", "dog")
    for split in ("train", "val", "test"):  # the same image in the same split
        assert list(stores[0].keys(split)) == list(stores[1].keys(split))


MISFITS = {
    "beside the outer folder": ({"data/" + n: d for n, d in images("train/cat", "train/dog").items()}, "preview.png"),
    "in the outer folder": ({"data/" + n: d for n, d in images("train/cat", "test/cat").items()}, "data/preview.png"),
    "beside the splits": (images("train/cat", "train/dog"), "preview.png"),
    "in a split": (images("train/cat", "train/dog"), "train/preview.png"),
    "beside the classes": (images("cat", "dog"), "preview.png"),
    "folder beside the splits": (images("train/cat", "train/dog"), "more/cat/0.png"),
}


@ANY_PACK
@pytest.mark.parametrize("case", MISFITS)
def test_the_image_that_does_not_fit_is_named_and_no_other(tmp_path: Path, case: str, pack: str) -> None:
    files, odd = MISFITS[case]
    with pytest.raises(DataError, match=rf"photos(\.zip)?: {odd} does not fit train\|val\|test/<class>/<image>"):
        read_folders(open_root(place(tmp_path, files | {odd: tiny_png(0)}, pack)))


def test_classes_without_training_images_are_counted(tmp_path: Path) -> None:
    files = images("train/cat", "train/dog", "test/emu", "test/fox", "val/emu")
    with pytest.raises(DataError, match=r"emu/0\.png is of class 'emu' .* has no training image \(and 1 more\)\."):
        read_folders(open_root(place(tmp_path, files)))


def test_two_data_sets_side_by_side_are_told_apart_from_nested_classes(tmp_path: Path) -> None:
    files = images("2023/train/cat", "2023/test/cat", "2024/train/cat", "2024/train/dog")
    with pytest.raises(DataError, match=r"2023/test/cat/0\.png has test inside of 2023, .*Give one of the folders"):
        read_folders(open_root(place(tmp_path, files)))


def test_a_class_name_that_is_no_utf8_becomes_text(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    layout = read_folders(open_root(place(tmp_path, images(odd, "dog"))))
    assert layout.classes == (r"caf\udce9", "dog")
    manifest = read_manifest(prepare(DataConfig(uri=place(tmp_path, images(odd, "dog"), name=os.fsdecode(b"\xe9")))))
    assert manifest.classes == layout.classes and manifest.name == r"\udce9"
    for text in (manifest.name, *manifest.classes):
        text.encode()


def test_a_link_to_a_class_folder_that_is_not_there_is_no_skipped_file(tmp_path: Path) -> None:
    folder = Path(place(tmp_path, images("cat", "dog")))
    (folder / "emu").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match=r"photos: links that lead nowhere: emu\. Restore or remove them\."):
        open_root(str(folder))


def test_links_to_images_and_to_folders_are_followed(tmp_path: Path) -> None:
    far = Path(place(tmp_path, images("cat", "dog"), name="far"))
    near = tmp_path / "near"
    (near / "cat").mkdir(parents=True)
    for file in (far / "cat").iterdir():
        (near / "cat" / file.name).symlink_to(file)
    (near / "dog").symlink_to(far / "dog")
    layout = read_folders(open_root(str(near)))
    assert layout.classes == ("cat", "dog") and len(layout.splits["train"]) == 10
