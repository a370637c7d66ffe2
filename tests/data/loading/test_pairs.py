"""Pairs of the natural stream and of the reversed one: shares, order, ranks, resuming."""

from __future__ import annotations

import numpy as np
import pytest

from ltcore.data.config import DataConfig
from ltcore.data.loading.factory import make_loader
from ltcore.data.loading.loader import Loader
from ltcore.data.loading.pairs import reversed_shares
from ltcore.data.loading.sampler import Rows
from tests.conftest import TINY_COUNTS


def loader(uri: str, paired: bool = True, rank: int = 0, world: int = 1) -> Loader:
    return make_loader(DataConfig(loader="threads"), uri, batch_size=8, seed=3, rank=rank, world=world, paired=paired)


def steps(opened: Loader, epoch: int = 0, start: int = 0) -> list[Rows]:
    opened.close()
    return list(opened.sampler(epoch).rank_batches(opened.rank, start))


def same(one: Rows, other: Rows) -> None:
    np.testing.assert_array_equal(one.index_B, other.index_B)
    np.testing.assert_array_equal(one.copy_B, other.copy_B)


def test_the_shares_are_one_over_the_sizes() -> None:
    np.testing.assert_allclose(reversed_shares([500, 50, 5]), [0.009009, 0.090090, 0.900901], atol=1e-6)
    np.testing.assert_allclose(reversed_shares([7, 7]), [0.5, 0.5])


def test_the_first_of_each_pair_is_the_natural_stream(tiny_shards: str) -> None:
    pairs, natural = steps(loader(tiny_shards)), steps(loader(tiny_shards, paired=False))
    assert len(pairs) == len(natural) == 5
    for both, plain in zip(pairs, natural, strict=True):
        same(Rows(both.index_B[0::2], both.copy_B[0::2]), plain)
        assert (both.copy_B[1::2] >= 1).all(), "otherwise augmented than in the first stream"


def test_the_second_has_its_classes_in_reverse(tiny_shards: str) -> None:
    opened = loader(tiny_shards)
    labels_N = opened.store.labels("train")
    seen, epochs = np.zeros(4), 60
    orders = []
    for epoch in range(epochs):
        index = np.concatenate([rows.index_B[1::2] for rows in steps(opened, epoch)])
        seen += np.bincount(labels_N[index], minlength=4)
        orders.append(index)
    np.testing.assert_allclose(seen / seen.sum(), reversed_shares(TINY_COUNTS["train"]), atol=0.01)
    assert not np.array_equal(orders[0], orders[1]) and len(orders[0]) == 40


def test_ranks_share_the_pairs_and_a_step_is_found_again(tiny_shards: str) -> None:
    whole, ranks = steps(loader(tiny_shards)), [steps(loader(tiny_shards, rank=rank, world=2)) for rank in (0, 1)]
    for both, left, right in zip(whole, *ranks, strict=True):
        joined = [np.concatenate(parts) for parts in ((left.index_B, right.index_B), (left.copy_B, right.copy_B))]
        same(both, Rows(*joined))
    for again, before in zip(steps(loader(tiny_shards), start=3), whole[3:], strict=True):
        same(again, before)


@pytest.mark.parametrize("kind", ["threads", "cache"])
def test_a_batch_has_both_images_of_each_pair(tiny_shards: str, kind: str) -> None:
    opened = make_loader(DataConfig(loader=kind), tiny_shards, batch_size=8, seed=3, paired=True)
    batch = next(opened.train_batches(0))
    assert batch.images_VBCHW.shape[:2] == (1, 16) and len(batch) == 16 == opened.rows_per_step
    same(Rows(batch.index_B.numpy(), batch.copy_B.numpy()), next(opened.sampler(0).rank_batches(0)))
    opened.close()
