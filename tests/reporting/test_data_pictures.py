"""Pictures of a data set: which there are, that they stay the same, and what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltcore.errors import DataError
from ltcore.reporting.data_pictures import write_pictures
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


def test_without_attributes_there_are_none_of_them(tmp_path: Path) -> None:
    colored.write(tmp_path / "data", attributes=False, counts={"train": ((3,), (1,)), "test": ((1,), (0,))})
    paths = write_pictures(str(tmp_path / "data"), str(tmp_path))
    assert names(paths) == ["classes.png", "samples-train.png", "samples-test.png"]


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
