"""Parquet as the Hugging Face Hub has it: names of classes, splits of files, images as they are, in little memory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ltcore.data.config import DataConfig
from ltcore.data.datasets import parquet
from ltcore.data.datasets.parquet import Parquet
from ltcore.data.datasets.prepare import prepare
from ltcore.data.datasets.registry import recognize
from ltcore.data.images.decode import EXTENSIONS, FORMATS
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.source import Sample
from ltcore.errors import ConfigError, DataError
from tests.data.small import tiny_png

NAMES = ["zebra", "ant", "bee"]
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def hub(count: int, first: int = 0) -> pa.Table:
    """Images and class numbers, whose names are in the metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    schema = pa.schema(
        {"image": IMAGE, "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = [{"bytes": tiny_png(first + n), "path": "same.png"} for n in range(count)]
    return pa.table({"image": images, "label": [n % 3 for n in range(count)]}, schema=schema)


def write(folder: Path, files: dict[str, pa.Table], **options: Any) -> str:
    for name, table in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / name, **options)
    return str(folder)


def read(uri: str, **choices: Any) -> dict[str, list[Sample]]:
    source = Parquet(DataConfig(uri=uri, val_per_class=0, **choices)).source()
    return {split: list(rows) for split, rows in source.splits.items()}


def refused(uri: str, words: str, error: type[Exception] = DataError, **choices: Any) -> None:
    with pytest.raises(error, match=words) as found:
        read(uri, **choices)
    assert "\n" not in str(found.value)


HUB = {
    "data/train-00000-of-00002.parquet": hub(7),
    "data/train-00001-of-00002.parquet": hub(5, 7),
    "data/validation-00000-of-00001.parquet": hub(3, 20),
    "data/test-00000-of-00001.parquet": hub(3, 30),
}


@pytest.mark.parametrize("group", [1, 3, 1000])
def test_a_data_set_of_the_hub(tmp_path: Path, group: int) -> None:
    uri = write(tmp_path / "set", HUB, row_group_size=group)
    (tmp_path / "set" / "README.md").write_text("# A data set")
    assert recognize(uri) is Parquet
    layout = Parquet(DataConfig(uri=uri)).layout
    assert layout.classes == tuple(NAMES)
    found = read(uri)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 12, "val": 3, "test": 3}
    assert [row.image for row in found["train"]] == [tiny_png(n) for n in range(12)]
    assert [row.label for row in found["train"][:7]] == [0, 1, 2, 0, 1, 2, 0]
    keys = [row.key for rows in found.values() for row in rows]
    assert len(set(keys)) == 18 and keys[0] == "data/train-00000-of-00002/0000000"
    assert read(uri, imbalance_factor=2)["train"] == [
        row for row in found["train"] if row in read(uri, imbalance_factor=2)["train"]
    ]


@pytest.mark.parametrize("names", [("train/0.parquet", "test/0.parquet"), ("x_train.parquet", "x_test.parquet")])
def test_names_of_files_and_folders_say_the_split(tmp_path: Path, names: tuple[str, str]) -> None:
    uri = write(tmp_path / "set", dict(zip(names, (hub(6), hub(3, 9)), strict=True)))
    assert recognize(uri) is Parquet
    assert {split: len(rows) for split, rows in read(uri).items()} == {"train": 6, "test": 3}


def test_one_file_is_split_by_hash_or_by_a_column(tmp_path: Path) -> None:
    table = hub(30)
    uri = f"{write(tmp_path, {'pets.parquet': table})}/pets.parquet"
    assert {split: len(rows) for split, rows in read(uri).items()} == {"train": 24, "test": 6}
    table = table.append_column("split", pa.array(["train", "test", "train"] * 10)).append_column(
        "place", pa.array(["sea", None, "land"] * 10).dictionary_encode()
    )
    write(tmp_path, {"pets.parquet": table})
    with pytest.raises(DataError, match="has label ant, which no training image has"):
        read(uri)
    table = table.set_column(1, "label", pa.array(["b", "a"] * 15))
    write(tmp_path, {"pets.parquet": table})
    found = read(uri, attribute_column="place")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 20, "test": 10}
    assert {row.attribute for row in found["train"]} == {0, 1} and found["test"][0].attribute == -1


def test_types_of_images_are_told_by_their_content(tmp_path: Path) -> None:
    images = []
    for n, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")):
        out = io.BytesIO()
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(out, kind)
        images.append(out.getvalue())
    table = pa.table({"image": images, "label": ["a", "b", "a", "b", "a", "b", "a"]})
    write(
        tmp_path,
        {
            "train.parquet": table,
            "test.parquet": hub(0).select(["label"]).add_column(0, "image", pa.array([], pa.binary())),
        },
    )
    rows = read(str(tmp_path / "train.parquet"))
    found = {row.image: row.ext for part in rows.values() for row in part}
    assert [found[image] for image in images] == ["png", "jpg", "webp", "gif", "bmp", "tif", "ppm"]
    assert EXTENSIONS.keys() <= {*FORMATS, "MPO", "HEIF"}


