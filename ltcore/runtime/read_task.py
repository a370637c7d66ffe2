"""The data task of the stream tier. It runs in processes of its own, so it imports neither torch nor Ray."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from ltcore.data.plan import EpochPlan
from ltcore.data.store import BadSamples, ShardStore, decode_rows


@functools.lru_cache(maxsize=2)
def _store(uri: str, cache_bytes: int) -> ShardStore:
    return ShardStore(uri, cache_bytes=cache_bytes)


def read_window(batch: dict[str, np.ndarray], *, job: dict[str, Any]) -> dict[str, np.ndarray]:
    """A data task: rows of one window of steps, decoded, in plan order."""
    store = _store(job["uri"], job["cache_bytes"])
    epoch, first, last = (int(batch[name][0]) for name in ("epoch", "first", "last"))
    plan = EpochPlan(store.manifest.split(job["split"]).rows_per_shard, epoch=epoch, **job["plan"])
    rows = list(itertools.islice(plan.rank_batches(job["rank"], first), last - first))
    index = np.concatenate([r.index_B for r in rows])
    # A task's count of bad images is its own: the limit then holds per window of steps, not per epoch.
    bad = BadSamples(job["max_bad_samples"]) if job["max_bad_samples"] else None
    return {
        "image": decode_rows(store, job["split"], index, job["canvas"], bad),
        "label": store.labels(job["split"])[index],
        "index": index,
        "copy": np.concatenate([r.copy_B for r in rows]),
    }
