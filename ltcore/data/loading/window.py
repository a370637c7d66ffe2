"""The data task of the Ray loader. It runs in processes of its own, so it imports neither torch nor Ray."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pyarrow as pa

from ltcore.data.images.boxes import Crop
from ltcore.data.loading.crops import CropDraws, decode_crops
from ltcore.data.loading.sampler import Ints, Rows
from ltcore.data.loading.samples import BadSamples, decode_rows
from ltcore.data.shards.manifest import Shard
from ltcore.data.shards.reader import ShardFiles, ShardStore, read_by_shard
from ltcore.framing import Framing


@functools.lru_cache(maxsize=2)
def _files(uri: str, indexed: bool, cache_bytes: int) -> ShardFiles:
    return ShardFiles(uri, indexed=indexed, cache_bytes=cache_bytes)


@functools.lru_cache(maxsize=2)
def _store(uri: str, cache_bytes: int) -> ShardStore:
    return ShardStore(uri, cache_bytes=cache_bytes)


class _Part:
    """The samples of one part of a window, by their index in the split, as ``decode_each`` reads them.

    What else is asked for, to take the place of an image that cannot be decoded, comes from the whole data set.
    """

    def __init__(self, job: dict[str, Any], index_n: Ints, shards: list[Shard], shard_n: Ints, row_n: Ints) -> None:
        self._job, self._shards = job, shards
        self._files = _files(job["uri"], job["indexed"], job["cache_bytes"])
        self._shard_n, self._row_n = shard_n, row_n
        self._places = {index: place for place, index in enumerate(index_n.tolist())}

    @property
    def _whole(self) -> ShardStore:
        return _store(self._job["uri"], self._job["cache_bytes"])

    def labels(self, split: str) -> Ints:
        return self._whole.labels(split)

    def where(self, split: str, index: int) -> str:
        place = self._places.get(index)
        if place is None:
            return self._whole.where(split, index)
        return self._files.row_name(self._shards[self._shard_n[place]], int(self._row_n[place]))

    def read_rows(self, split: str, index_n: Ints) -> list[bytes]:
        places = [self._places.get(index, -1) for index in index_n.tolist()]
        if -1 in places:
            return self._whole.read_rows(split, index_n)
        return read_by_shard(self._files, self._shards, self._shard_n[places], self._row_n[places])


def read_part(rows: pa.Table, *, job: dict[str, Any]) -> dict[str, np.ndarray]:
    """Decodes one part of a window (``plan.parts``), in a data task.

    With the images come the errors of rows that were replaced, where that is allowed: the worker that receives them counts
    them.
    """
    index, copy, place, window, row = (rows[n].to_numpy() for n in ("index", "copy", "place", "window", "row"))
    described = rows["shard"].combine_chunks()
    shards = [Shard(**json.loads(text)) for text in described.dictionary.to_pylist()]
    store = _Part(job, index, shards, described.indices.to_numpy(), row)
    bad = BadSamples(job["max_bad_samples"], tell=False) if job["max_bad_samples"] else None
    framing = Framing(**job["framing"])
    columns = {"window": window, "place": place}
    if job["crops"]:
        drawn = Rows(index, copy)
        crops, epoch = [Crop(**crop) for crop in job["crops"]], int(rows["epoch"][0].as_py())
        draws = CropDraws(crops, job["seed"], epoch, drawn, epochs=job["epochs"])
        cropped = decode_crops(store, job["split"], index, job["image_size"], draws, bad, framing)
        # rows come first in Ray Data, views in a batch
        columns |= {"image": cropped.canvases_VB3SS.swapaxes(0, 1), "boxes": cropped.boxes_VB4.swapaxes(0, 1)}
    else:
        columns["image"] = decode_rows(store, job["split"], index, job["image_size"], bad, framing)
    if bad is not None:
        columns["bad"] = np.array([bad.messages.get(number, "") for number in index.tolist()])
    return columns
