"""Pictures of a data set: which there are, that they stay the same, and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from ltcore.reporting.data_pictures import write_pictures
from ltcore.reporting.grid_columns import grid_columns
from ltcore.reporting.sample_grid import sample_grid
from ltcore.reporting.split_counts import count_split
from tests.reporting import colored


def names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


def has_color(path: Path, color: tuple[int, int, int]) -> bool:
    pixels_HW3 = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return bool((np.abs(pixels_HW3 - color).max(-1) < 6).sum() > 500)


def test_every_split_has_its_pictures_and_they_stay_the_same(tmp_path: Path) -> None:
    colored.write(tmp_path / "data", counts={split: colored.COUNTS[split] for split in ("test_gbl", "train")})
    told: list[str] = []
    paths = write_pictures(str(tmp_path / "data"), str(tmp_path / "out"), told.append)
    assert told == paths and names(paths) == [
        "classes.png",
        "attributes.png",
        "classes-attributes.png",
        "samples-train.png",
        "samples-test_gbl.png",
    ]
    first = {path: Path(path).read_bytes() for path in paths}
    assert write_pictures(str(tmp_path / "data"), str(tmp_path / "out")) == paths
    assert {path: Path(path).read_bytes() for path in paths} == first
    for split in ("train", "test_gbl"):
        for label, counts_A in enumerate(colored.COUNTS[split]):
            for attribute, count in enumerate(counts_A):
                shown = has_color(tmp_path / "out" / f"samples-{split}.png", colored.color_of(label, attribute))
                assert shown == (count > 0), "an image of each cell that has one"


def test_attributes_of_one_class_alone_have_no_empty_columns(tmp_path: Path) -> None:
    """Two classes with attributes of their own: ranks are columns, so pictures are as wide as for two attributes."""
    own: dict[str, Sequence[Sequence[int]]] = {"train": ((5, 0, 1), (0, 3, 0)), "test": ((1, 0, 1), (0, 1, 0))}
    manifest = colored.write(tmp_path / "own", counts=own)
    counts = [count_split(ShardStore(str(tmp_path / "own")), split) for split in own]
    columns = grid_columns(counts[0], counts, manifest.attributes, [0, 1])
    assert columns.titles == ("majority", "second")
    grid = sample_grid(ShardStore(str(tmp_path / "own")), counts[0], [0, 1], columns)
    red, blue, green = colored.ATTRIBUTES
    assert [[(cell.name, cell.count) for cell in row.cells] for row in grid.rows] == [
        [(red, 5), (green, 1)],
        [(blue, 3)],
    ]
    write_pictures(str(tmp_path / "own"), str(tmp_path / "out"))
    for split, counts_CA in own.items():
        for label, counts_A in enumerate(counts_CA):
            for attribute, count in enumerate(counts_A):
                shown = has_color(tmp_path / "out" / f"samples-{split}.png", colored.color_of(label, attribute))
                assert shown == (count > 0)


def test_without_attributes_there_are_none_of_them(tmp_path: Path) -> None:
    colored.write(tmp_path / "data", attributes=False, counts={"train": ((3,), (1,)), "test": ((1,), (0,))})
    paths = write_pictures(str(tmp_path / "data"), str(tmp_path))
    assert names(paths) == ["classes.png", "samples-train.png", "samples-test.png"]


@pytest.mark.slow
def test_many_classes_are_drawn_in_pictures_of_usual_size(tmp_path: Path) -> None:
    counts_CA = [(max(1, 60 // (c + 1)), c % 2, 0) for c in range(300)]
    counts = {"train": counts_CA, "test": [(1, 0, 0)] * 300}
    colored.write(tmp_path / "data", counts=counts, classes=[f"class {c}" for c in range(300)])
    for path in write_pictures(str(tmp_path / "data"), str(tmp_path)):
        with Image.open(path) as image:
            assert max(image.size) <= 2800


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json does not exist"):
        write_pictures(str(tmp_path / "nothing"), str(tmp_path))
