"""Predictions of any number of images, batch by batch and in order; an image that cannot be read is a row with a reason.

Threads read and decode a few batches ahead of the network, so memory does not grow with the number of images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ltcore.data.datasets.inputs import Item
from ltcore.data.images.decode import Pixels
from ltcore.data.loading.loader import MAX_THREADS
from ltcore.data.loading.prefetch import prefetch
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from ltcore.training.predictor import Predictor, batches

AHEAD = 4
"""Batches that are read and decoded before they are needed."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of some images. Shapes: B images, k classes for each, C classes of the network."""

    files: Sequence[str]
    """[B] path of a file, or key of a sample in shards."""
    labels: Sequence[str | None]
    """[B] class, where it is known."""
    errors: Sequence[str | None]
    """[B] why an image could not be read; its numbers below mean nothing then."""
    classes_Bk: npt.NDArray[np.int64]
    """The most probable classes, the most probable first."""
    probabilities_Bk: npt.NDArray[np.float32]
    logits_BC: npt.NDArray[np.float32] | None
    """Only where they were asked for."""
    split: str = ""
    first_index: int = -1
    """Of a data set: the split and the index in it of the first row; rows follow each other."""

    def __len__(self) -> int:
        return len(self.files)


def predict_items(
    predictor: Predictor, items: Iterable[Item], *, top_k: int = 1, logits: bool = False
) -> Iterator[Predictions]:
    """Yields the predictions of images in their order."""

    def load(batch: Sequence[Item]) -> Loaded:
        files, labels = [item.file for item in batch], [item.label for item in batch]
        canvases, errors = _decoded(predictor, [(item.read, item.file) for item in batch])
        return Loaded(files, labels, canvases, errors)

    for loaded in prefetch(load, batches(items, predictor.batch_size), ahead=AHEAD, threads=_threads()):
        yield predicted(predictor, loaded, top_k, logits)


def predict_split(
    predictor: Predictor, store: ShardStore, split: str, *, top_k: int = 1, logits: bool = False
) -> Iterator[Predictions]:
    """Yields the predictions of a split in index order, every row once.

    Raises DataError where rows are lost, doubled or exchanged.
    """
    rows = store.manifest.split(split).num_samples
    keys = itertools.chain.from_iterable(store.keys_by_shard(split))
    spans = (range(first, min(first + predictor.batch_size, rows)) for first in range(0, rows, predictor.batch_size))
    parts = ((span, list(itertools.islice(keys, len(span)))) for span in spans)

    def load(part: tuple[range, Sequence[str]]) -> Loaded:
        return load_rows(store, split, *part, predictor)

    loaded = prefetch(load, parts, ahead=AHEAD, threads=_threads())
    yield from in_order((predicted(predictor, each, top_k, logits) for each in loaded), split, rows)


def in_order(parts: Iterable[Predictions], split: str, rows: int) -> Iterator[Predictions]:
    """Passes on the predictions of a split.

    Raises DataError unless they are of all its rows, each once, in index order.
    """
    expected = 0
    for part in parts:
        if part.first_index != expected:
            raise DataError(f"Predictions of split {split!r}: row {expected} is missing, {part.first_index} came.")
        expected += len(part)
        yield part
    if expected != rows:
        raise DataError(f"Predictions of split {split!r} end after {expected} rows; the manifest has {rows}.")


@dataclass(frozen=True)
class Loaded:
    """Images that are read and decoded; the fields are those of ``Predictions``."""

    files: Sequence[str]
    labels: Sequence[str | None]
    canvases_B3SS: npt.NDArray[np.uint8]
    """Of five crops [B, 5, 3, S, S]."""
    errors: Sequence[str | None]
    split: str = ""
    first_index: int = -1


def load_rows(store: ShardStore, split: str, span: range, keys: Sequence[str], predictor: Predictor) -> Loaded:
    """Reads and decodes consecutive rows of a split, whose keys are at hand."""

    def reader(index: int) -> Callable[[], bytes]:
        return lambda: store.read_rows(split, np.array([index]))[0]

    classes = store.manifest.classes
    labels = [classes[label] for label in store.labels_of(split, np.arange(span.start, span.stop)).tolist()]
    where = f"{store.uri}: {split}/"
    canvases, errors = _decoded(
        predictor, [(reader(index), f"{where}{key}") for index, key in zip(span, keys, strict=True)]
    )
    return Loaded(keys, labels, canvases, errors, split, span.start)


def predicted(predictor: Predictor, loaded: Loaded, top_k: int, logits: bool) -> Predictions:
    """Returns the predictions of images that are decoded."""
    logits_BC = predictor.logits(torch.from_numpy(loaded.canvases_B3SS))
    values_Bk, classes_Bk = logits_BC.softmax(1).topk(min(top_k, len(predictor.classes)))
    return Predictions(
        files=loaded.files,
        labels=loaded.labels,
        errors=loaded.errors,
        classes_Bk=classes_Bk.numpy(),
        probabilities_Bk=values_Bk.numpy(),
        logits_BC=logits_BC.numpy() if logits else None,
        split=loaded.split,
        first_index=loaded.first_index,
    )


def _decoded(
    predictor: Predictor, images: Sequence[tuple[Callable[[], bytes], str]]
) -> tuple[npt.NDArray[np.uint8], list[str | None]]:
    """Returns the canvases of images, given as (read, name), and what is wrong with each; its canvas is black then."""
    canvases_B3SS = np.zeros((len(images), *predictor.canvas_shape), np.uint8)
    errors: list[str | None] = [None] * len(images)
    for n, (read, name) in enumerate(images):
        try:
            canvas: Pixels = predictor.decode(read(), name)
            canvases_B3SS[n] = canvas
        except DataError as error:
            errors[n] = str(error)
    return canvases_B3SS, errors


def _threads() -> int:
    return min(MAX_THREADS, max(2, torch.get_num_threads()))
