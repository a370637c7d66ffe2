"""Files among the images that are none: skipped, counted and said in one line, never an error and never in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets.folder_layout import read_folders
from ltcore.data.datasets.image_root import open_root
from ltcore.data.datasets.prepare import make, prepare
from ltcore.data.datasets.skipped import kinds_words, skipped_words
from ltcore.data.shards.manifest import SKIPPED, read_manifest
from ltcore.data.shards.remarks import remarks
from ltcore.data.shards.validate import describe
from ltcore.errors import DataError
from tests.data.folders import PACKS, images, place
from tests.data.small import tiny_png

ANY_PACK = pytest.mark.parametrize("pack", PACKS)
SPLITS = images("train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog")
OTHERS = {
    "README.txt": "README.txt",
    "labels.csv": "labels.csv",
    "LICENSE": "LICENSE",
    "train/notes.md": "train/notes.md",
    "train/cat/GT-00000.csv": "train/cat/GT-00000.csv",
    "train/cat/0.xml": "train/cat/0.xml",
    "train/cat/film.mp4": "train/cat/film.mp4",
    "train/cat/photo.jpg.part": "train/cat/photo.jpg.part",
    "train/cat/nothing": "train/cat/nothing",
    "train/cat/jpg": "train/cat/jpg",
    "train/cat/.DS_Store": "train/cat/.DS_Store",
    "train/cat/._0.png": "train/cat/._0.png",
    "train/cat/Thumbs.db": "train/cat/Thumbs.db",
    "train/cat/thumbs.db": "train/cat/thumbs.db",
    "train/cat/ehthumbs.db": "train/cat/ehthumbs.db",
    "train/cat/desktop.ini": "train/cat/desktop.ini",
    "train/cat/Icon\r": "train/cat/Icon\\r",
    "train/cat/@eaDir/0.jpg": "train/cat/@eaDir/",
    "__MACOSX/train/cat/0.png": "__MACOSX/",
    ".git/objects/ab.png": ".git/",
    "train/cat/labels/0.txt": "train/cat/labels/0.txt",
    "docs/guide.md": "docs/guide.md",
    "raw/0.cr2": "raw/0.cr2",
}


@ANY_PACK
@pytest.mark.parametrize("name", OTHERS)
def test_one_file_that_is_no_image_is_skipped_and_named(tmp_path: Path, name: str, pack: str) -> None:
    layout = read_folders(open_root(place(tmp_path, SPLITS | {name: b"x"}, pack)))
    assert {split: len(entries) for split, entries in layout.splits.items()} == {"train": 10, "val": 10, "test": 10}
    one = "1 hidden folder: " if OTHERS[name].endswith("/") else "1 file that is no image: "
    assert layout.skipped.startswith(one + OTHERS[name]) and layout.skipped.isprintable()


@ANY_PACK
def test_what_was_skipped_is_said_in_one_line_and_stored(tmp_path: Path, pack: str) -> None:
    others = [*(f"cat/{n}.xml" for n in range(3)), "cat/.DS_Store", "dog/.DS_Store", "README.md", "docs/a.txt"]
    uri = place(tmp_path, images("cat", "dog") | dict.fromkeys(others, b"x") | {"cat/@eaDir/0.png": b"x"}, pack)
    text = (
        "7 files that are no images and 1 hidden folder: 3 *.xml, 2 .DS_Store, README.md, cat/@eaDir/, docs/a.txt; "
        "no image in docs, so no class of that name"
    )
    manifest = read_manifest(prepare(DataConfig(uri=uri)))
    assert manifest.provenance[SKIPPED] == text and manifest.classes == ("cat", "dog")
    assert remarks(manifest)[0] == f"photos: skipped {text}."
    shown = describe(prepare(DataConfig(uri=uri)))
    assert shown.count("@eaDir") == 1 and f"  photos: skipped {text}.\n" in shown


def test_other_files_do_not_make_the_shards_anew(tmp_path: Path) -> None:
    uri = place(tmp_path, images("cat", "dog"))
    first = prepare(DataConfig(uri=uri))
    place(tmp_path, {"cat/.DS_Store": b"x", "notes.txt": b"x"})
    assert prepare(DataConfig(uri=uri)) == first
    elsewhere = make(DataConfig(uri=uri), str(tmp_path / "out"))
    assert SKIPPED in elsewhere.provenance and elsewhere.hash == read_manifest(first).hash
    place(tmp_path, {"cat/new.png": tiny_png(1)})
    assert prepare(DataConfig(uri=uri)) != first


EMPTY = {
    "nothing": ({"emu/": b""}, "the folder emu holds no image. Fill or remove it."),
    "system files": ({"emu/.DS_Store": b"x"}, r"the folder emu holds no image but emu/\.DS_Store\. Fill"),
    "unread formats": (
        {"emu/0.cr2": b"x", "emu/1.CR2": b"x", "emu/a.txt": b"x"},
        r"the folder emu holds no image but 2 \*\.cr2, emu/a\.txt\. Fill or remove it",
    ),
    "two": (
        {"emu/": b"", "fox/0.svg": b"x"},
        r"the folders emu, fox hold no image but fox/0\.svg\. Fill or remove them",
    ),
}


@pytest.mark.parametrize("case", EMPTY)
def test_a_class_folder_without_an_image_is_an_error(tmp_path: Path, case: str) -> None:
    files, words = EMPTY[case]
    with pytest.raises(DataError, match=words):
        read_folders(open_root(place(tmp_path, images("cat", "dog") | files)))
    inside = {f"train/{name}": data for name, data in (images("cat", "dog") | files).items()}
    with pytest.raises(DataError, match=r"the folders? train/emu.* no image"):
        read_folders(open_root(place(tmp_path, inside, name="splits")))


@ANY_PACK
def test_documents_in_a_split_are_a_class_without_images(tmp_path: Path, pack: str) -> None:
    files = images("train/cat", "train/dog") | {"train/emu/a.txt": b"x"}
    with pytest.raises(DataError, match=r"the folder train/emu holds no image but train/emu/a\.txt"):
        read_folders(open_root(place(tmp_path, files, pack)))


def test_a_folder_without_any_image_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos holds no images but 2 \*\.heics, README\.md; expected train\|val"):
        read_folders(open_root(place(tmp_path, {"cat/0.heics": b"", "dog/0.heics": b"", "README.md": b"x"})))


def test_many_kinds_are_bounded_and_hostile_names_harmless() -> None:
    words = kinds_words([f"a/x.k{n:02}" for n in range(30)] + ["b/1.xml", "b/2.xml"])
    assert words.startswith("2 *.xml, a/x.k00, ") and words.endswith(" and 23 more")
    assert skipped_words(["\x1b[2J\n.txt"]) == r"1 file that is no image: \x1b[2J\n.txt"
    assert skipped_words([]) == ""


def test_a_list_that_names_another_file_is_told_so(tmp_path: Path) -> None:
    uri = place(tmp_path, images("cat", "dog") | {"cat/a.txt": b"x"})
    (tmp_path / "train.txt").write_text("cat/0.png 0\ncat/a.txt 1\n")
    with pytest.raises(DataError, match=r"train.txt, line 2: cat/a.txt is no image in"):
        make(DataConfig(uri=uri), str(tmp_path / "out"), lists=[("train", str(tmp_path / "train.txt"))])
