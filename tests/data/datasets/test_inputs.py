"""What a person names to be predicted: files, folders, zips and lists, in order, with labels where they are known."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ltcore.data.datasets.inputs import Inputs
from ltcore.errors import DataError
from tests.conftest import png

CLASSES = ("ant", "bee")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("bee/2.png", "ant/1.png", "eel/3.png", "4.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(png(rng))
    return tmp_path / "photos"


def test_a_folder_and_its_zip_give_the_same_images_with_labels_of_known_classes(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
    for word in (str(folder), f"{folder}/", str(tmp_path / "photos.zip")):
        inputs = Inputs([word], CLASSES)
        found = {item.file.removeprefix(word.rstrip("/")): (item.label, item.read()) for item in inputs}
        expected = {"/4.png": None, "/ant/1.png": "ant", "/bee/2.png": "bee", "/eel/3.png": None}
        assert {name: label for name, (label, _) in found.items()} == expected
        assert list(found) == sorted(found) and len(inputs) == 4 and inputs.labeled
        assert all(data == (folder / name[1:]).read_bytes() for name, (_, data) in found.items())
    assert not Inputs([str(folder)], ("cat",)).labeled


def test_files_come_in_the_order_given_and_missing_ones_fail_when_they_are_read(folder: Path) -> None:
    inputs = Inputs([f"{folder}/bee/2.png", f"{folder}/none.png", str(folder)], CLASSES)
    items = list(inputs)
    assert [Path(item.file).name for item in items] == ["2.png", "none.png", "4.png", "1.png", "2.png", "3.png"]
    with pytest.raises(DataError, match=r"none\.png cannot be read: No such file"):
        items[1].read()


def test_a_list_has_a_path_and_perhaps_a_label_on_each_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a b.png").write_bytes(png(np.random.default_rng(1)))
    (folder / "list.txt").write_text("ant/1.png 0\n\nbee/2.png 1\n  a b.png\r\nnone.png\n")
    items = list(Inputs([str(folder / "list.txt")], CLASSES))
    assert [item.label for item in items] == ["ant", "bee", None, None]
    assert [item.file for item in items[:3]] == [str(folder / name) for name in ("ant/1.png", "bee/2.png", "a b.png")]
    assert items[2].read() == (folder / "a b.png").read_bytes()
    monkeypatch.chdir(folder)
    (tmp_path / "list.txt").write_text("ant/1.png\n")
    assert next(iter(Inputs([str(tmp_path / "list.txt")], CLASSES))).file == "ant/1.png"


def test_a_list_as_windows_writes_it_and_names_before_positions(folder: Path) -> None:
    lines = "ant/1.png\t2\r\nbee/2.png\t0\r\n4.png 1\r\n"
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    for classes, labels in ((("0", "1", "2"), ["2", "0", "1"]), (("1", "2", "ant"), ["2", "1", "1"])):
        items = list(Inputs([str(folder / "list.txt")], classes))
        assert [item.label for item in items] == labels
        assert [Path(item.file).name for item in items] == ["1.png", "2.png", "4.png"]
    (folder / "named.txt").write_text("ant/1.png ant\nbee/2.png\teel\n")
    with pytest.raises(DataError, match=r"named\.txt, line 2: label eel, expected a class of the run by its name"):
        Inputs([str(folder / "named.txt")], CLASSES)


def test_a_folder_may_be_named_as_a_uri(folder: Path) -> None:
    assert [item.label for item in Inputs([f"file://{folder}"], CLASSES)] == [None, "ant", "bee", None]


def test_what_holds_nothing_or_is_no_list_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "label.txt").write_text("a.png 1\na.png 2\n")
    (tmp_path / "huge.txt").write_text(f"a.png {'9' * 5000}\n")
    os.mkfifo(tmp_path / "pipe.txt")
    for word, words in (
        (tmp_path / "empty", "empty holds no image"),
        (tmp_path / "empty.txt", r"empty\.txt is empty; expected a line 'path' or 'path label'"),
        (tmp_path / "label.txt", r"label\.txt, line 2: label 2, expected a class of the run by its name, or 0 to 1"),
        (tmp_path / "huge.txt", r"huge\.txt, line 1: label 99999999999999999999, expected a class"),
        (tmp_path / "none.txt", r"none\.txt cannot be read: No such file"),
        (tmp_path / "none.zip", r"none\.zip does not exist"),
        (tmp_path / "pipe.txt", r"pipe\.txt is no list"),
        ("s3://bucket/cat.png", "only shards are predicted from elsewhere"),
        ("https://host/cat.png", "only shards are predicted from elsewhere"),
    ):
        with pytest.raises(DataError, match=words):
            Inputs([str(word)], CLASSES)
