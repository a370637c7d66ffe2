"""Bounds of single files, struck from both sides: what has as much as there may be is read, what has more is refused by name."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets import coco_objects, parquet, tar_classes
from ltcore.data.datasets.coco_objects import CocoObjects, read_objects
from ltcore.data.datasets.parquet import Parquet
from ltcore.data.datasets.tar_places import find_tars
from ltcore.data.datasets.web_dataset import WebDataset
from ltcore.data.shards import manifest as manifests
from ltcore.data.shards.manifest import MANIFEST, read_manifest
from ltcore.data.shards.source import Indexed
from ltcore.errors import ConfigError, DataError
from ltcore.limits import MAX_CLASSES_BYTES, MAX_FOOTER_BYTES, MAX_KEY_CHARS, MAX_TAR_DEPTH
from ltcore.training import class_words as words_of_classes
from ltcore.training.class_words import class_words
from tests.coco import ATTRIBUTES, COUNTS, write_coco
from tests.data.small import tiny_png
from tests.tars import picture, pictures, write_tar, write_tars


def refused(act: Callable[[], Any], words: str, kind: type[Exception] = DataError) -> None:
    with pytest.raises(kind, match=words) as found:
        act()
    assert "\n" not in str(found.value)


def test_column_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four row groups of two columns."""
    table = pa.table({"image": [tiny_png(n) for n in range(8)], "label": ["ant", "bee"] * 4})
    pq.write_table(table, file := tmp_path / "train.parquet", row_group_size=2)
    monkeypatch.setattr(parquet, "MAX_COLUMN_CHUNKS", 8)
    assert len(Parquet(DataConfig(uri=str(file))).layout.splits["train"]) == 8
    monkeypatch.setattr(parquet, "MAX_COLUMN_CHUNKS", 7)
    refused(
        lambda: Parquet(DataConfig(uri=str(file))),
        r"train\.parquet has \d+ bytes and claims 8 rows in 4 groups of 2 columns; expected .* and 7 columns of groups\. Copy or",
    )


def test_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"image": [tiny_png(n) for n in range(8)], "label": ["ant", "bee"] * 4})
    pq.write_table(table, file := tmp_path / "train.parquet")
    count = int.from_bytes(file.read_bytes()[-8:-4], "little")
    monkeypatch.setattr(parquet, "MAX_FOOTER_BYTES", count)
    assert len(Parquet(DataConfig(uri=str(file))).layout.splits["train"]) == 8
    monkeypatch.setattr(parquet, "MAX_FOOTER_BYTES", count - 1)
    refused(
        lambda: Parquet(DataConfig(uri=str(file))),
        rf"train\.parquet has a footer of {count} bytes, expected at most {count - 1}\. Write the file again",
    )


def test_a_footer_of_the_hub_has_room(tmp_path: Path) -> None:
    """A million images in row groups of a hundred, as the Hub writes them."""
    images = pa.array([{"bytes": bytes([n]), "path": f"{n:08d}.jpg"} for n in range(100)])
    table = pa.table({"image": images, "label": pa.array(np.arange(100))})
    with pq.ParquetWriter(tmp_path / "t.parquet", table.schema) as writer:
        for _ in range(100):
            writer.write_table(table)
    assert pq.read_metadata(tmp_path / "t.parquet").serialized_size * 100 < MAX_FOOTER_BYTES


def read_coco(folder: Path) -> CocoObjects:
    notes = folder / "annotations"
    return read_objects(sorted(notes.glob("instances_*.json")), notes / "cocottributes.json")


