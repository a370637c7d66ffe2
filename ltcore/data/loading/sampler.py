"""Which rank reads which rows of an epoch, in what order and how often: a pure function of its arguments.

A row that is to be seen n times counts as n virtual rows. In epoch order (shards permuted, then the rows of each shard,
both keyed by seed and epoch) the virtual rows are cut into L equal lanes; a global batch takes B / L rows from each
lane, and a rank owns L / W neighboring lanes. So the global batch (ranks one after another) does not depend on W, a
rank reads about 1 / W of the shards, and step k is found by arithmetic.

The T mod B virtual rows that fill no batch are dropped: a window that moves on by one epoch's length every epoch, so
the rows used in ceil(T / used) epochs in a row cover everything.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ltcore.errors import ConfigError
from ltcore.hashing import hash64

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Copies = npt.NDArray[np.int32] | Ints
"""How often each sample comes: in four bytes each, as long as there is no need for more."""
_CHUNK = 2**20
"""Samples whose repetitions are computed in one go."""
_CHUNK_SHARDS = 256
"""Shards whose rows are counted in one go."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one step, of one rank or of all."""

    index_B: Ints
    """Position in the split."""
    copy_B: Ints
    """Which repetition of the sample inside the epoch, from 0."""

    def __len__(self) -> int:
        return len(self.index_B)


