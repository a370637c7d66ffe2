"""Sampling by class: shares, whole and left-over copies, and the epoch plan that carries them out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltcore.data.loading.class_sampling import SAMPLINGS, class_copies, class_shares
from ltcore.data.loading.sampler import EpochSampler

COUNTS = (23, 12, 7, 4)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))
SHARES = st.lists(st.floats(0.01, 1), min_size=4, max_size=4).map(lambda w: np.array(w) / sum(w))


def test_the_shares_are_those_of_the_paper() -> None:
    natural_C, equal_C = np.array(COUNTS) / 46, np.full(4, 1 / 4)
    for epoch in range(5):
        assert class_shares("natural", COUNTS, epoch, 5) is None
        np.testing.assert_allclose(class_shares("class_balanced", COUNTS, epoch, 5), equal_C)
    np.testing.assert_allclose(class_shares("square_root", (9, 4, 1), 0, 5), np.array([3, 2, 1]) / 6)
    assert class_shares("progressive", COUNTS, 0, 5) is None, "the first epoch is the natural one"
    for epoch in (1, 2, 3, 4):
        expected_C = (1 - epoch / 4) * natural_C + epoch / 4 * equal_C
        np.testing.assert_allclose(class_shares("progressive", COUNTS, epoch, 5), expected_C)
    assert class_shares("progressive", COUNTS, 0, 1) is None


@settings(max_examples=200, deadline=None)
@given(SHARES, st.integers(0, 2**32), st.integers(0, 50))
def test_every_image_and_every_class_is_within_one_of_its_share(shares_C, seed: int, epoch: int) -> None:
    copies_N = class_copies(LABELS, shares_C, seed, epoch)
    assert copies_N.sum() == 46, "an epoch is as long as a natural one"
    expected_C = 46 * shares_C
    per_class_C = np.bincount(LABELS, copies_N, minlength=4)
    assert (abs(per_class_C - expected_C) < 1).all()
    whole_N = np.floor((expected_C / COUNTS)[LABELS] + 1e-9)
    assert ((copies_N == whole_N) | (copies_N == whole_N + 1)).all()
    assert (copies_N == class_copies(LABELS, shares_C, seed, epoch)).all()


def test_what_is_left_after_whole_copies_goes_to_every_image_equally_often() -> None:
    shares_C = class_shares("class_balanced", COUNTS, 0, 1)
    assert shares_C is not None
    epochs = 4000
    drawn_EN = np.stack([class_copies(LABELS, shares_C, 3, epoch) for epoch in range(epochs)])
    expected_N = (46 * shares_C / COUNTS)[LABELS]
    variance_N = (expected_N % 1) * (1 - expected_N % 1)  # each is its whole number or one more
    assert (abs(drawn_EN.mean(0) - expected_N) < 5 * np.sqrt(variance_N / epochs) + 1e-12).all()
    largest = drawn_EN[:, LABELS == 0]
    together = (largest[:, :1] * largest[:, 1:]).mean(0)
    assert (together > 0.1).all(), "any two images of a class meet in some epoch, in an order of its own each"


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("world", [2, 4])
def test_global_batches_and_resume_are_those_of_one_rank(sampling: str, world: int) -> None:
    for epoch in (0, 3):
        shares_C = class_shares(sampling, COUNTS, epoch, 5)
        copies_N = None if shares_C is None else class_copies(LABELS, shares_C, 1, epoch)
        options = {"seed": 1, "epoch": epoch, "batch_size": 8, "copies_N": copies_N}
        one = EpochSampler([20, 20, 6], **options)
        several = EpochSampler([20, 20, 6], world=world, **options)
        assert one.num_batches == 5
        whole = [rows.index_B for rows in one.rank_batches(0)]
        shared = zip(*(several.rank_batches(rank) for rank in range(world)), strict=True)
        for index_B, parts in zip(whole, shared, strict=True):
            assert (np.concatenate([rows.index_B for rows in parts]) == index_B).all()
        rest = [rows.index_B for rows in one.rank_batches(0, start_step=3)]
        assert all((a == b).all() for a, b in zip(rest, whole[3:], strict=True))


def test_a_large_set_is_planned_in_exact_numbers() -> None:
    counts = np.maximum(1, (200_000 * 0.9 ** np.arange(100)).astype(int) // 100)
    labels_N = np.repeat(np.arange(100), counts)
    for sampling in ("class_balanced", "square_root"):
        shares_C = class_shares(sampling, counts, 0, 90)
        assert shares_C is not None
        copies_N = class_copies(labels_N, shares_C, 0, 0)
        assert copies_N.sum() == counts.sum()
        assert (abs(np.bincount(labels_N, copies_N) - shares_C * counts.sum()) < 1).all()