@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("cocottributes.json", "ann_vecs", sum(COUNTS.values())),
        ("instances_train2014.json", "annotations", sum(COUNTS.values()) + 7),
    ],
)
def test_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, name: str, count: int) -> None:
    """Of COCO Attributes, and annotations of COCO, of which most are of objects without attributes."""
    write_coco(tmp_path)
    if name == "annotations":
        (path := tmp_path / "annotations" / file).write_text(json.dumps(with_annotations(path, count)))
    monkeypatch.setattr(coco_objects, "MAX_OBJECTS", count)
    assert len(read_coco(tmp_path).keys) == sum(COUNTS.values())
    monkeypatch.setattr(coco_objects, "MAX_OBJECTS", count - 1)
    refused(
        lambda: read_coco(tmp_path),
        rf"{file} has more than {count - 1} {name}, expected those of COCO\. Check that it is the right file\.",
    )


@pytest.mark.parametrize(("changes", "part_bytes"), [(640 * 480, coco_objects._PART_BYTES), (3, 1)])
def test_what_annotations_of_coco_may_hold_besides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: int, part_bytes: int
) -> None:
    """A mask that changes with every pixel, captions, and parts in which no text is whole."""
    write_coco(tmp_path)
    first = read_coco(tmp_path)
    more = {
        "segmentation": {"counts": [1] * changes, "size": [480, 640]},
        "caption": '[{"\\\N{GRINNING FACE}": ',
        "rest": None,
    }
    for file in (tmp_path / "annotations").glob("instances_*.json"):
        tree = json.loads(file.read_text())
        tree["annotations"][0].update(more)
        file.write_text(json.dumps({"info": [[], {"annotations": [{}], "categories": 1}], "licenses": "[", **tree}))
    monkeypatch.setattr(coco_objects, "_PART_BYTES", part_bytes)
    again = read_coco(tmp_path)
    assert (again.keys, again.classes, again.attributes, again.boxes) == (
        first.keys,
        first.classes,
        first.attributes,
        first.boxes,
    )
    assert np.array_equal(again.labels_N, first.labels_N) and np.array_equal(again.positive_NA, first.positive_NA)


def with_annotations(path: Path, count: int) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_text())
    notes = tree["annotations"]
    notes += [{**notes[-1], "id": 10**6 + n} for n in range(count - len(notes))]
    return tree


def test_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path)
    monkeypatch.setattr(coco_objects, "MAX_ATTRIBUTES", len(ATTRIBUTES))
    assert read_coco(tmp_path).attributes == ATTRIBUTES
    monkeypatch.setattr(coco_objects, "MAX_ATTRIBUTES", len(ATTRIBUTES) - 1)
    refused(
        lambda: read_coco(tmp_path), r"cocottributes\.json has more than 4 attributes, expected those of COCO\. Check"
    )


def with_names(folder: Path, kind: str, count: int) -> WebDataset:
    """Tars of two classes beside a file with so many names."""
    write_tars(folder / "train-%d.tar", pictures(4))
    names = [f"c{n}" for n in range(count)]
    if kind == "classes.txt":
        (folder / kind).write_text("\n".join(names))
    else:
        (folder / kind).write_text(json.dumps({"features": {"label": {"_type": "ClassLabel", "names": names}}}))
    return WebDataset(DataConfig(uri=str(folder)))


@pytest.mark.parametrize("kind", ["classes.txt", "dataset_info.json"])
def test_classes_beside_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(tar_classes, "MAX_CLASSES", 5)
    (tmp_path / "at").mkdir()
    (tmp_path / "beyond").mkdir()
    assert len(with_names(tmp_path / "at", kind, 5).classes.names) == 5
    refused(
        lambda: with_names(tmp_path / "beyond", kind, 6),
        rf"beyond/{kind} has 6 names, 6 of them different; expected 1 to 5 different ones, a line each\. Correct or remove it",
    )