def _offsets(counts: Copies) -> Ints:
    """Returns [n + 1] cumulative sums with a leading 0."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _sums(values_N: Copies, first_S: Ints) -> Ints:
    """Returns [S] the sums over the rows of each shard, which may be empty; ``first_S`` [S + 1] are their first rows."""
    sums_S = np.zeros(len(first_S) - 1, np.int64)
    filled_s = np.flatnonzero(np.diff(first_S))  # reduceat takes an empty part for one of a single row
    for start in range(0, len(filled_s), _CHUNK_SHARDS):  # it makes an int64 array of all rows that it gets
        part_s = filled_s[start : start + _CHUNK_SHARDS]
        first, last = first_S[part_s[0]], first_S[part_s[-1] + 1]
        sums_S[part_s] = np.add.reduceat(values_N[first:last], first_S[part_s] - first, dtype=np.int64)
    return sums_S


def keyed_generator(*words: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(hash64(*words)))


def drawn_copies(weights_N: Floats, seed: int, epoch: int) -> Copies:
    """Returns how often each of N samples comes in an epoch of N images.

    The numbers are in proportion to weights >= 0. They come from systematic sampling: with v the weights scaled to mean
    1 and one keyed number u in [0, 1), sample i comes

        floor(v_0 + ... + v_i + u) - floor(v_0 + ... + v_(i-1) + u)

    times. That is v_i in expectation, never further from it than one, and N in sum, where rounding each sample with a
    number of its own would change the length of the epoch. Memory beside the result does not depend on N.
    """
    count = len(weights_N)
    total = 0.0
    for reached_n in _reached(weights_N):
        total = float(reached_n[-1])
    uniform = keyed_generator(seed, epoch, "copies").random()
    copies_N, first, before = np.empty(count, np.int32), 0, 0.0
    for reached_n in _reached(weights_N):
        reached_n *= count / total
        if first + len(reached_n) == count:
            reached_n[-1] = count
        floor_n = np.floor(reached_n + uniform)
        copies_N[first : first + len(floor_n)] = np.diff(floor_n, prepend=before)
        first, before = first + len(floor_n), floor_n[-1]
    return copies_N


def _reached(weights_N: Floats) -> Iterator[Floats]:
    """Yields the cumulative sums of the weights in chunks, each of them bit for bit as if it were computed at once."""
    before = 0.0
    for first in range(0, len(weights_N), _CHUNK):
        weights_n = weights_N[first : first + _CHUNK].astype(np.float64)
        weights_n[0] += before
        reached_n = np.cumsum(weights_n)
        before = float(reached_n[-1])
        yield reached_n


def check_lanes(lanes: int, batch_size: int, world: int) -> int:
    """Returns L = gcd(lanes, batch_size).

    Raises ConfigError where ``world`` ranks cannot own equally many of these lanes.
    """
    shared = math.gcd(lanes, batch_size)
    if shared % world:
        raise ConfigError(
            f"{world} workers cannot share the {shared} lanes of a global batch of {batch_size} equally. "
            f"Use data.lanes={math.lcm(lanes, world)} and a batch size that is a multiple of {world}, or another number of "
            "workers."
        )
    return shared


def check_batches(num_rows: int, batch_size: int) -> int:
    """Returns how many batches the rows of an epoch fill. Raises ConfigError where they fill none."""
    if num_rows < batch_size:
        raise ConfigError(
            f"The training split has {num_rows} rows in this epoch, fewer than one global batch of {batch_size}. "
            "Lower the batch size or use more data."
        )
    return num_rows // batch_size


class EpochSampler:
    """Says which rows each rank reads in one epoch.

    Args:
        rows_per_shard: samples in each shard, in index order; a shard may be empty.
        seed, epoch: key of the order.
        batch_size: B, of all ranks together.
        world: W, number of ranks; must divide L = gcd(lanes, batch_size).
        copies_N: how often each sample is seen in this epoch, integers >= 0; None is once each.

    Memory is O(shards) plus the shards under the lanes' cursors while batches are drawn. ConfigError where W does not
    divide L, where the virtual rows do not fill one batch, or for wrong copies.
    """

    def __init__(
        self,
        rows_per_shard: Sequence[int],
        *,
        seed: int,
        epoch: int,
        batch_size: int,
        world: int = 1,
        lanes: int = 64,
        copies_N: Copies | None = None,
    ) -> None:
        self.seed, self.epoch, self.batch_size, self.world = seed, epoch, batch_size, world
        self.lanes = check_lanes(lanes, batch_size, world)
        if copies_N is not None and (copies_N.shape != (sum(rows_per_shard),) or copies_N.min(initial=0) < 0):
            raise ConfigError(f"copies_N must be {sum(rows_per_shard)} integers >= 0, one per training sample.")
        self.copies_N = copies_N
        self._first_row_S = _offsets(np.asarray(rows_per_shard, np.int64))
        self._first_S = self._first_row_S if copies_N is None else _offsets(_sums(copies_N, self._first_row_S))
        total = int(self._first_S[-1])
        self.num_batches = check_batches(total, batch_size)
        self.num_rows = self.num_batches * batch_size
        """Virtual rows that are used."""
        self._dropped = self._dropped_ranges(total)
        kept_S = np.diff(self._first_S)
        for start, stop in self._dropped:
            kept_S = kept_S - np.diff(np.clip(self._first_S, start, stop))
        self._order_S = keyed_generator(seed, epoch, "shards").permutation(len(kept_S))
        self._position_S = _offsets(kept_S[self._order_S])
        self._expanded: weakref.WeakValueDictionary[int, Ints] = weakref.WeakValueDictionary()

    def _dropped_ranges(self, total: int) -> list[tuple[int, int]]:
        """Returns the ranges of virtual rows, counted in index order, that this epoch leaves out.

        Used ones start at epoch * used.
        """
        start = (self.epoch + 1) * self.num_rows % total
        stop = start + total - self.num_rows
        return [(start, stop)] if stop <= total else [(start, total), (0, stop - total)]

    def rank_batches(self, rank: int, start_step: int = 0) -> Iterator[Rows]:
        """Yields the rows of ``rank``, B / W per step, from ``start_step`` on; skipped steps cost nothing."""
        owned = self.lanes // self.world
        per_lane = self.num_rows // self.lanes
        take = self.batch_size // self.lanes
        lanes = [
            self._lane(lane * per_lane + start_step * take, (lane + 1) * per_lane, take)
            for lane in range(rank * owned, (rank + 1) * owned)
        ]
        for _ in range(start_step, self.num_batches):
            rows_2B = np.concatenate([next(lane) for lane in lanes], axis=1)
            yield Rows(rows_2B[0], rows_2B[1])

    def _lane(self, start: int, stop: int, take: int) -> Iterator[Ints]:
        """Yields the rows at the positions start..stop, ``take`` at a time, as [2, take] (index, copy)."""
        place = int(np.searchsorted(self._position_S, start, side="right")) - 1
        while start < stop:
            parts, end = [], start + take
            while start < end:
                while self._position_S[place + 1] <= start:
                    place += 1
                rows_2n = self._expand(place)
                first = int(self._position_S[place])
                parts.append(rows_2n[:, start - first : end - first])
                start += parts[-1].shape[1]
            yield np.concatenate(parts, axis=1)

    def _expand(self, place: int) -> Ints:
        """Returns [2, n] (index, copy) of the kept virtual rows of the shard at ``place`` of the order, permuted.

        Lanes whose cursors are in the same shard share the array; it goes when the last of them moves on.
        """
        rows_2n = self._expanded.get(place)
        if rows_2n is None:
            shard = int(self._order_S[place])
            first, last = self._first_row_S[shard : shard + 2]
            index_n = np.arange(first, last)
            if self.copies_N is None:
                copy_n = np.zeros_like(index_n)
            else:
                copies_n = self.copies_N[first:last]
                index_n = np.repeat(index_n, copies_n)
                copy_n = np.arange(len(index_n)) - np.repeat(_offsets(copies_n)[:-1], copies_n)
            virtual_n = self._first_S[shard] + np.arange(len(index_n))
            kept_n = np.ones(len(index_n), bool)
            for start, stop in self._dropped:
                kept_n &= (virtual_n < start) | (virtual_n >= stop)
            rows_2n = np.stack([index_n, copy_n])[:, kept_n]
            rows_2n = rows_2n[:, keyed_generator(self.seed, self.epoch, "rows", shard).permutation(rows_2n.shape[1])]
            self._expanded[place] = rows_2n
        return rows_2n


class ListedSampler:
    """Cuts an order of rows that was made elsewhere into the batches of one epoch.

    A global batch is ``batch_size`` rows of the order in a row, and each rank takes its part of them, so that neither what
    belongs together in a batch nor its place depends on the number of ranks. The rows after the last whole batch are
    dropped. Neighbors may lie in any shard: each step reads all over the data.

    Args:
        order_L: rows of the split, as often and in the order in which they come.
        batch_size: B, of all ranks together.
        world: W, number of ranks; must divide B.

    Raises ConfigError where the rows do not fill one batch.
    """

    def __init__(self, order_L: Ints, *, batch_size: int, world: int = 1) -> None:
        self.batch_size, self.world = batch_size, world
        self.num_batches = check_batches(len(order_L), batch_size)
        self._order_L = order_L
        by_row_L = order_L.argsort(kind="stable")
        first_L = np.searchsorted(order_L[by_row_L], order_L[by_row_L])
        self._copy_L = np.empty(len(order_L), np.int64)
        self._copy_L[by_row_L] = np.arange(len(order_L)) - first_L

    def rank_batches(self, rank: int, start_step: int = 0) -> Iterator[Rows]:
        """Yields the rows of ``rank``, B / W per step, from ``start_step`` on; skipped steps cost nothing."""
        share = self.batch_size // self.world
        for step in range(start_step, self.num_batches):
            first = step * self.batch_size + rank * share
            yield Rows(self._order_L[first : first + share], self._copy_L[first : first + share])


def eval_rows(num_rows: int, rank: int, world: int, batch_size: int) -> Iterator[Ints]:
    """Yields the rank's contiguous share of 0..num_rows-1 in slices of at most ``batch_size`` rows.

    Nothing is dropped or doubled, so ranks may differ by one row and by one batch: no collective may run per batch.
    """
    start, stop = (num_rows * r // world for r in (rank, rank + 1))
    for first in range(start, stop, batch_size):
        yield np.arange(first, min(first + batch_size, stop))
