"""Rows of shards as images of one size; what cannot be decoded is replaced, up to a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ltcore.data.images.decode import decode_canvas
from ltcore.data.shards.reader import _LOG, Ints, T
from ltcore.errors import DataError
from ltcore.framing import OWN_WAY, Framing
from ltcore.hashing import hash64


class RowReader(Protocol):
    """What images are decoded from: a ``ShardStore``, or the few rows of it that a task was given."""

    def labels(self, split: str) -> Ints:
        """Returns [N] label of every sample."""

    def where(self, split: str, index: int) -> str:
        """Returns file and key of a sample, for messages."""

    def read_rows(self, split: str, index_n: Ints) -> list[bytes]:
        """Reads the encoded images of the samples, in the order asked for."""


class BadSamples:
    """Undecodable training images of this process: noted, and an error once there are more than ``limit``.

    ``tell``: whether to say so once of each; a task of another process leaves that to who asked.
    """

    def __init__(self, limit: int, *, tell: bool = True) -> None:
        self.limit, self._tell = limit, tell
        self.messages: dict[int, str] = {}
        """Index in the training split -> what is wrong."""
        self._lock = threading.Lock()

    def add(self, index: int, message: str) -> None:
        """Notes a bad image. Raises DataError when it is one too many."""
        with self._lock:
            known = index in self.messages
            self.messages[index] = message
            if len(self.messages) > self.limit:
                number = f" It is number {len(self.messages)}; data.max_bad_samples={self.limit}." if self.limit else ""
                raise DataError(message + number)
            if self._tell and not known:
                count = f"{len(self.messages)} of at most {self.limit} (data.max_bad_samples)"
                _LOG.warning("%s Another image of its class takes its place: %s.", message, count)


def decode_rows(
    store: RowReader,
    split: str,
    index_n: Ints,
    image_size: int,
    bad: BadSamples | None = None,
    framing: Framing = OWN_WAY,
) -> npt.NDArray[np.uint8]:
    """Returns [n, 3, S, S] uint8 of the samples, in the order asked for; errors as for :func:`decode_each`."""
    canvases = np.empty((len(index_n), 3, image_size, image_size), np.uint8)

    def decode(data: bytes, where: str) -> npt.NDArray[np.uint8]:
        return decode_canvas(data, image_size, where, framing)

    decoded = decode_each(store, split, index_n, decode, bad)
    for position, canvas_3SS in enumerate(decoded):
        canvases[position] = canvas_3SS
    return canvases


def decode_each(
    store: RowReader, split: str, index_n: Ints, decode: Callable[[bytes, str], T], bad: BadSamples | None = None
) -> Iterator[T]:
    """Yields ``decode(encoded image, name for messages)`` of each sample, in the order asked for.

    An undecodable image raises DataError. With ``bad`` given, for training, it is noted there and another image of its
    class takes its place: the first decodable one in an order keyed by its index, so that all take the same.
    """
    for index, data in zip(index_n.tolist(), store.read_rows(split, index_n), strict=True):
        try:
            decoded = decode(data, "")
        except DataError:
            decoded = _named(store, split, index, data, decode, bad)
        yield decoded


def _named(
    store: RowReader, split: str, index: int, data: bytes, decode: Callable[[bytes, str], T], bad: BadSamples | None
) -> T:
    """Decodes the image once more, with its name for the message.

    Finding a name opens the shard, which is too slow to do for every image.
    """
    try:
        return decode(data, store.where(split, index))
    except DataError as error:
        if bad is None:
            raise
        bad.add(index, str(error))
        return _substitute(store, split, index, decode)


def _substitute(store: RowReader, split: str, index: int, decode: Callable[[bytes, str], T]) -> T:
    labels_N = store.labels(split)
    same_class = np.flatnonzero(labels_N == labels_N[index])
    for other in sorted(same_class.tolist(), key=lambda other: hash64("substitute", index, other)):
        where = store.where(split, other)
        try:
            return decode(store.read_rows(split, np.array([other]))[0], where)
        except DataError:  # bad as well; it is noted when its own turn comes
            continue
    raise DataError(f"{store.where(split, index)}: no image of class {labels_N[index]} can be decoded.")
