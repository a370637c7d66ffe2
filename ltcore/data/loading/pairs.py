"""Pairs of images: beside each of the natural stream one of a stream in which rare classes come most.

Source: BBN, Zhou et al., "BBN: bilateral-branch network with cumulative learning for long-tailed visual recognition", CVPR
2020: class c of the second stream has a share in proportion to 1 / n_c.
Differs: images of the second stream are repeated a planned number of times (``class_copies``) instead of being drawn with
replacement.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ltcore.data.loading.class_sampling import class_copies
from ltcore.data.loading.sampler import Copies, EpochSampler, Floats, Ints, ListedSampler, Rows
from ltcore.data.shards.reader import ShardStore
from ltcore.hashing import hash64


def reversed_shares(counts_C: npt.ArrayLike) -> Floats:
    """Returns the class shares [C] in proportion to 1 / n_c, with sum 1. ``counts_C`` are all above 0."""
    inverse_C = 1 / np.asarray(counts_C, np.float64)
    shares_C: Floats = inverse_C / inverse_C.sum()
    return shares_C


class PairedSampler:
    """Two samplers of one epoch in one: the rows of a step are pairs, neighbors in the order (first, second).

    A batch of B pairs has 2B rows, and any cut between pairs leaves pairs whole. Copies of the second stream begin at 1, so that
    an image that is in both is augmented differently.
    """

    def __init__(self, first: EpochSampler, second: EpochSampler) -> None:
        self._first, self._second = first, second

    def rank_batches(self, rank: int, start_step: int = 0) -> Iterator[Rows]:
        """Yields the rows of ``rank``, 2B / W per step, from ``start_step`` on."""
        streams = (sampler.rank_batches(rank, start_step) for sampler in (self._first, self._second))
        for first, second in zip(*streams, strict=True):
            index_B2 = np.stack([first.index_B, second.index_B], 1)
            copy_B2 = np.stack([first.copy_B, second.copy_B + 1], 1)
            yield Rows(index_B2.reshape(-1), copy_B2.reshape(-1))


Sampler = EpochSampler | ListedSampler | PairedSampler


def epoch_sampler(
    store: ShardStore,
    split: str,
    *,
    paired: bool,
    seed: int,
    epoch: int,
    batch_size: int,
    world: int,
    lanes: int,
    copies_N: Copies | None = None,
    order_L: Ints | None = None,
) -> Sampler:
    """Returns the sampler of one epoch over a split: of images, of images in a given order, or of pairs.

    The arguments are those of ``EpochSampler`` and ``ListedSampler``; an order does not go with pairs.
    """
    if order_L is not None:
        return ListedSampler(order_L, batch_size=batch_size, world=world)
    rows_per_shard = store.manifest.split(split).rows_per_shard

    def stream(seed: int, copies_N: Copies | None) -> EpochSampler:
        options = {"batch_size": batch_size, "world": world, "lanes": lanes}
        return EpochSampler(rows_per_shard, seed=seed, epoch=epoch, copies_N=copies_N, **options)

    natural = stream(seed, copies_N)
    if not paired:
        return natural
    seed = hash64(seed, "second stream")
    shares_C = reversed_shares(store.manifest.class_counts[split])
    return PairedSampler(natural, stream(seed, class_copies(store.labels(split), shares_C, seed, epoch)))