def test_paths_are_relative_to_the_folder(tmp_path: Path) -> None:
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(tiny_png(n))
    table = pa.table(
        {"path": [f"{n}.png" for n in range(6)], "label": pa.array([n % 2 + 1 for n in range(6)], pa.int8())}
    )
    uri = f"{write(tmp_path, {'pets.parquet': table})}/pets.parquet"
    data = Parquet(DataConfig(uri=uri, val_per_class=0))
    assert data.layout.classes == ("1", "2") and data.layout.provenance["labels"].startswith("1 to 2")
    assert sorted(row.image for rows in read(uri).values() for row in rows) == sorted(tiny_png(n) for n in range(6))
    (tmp_path / "3.png").unlink()
    refused(uri, r"pets.parquet, row 3: there is no 3.png in")


def with_label(values: list[Any], kind: Any = None) -> dict[str, pa.Table]:
    return {"train.parquet": hub(len(values)).set_column(1, "label", pa.array(values, kind))}


BROKEN: dict[str, tuple[dict[str, pa.Table], str]] = {
    "a part is missing": (
        {"train-00000-of-00003.parquet": hub(3), "train-00002-of-00003.parquet": hub(3, 5)},
        r"2 of 3 files train-\*.parquet are there. Download",
    ),
    "no split": ({"train.parquet": hub(3), "more.parquet": hub(3)}, "the name more.parquet says no split"),
    "configurations": ({"a/train.parquet": hub(3), "b/train.parquet": hub(3)}, r"in 2 folders \(a, b\). Choose one"),
    "no labels": (with_label([0, -1, None, 1]), r"2 images have no label: train/0000001 \(.*row 1\), train/0000002"),
    "measures": (with_label([0.5, 1.5, 2.5]), "column 'label' for the label holds double, expected names or whole"),
    "numbers without names": (with_label([0, 1, 7]), "has a label 7, but names only 3 classes"),
    "no bytes": (
        {
            "train.parquet": hub(4).set_column(
                0, "image", pa.array([*hub(3)["image"].to_pylist(), {"bytes": None, "path": "a.png"}], IMAGE)
            )
        },
        "train/0000003 has no bytes of an image",
    ),
    "no image": (
        {"train.parquet": hub(3).set_column(0, "image", pa.array([tiny_png(1), tiny_png(2), b"x"]))},
        "train/0000002: the image cannot be decoded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, case: str) -> None:
    files, words = BROKEN[case]
    refused(write(tmp_path / "set", files), words)


def test_columns_and_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{write(tmp_path, {'train.parquet': hub(3).rename_columns(['pixels', 'label'])})}/train.parquet"
    refused(uri, "no column is known for the image .*It has 'pixels', 'label'", ConfigError)
    assert read(uri, image_column="pixels")
    refused(uri, "column 'label' for the image holds int64, expected encoded images", image_column="label")
    monkeypatch.setattr(parquet, "MAX_ROWS", 2)
    refused(uri, "has 3 rows, expected at most 2", image_column="pixels")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 is not all of it")
    refused(uri, "train.parquet is no readable parquet")
    refused(str(tmp_path / "none.parquet"), "holds no parquet file")


@pytest.mark.parametrize(("link", "to"), [("train/again.parquet", "train/0.parquet"), ("train2", "train")])
def test_a_file_that_is_reached_twice_does_not_count_twice(tmp_path: Path, link: str, to: str) -> None:
    uri = write(tmp_path, {"train/0.parquet": hub(3)})
    (tmp_path / link).symlink_to(tmp_path / to)
    refused(uri, "are the same file, through a link. Remove one of them")


def test_metadata_of_strangers_is_only_data(tmp_path: Path) -> None:
    for text in ("[" * 100_000, '{"info": 3}', '{"info": {"features": {"label": {"names": {"0": 1}}}}}', "\udcff"):
        raw = text.encode("utf-8", "surrogateescape")
        table = hub(6).replace_schema_metadata({b"huggingface": raw})
        uri = f"{write(tmp_path, {'train.parquet': table})}/train.parquet"
        assert Parquet(DataConfig(uri=uri)).layout.classes == ("0", "1", "2")


def test_a_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    images = [np.random.default_rng(n).bytes(200_000) for n in range(200)]
    table = pa.table({"image": pa.array(images, pa.binary()), "label": ["a", "b"] * 100})
    uri = f"{write(tmp_path, {'train.parquet': table}, row_group_size=200, write_batch_size=8)}/train.parquet"
    del table
    root, before, most = Parquet(DataConfig(uri=uri)).root, pa.total_allocated_bytes(), 0
    for path, image in zip(root.files, images, strict=True):
        assert root.read(path) == image
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 10 * 2**20
    assert root.read(root.files[3]) == images[3]  # back again


def test_the_copy_is_made_again_when_a_file_changes(tmp_path: Path) -> None:
    cfg = DataConfig(uri=write(tmp_path / "set", HUB))
    first = prepare(cfg)
    assert prepare(cfg) == first and read_manifest(first).name == "set"
    write(tmp_path / "set", {"data/test-00000-of-00001.parquet": hub(3, 40)})
    assert prepare(cfg) != first
