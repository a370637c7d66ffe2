"""A data set whose images have the color of their class and attribute, unbalanced over both in training."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ltcore.data.shards.manifest import Manifest
from ltcore.data.shards.source import Sample
from tests.shards import write_dataset

CLASSES, ATTRIBUTES = ("few", "<b>most</b>"), ("red", "<i>blue</i>", "green")
COUNTS: dict[str, Sequence[Sequence[int]]] = {
    "train": ((0, 2, 1), (20, 0, 5)),
    "val": ((1, 1, 1), (1, 1, 1)),
    "test_cbl": ((2, 1, 0), (3, 0, 0)),
    "test_gbl": ((4, 4, 4), (4, 4, 4)),
}
"""Split -> images of each attribute, class by class."""


def color_of(label: int, attribute: int) -> tuple[int, int, int]:
    return (250 - 120 * label, 60 + 80 * attribute, 40)


class Rows:
    """Images of one split; an attribute of -1 is unknown."""

    def __init__(self, split: str, counts_CA: Sequence[Sequence[int]], *, attributes: bool) -> None:
        self._split, self._counts_CA, self._attributes = split, counts_CA, attributes

    def __len__(self) -> int:
        return sum(map(sum, self._counts_CA))

    def __iter__(self) -> Iterator[Sample]:
        for label, counts_A in enumerate(self._counts_CA):
            for attribute, count in enumerate(counts_A):
                for n in range(count):
                    data = io.BytesIO()
                    Image.new("RGB", (24, 16), color_of(label, attribute)).save(data, "PNG")
                    key = f"{self._split}/{label}-{attribute}-{n}"
                    yield Sample(key, data.getvalue(), "png", label, attribute if self._attributes else -1)


def write(
    uri: Path, *, attributes: bool = True, counts: dict[str, Any] = COUNTS, classes: Sequence[str] = CLASSES
) -> Manifest:
    """Writes the data set; without attributes it has none at all."""
    splits = {split: Rows(split, counts_CA, attributes=attributes) for split, counts_CA in counts.items()}
    return write_dataset(
        uri, classes=classes, attributes=ATTRIBUTES if attributes else (), splits=splits, image_size=16
    )
