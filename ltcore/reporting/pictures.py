"""Small pictures of the images that a run was trained and tested on, read from its shards and embedded in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ltcore.config.trained_with import TrainedData
from ltcore.errors import DataError
from ltcore.evaluation.confused import keyed_choice
from ltcore.storage import is_local

if TYPE_CHECKING:
    from PIL import Image

    from ltcore.data.shards.reader import ShardStore

SIDE_PX = 96
"""Longest side of a picture."""
MAX_PAGE_BYTES = 1_400_000
"""Of all pictures of a page, as text."""


@dataclass(frozen=True)
class Picture:
    """An image of the data as a page shows it."""

    key: str
    """Of the sample, by which it is found again."""
    source: str
    """A ``data:`` URI."""


class Pictures:
    """The pictures of one page, up to its size; none where the data are gone or are others."""

    def __init__(self, data: TrainedData, train_split: str) -> None:
        self._train_split = train_split
        self._left_bytes = MAX_PAGE_BYTES
        self._keys: dict[str, list[str]] = {}
        self.store: ShardStore | None = None
        self.problem = ""
        """Why there are no pictures, in one sentence; '' where there are."""
        try:
            self.store, self.problem = _open(data)
        except DataError as error:
            self.give_up(error)

    def of(self, split: str, indexes: Sequence[int]) -> list[Picture]:
        """Returns the pictures of samples of a split."""
        return list(self.by_index(split, indexes).values())

    def by_index(self, split: str, indexes: Sequence[int], side_px: int = SIDE_PX) -> dict[int, Picture]:
        """Returns the pictures of samples of a split, at most ``side_px`` long, by index; those that have no room are missing."""
        if self.store is None:
            return {}
        try:
            return self._read(self.store, split, indexes, side_px)
        except DataError as error:
            self.give_up(error)
            return {}

    def of_training(self, label: int, most: int) -> list[Picture]:
        """Returns pictures of a class as the run was taught it."""
        if self.store is None:
            return []
        try:
            members = np.flatnonzero(self.store.labels(self._train_split) == label).tolist()
        except DataError as error:
            self.give_up(error)
            return []
        return self.of(self._train_split, keyed_choice(members, most, self._train_split))

    def give_up(self, error: DataError) -> None:
        """Goes on without pictures, because the data cannot be read."""
        self.store, self.problem = None, f"Without pictures, because the data cannot be read: {error}"

    def _read(self, store: ShardStore, split: str, indexes: Sequence[int], side_px: int) -> dict[int, Picture]:
        number = store.manifest.split(split).num_samples
        inside = [index for index in indexes if 0 <= index < number]  # run.json may have been edited
        if split not in self._keys:
            self._keys[split] = store.keys(split)
        pictures = {}
        for index, data in zip(inside, store.read_rows(split, np.array(inside, np.int64)), strict=True):
            source = _data_uri(data, store.where(split, index), side_px)
            if len(source) <= self._left_bytes:
                self._left_bytes -= len(source)
                pictures[index] = Picture(self._keys[split][index], source)
        return pictures


def _open(data: TrainedData) -> tuple[ShardStore | None, str]:
    """Returns the shards of a run, or why there are none."""
    from ltcore.data.shards.reader import ShardStore

    if not is_local(data.uri):  # whole shards would be downloaded for a few images
        return None, f"Without pictures: the data are in an object store, {data.uri}."
    store = ShardStore(data.uri)
    if store.manifest.hash != data.hash:
        return None, f"Without pictures: {data.uri} holds other data now than those that the run was trained on."
    return store, ""


def thumbnail(data: bytes, where: str, side_px: int) -> Image.Image:
    """Decodes an image and makes it at most ``side_px`` long; one that is small already keeps its size.

    Raises DataError that begins with ``where`` for what is no image.
    """
    from PIL import Image

    from ltcore.data.images.decode import decode_image

    image = Image.fromarray(np.ascontiguousarray(decode_image(data, where).transpose(1, 2, 0)))
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return image


def _data_uri(data: bytes, where: str, side_px: int) -> str:
    """Returns an image as a small JPEG."""
    return jpeg_uri(thumbnail(data, where, side_px))


def jpeg_uri(image: Image.Image) -> str:
    """Returns an image as a JPEG in a ``data:`` URI."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