@pytest.mark.parametrize(("what", "count"), [("classes", 3), ("attributes", 1)])
def test_classes_of_a_manifest(small: Path, monkeypatch: pytest.MonkeyPatch, what: str, count: int) -> None:
    raw = json.loads((small / MANIFEST).read_text())
    raw["attributes"] = ["x", "y", "z", "w"][: 1 if what == "classes" else 4]
    (small / MANIFEST).write_text(json.dumps(raw))
    most = 3 if what == "classes" else 4
    monkeypatch.setattr(manifests, "MAX_CLASSES", most)
    assert len(getattr(read_manifest(str(small)), what)) == most
    manifests.forget()
    monkeypatch.setattr(manifests, "MAX_CLASSES", most - 1)
    refused(
        lambda: read_manifest(str(small)),
        rf"manifest\.json: there are {most} {what}, expected at most {most - 1}\. Make the data set again\.",
    )


def padded(text: str, size: int) -> bytes:
    return text.encode().ljust(size, b"\n")


def test_bytes_of_a_file_of_classes_beside_tars(tmp_path: Path) -> None:
    write_tars(tmp_path / "train-%d.tar", pictures(4))
    file = tmp_path / "classes.txt"
    file.write_bytes(padded("ant\nbee", MAX_CLASSES_BYTES))
    assert WebDataset(DataConfig(uri=str(tmp_path))).classes.names == ("ant", "bee")
    file.write_bytes(padded("ant\nbee", MAX_CLASSES_BYTES + 1))
    refused(
        lambda: WebDataset(DataConfig(uri=str(tmp_path))),
        rf"classes\.txt is larger than {MAX_CLASSES_BYTES} bytes\.",
    )


def test_bytes_of_words_for_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_of_classes, "MAX_CLASSES_BYTES", 100)
    file = tmp_path / "words.csv"
    file.write_bytes(padded("n1,ant\nn2,bee", 100))
    assert class_words(str(file), ["n1", "n2"])[0] == ["ant", "bee"]
    file.write_bytes(padded("n1,ant\nn2,bee", 101))
    refused(
        lambda: class_words(str(file), ["n1", "n2"]),
        r"model\.text\.names=.*words\.csv has more than 100 bytes\. Leave out what is no class",
        ConfigError,
    )


def test_characters_of_a_key(tmp_path: Path) -> None:
    members = [
        (f"{key}.{ext}", data)
        for label, key in enumerate(("a", "b" * MAX_KEY_CHARS, "c" * (MAX_KEY_CHARS + 1)))
        for ext, data in (("png", picture(label, 0)), ("cls", b"%d" % label))
    ]
    write_tar(tmp_path / "at" / "train.tar", members[:4], tarfile.PAX_FORMAT)
    write_tar(tmp_path / "beyond" / "train.tar", members, tarfile.PAX_FORMAT)

    def index(folder: str) -> Indexed:
        return WebDataset(DataConfig(uri=str(tmp_path / folder), val_per_class=0)).index()

    keys = [key for tars in index("at").splits.values() for tar in tars for key in tar.index["key"].to_pylist()]
    assert sorted(keys) == ["a", "b" * MAX_KEY_CHARS]
    refused(
        lambda: index("beyond"),
        rf"train\.tar: c+.* has a name of {MAX_KEY_CHARS + 1} characters, expected at most {MAX_KEY_CHARS}",
    )


def test_folders_around_a_tar(tmp_path: Path) -> None:
    deepest = tmp_path / "set" / "/".join("abcd")
    assert len("abcd") == MAX_TAR_DEPTH
    deepest.mkdir(parents=True)
    write_tars(tmp_path / "set" / "a" / "train-%d.tar", pictures(2))
    write_tars(deepest / "train-%d.tar", pictures(2, first=2))
    uri = str(tmp_path / "set")
    assert [tar.path for tar in find_tars(uri)] == ["a/b/c/d/train-0.tar", "a/train-0.tar"]
    (deepest / "e" / "logs").mkdir(parents=True)
    assert len(find_tars(uri)) == 2, "no tar lies too deep"
    write_tars(deepest / "e" / "train-%d.tar", pictures(2, first=4))
    refused(
        lambda: find_tars(uri),
        rf"lies more than {MAX_TAR_DEPTH} folders below the one that was named\. Name a folder nearer",
    )
    assert len(find_tars(f"{uri}/a")) == 3
