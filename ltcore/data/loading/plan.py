"""The plan of a stream: which rows each data task decodes, and where they lie.

A window is a few consecutive steps of one rank. Its rows, which the rank's sampler says, are cut by shard into parts, one
for each node that decodes, so that a shard of remote data is read by one node alone. A part names its rows and the shards
they are in: a task needs neither the manifest nor the sampler, and no copies or orders of the whole epoch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ltcore.data.loading.sampler import Ints, Rows
from ltcore.data.shards.manifest import Shard
from ltcore.hashing import hash64

if TYPE_CHECKING:
    from ltcore.data.shards.reader import ShardStore


@dataclass(frozen=True)
class Window:
    """Consecutive steps of one epoch, on one rank."""

    epoch: int
    first: int
    """Step."""
    rows: Rows
    """Of all its steps, one after another."""


def windows_from(
    epochs: range, num_batches: int, start_step: int, window: int, batches: Callable[[int, int], Iterator[Rows]]
) -> Iterator[Window]:
    """Yields the windows of these epochs, of which the first begins at ``start_step``; none crosses an epoch's border.

    ``batches`` (epoch, first step) are those of one rank.
    """
    for epoch in epochs:
        start = start_step if epoch == epochs.start else 0
        steps = batches(epoch, start)
        for first in range(start, num_batches, window):
            rows = [next(steps) for _ in range(first, min(first + window, num_batches))]
            index_n, copy_n = (np.concatenate([getattr(step, name) for step in rows]) for name in ("index_B", "copy_B"))
            yield Window(epoch, first, Rows(index_n, copy_n))


class ShardHomes:
    """Chooses for each shard the node that reads it, in proportion to the CPUs of the nodes.

    It is weighted rendezvous hashing: whoever knows the same nodes chooses the same one, and where a node comes or goes, only
    the shards that it gets or had change their place. Source: Schindelhauer and Schomaker, "Weighted distributed hash
    tables", SPAA 2005, the logarithmic method.
    """

    def __init__(self, weights: dict[str, float]) -> None:
        self._weights = weights
        self._homes: dict[str, str] = {}

    def __call__(self, shard: Shard) -> str:
        """Returns the name of the node; shards in the same tar have the same one."""
        home = self._homes.get(shard.sha256)
        if home is None:
            home = max(self._weights, key=lambda name: (self._score(name, shard.sha256), name))
            self._homes[shard.sha256] = home
        return home

    def _score(self, name: str, sha256: str) -> float:
        uniform = (hash64("home", name, sha256) + 1) / (2**64 + 1)  # neither 0 nor 1
        return -self._weights[name] / math.log(uniform)


def parts(
    window: Window, number: int, store: ShardStore, split: str, home: Callable[[Shard], str]
) -> Iterator[tuple[str, pa.Table]]:
    """Yields (node, rows) of each node that has shards of the window.

    The columns are: ``window``, its ``number``; ``epoch``; ``index`` and ``copy``; ``place`` in the window; ``shard``, as
    JSON, with the ``row`` in it.
    """
    shard_n, row_n = store.find(split, window.rows.index_B)
    shards = store.manifest.split(split).shards
    touched, which_n = np.unique(shard_n, return_inverse=True)
    homes = [home(shards[number]) for number in touched.tolist()]
    for name in sorted(set(homes)):
        chosen_n = np.flatnonzero(np.array([each == name for each in homes])[which_n])
        yield name, _table(window, number, chosen_n, [shards[s] for s in touched.tolist()], which_n, row_n)


def _table(
    window: Window, number: int, chosen_n: Ints, shards: Sequence[Shard], which_n: npt.NDArray[np.intp], row_n: Ints
) -> pa.Table:
    used, code_n = np.unique(which_n[chosen_n], return_inverse=True)
    described = [json.dumps(asdict(shards[n])) for n in used.tolist()]
    return pa.table(
        {
            "window": np.full(len(chosen_n), number, np.int32),
            "epoch": np.full(len(chosen_n), window.epoch, np.int32),
            "index": window.rows.index_B[chosen_n],
            "copy": window.rows.copy_B[chosen_n],
            "place": chosen_n.astype(np.int32),
            "row": row_n[chosen_n].astype(np.int32),
            "shard": pa.DictionaryArray.from_arrays(
                pa.array(code_n.astype(np.int32)), pa.array(described, pa.string())
            ),
        }
    )
