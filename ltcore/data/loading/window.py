"""The data task of the Ray loader. It runs in processes of its own, so it imports neither torch nor Ray."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from ltcore.data.images.boxes import Crop
from ltcore.data.loading.crops import CropDraws, decode_crops
from ltcore.data.loading.sampler import EpochSampler, Rows
from ltcore.data.loading.samples import BadSamples, decode_rows
from ltcore.data.shards.reader import ShardStore


@functools.lru_cache(maxsize=2)
def _store(uri: str, cache_bytes: int) -> ShardStore:
    return ShardStore(uri, cache_bytes=cache_bytes)


def read_window(batch: dict[str, np.ndarray], *, job: dict[str, Any]) -> dict[str, np.ndarray]:
    """Decodes the rows of one window of steps, in the sampler's order, in a data task.

    With them come the errors of rows that were replaced, where that is allowed: the worker that receives them counts
    them.
    """
    store = _store(job["uri"], job["cache_bytes"])
    epoch, first, last = (int(batch[name][0]) for name in ("epoch", "first", "last"))
    sampler = EpochSampler(store.manifest.split(job["split"]).rows_per_shard, epoch=epoch, **job["sampler"])
    rows = list(itertools.islice(sampler.rank_batches(job["rank"], first), last - first))
    index, copy = (np.concatenate([getattr(r, name) for r in rows]) for name in ("index_B", "copy_B"))
    bad = BadSamples(job["max_bad_samples"], tell=False) if job["max_bad_samples"] else None
    columns = {"label": store.labels(job["split"])[index], "index": index, "copy": copy}
    if job["crops"]:
        draws = CropDraws([Crop(*crop) for crop in job["crops"]], job["sampler"]["seed"], epoch, Rows(index, copy))
        cropped = decode_crops(store, job["split"], index, job["image_size"], draws, bad)
        # rows come first in Ray Data, views in a batch
        columns |= {"image": cropped.canvases_VB3SS.swapaxes(0, 1), "boxes": cropped.boxes_VB4.swapaxes(0, 1)}
    else:
        columns["image"] = decode_rows(store, job["split"], index, job["image_size"], bad)
    if bad is not None:
        columns["bad"] = np.array([bad.messages.get(number, "") for number in index.tolist()])
    return columns
