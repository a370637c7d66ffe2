"""The exponential profile, the two selections and the validation split, against published numbers and naive loops."""

import math
import time

import numpy as np
import pytest

from ltcore.data.datasets import longtail
from ltcore.data.datasets.longtail import carve, hash_order, long_tail_counts, profile, select_legacy
from ltcore.errors import DataError
from ltcore.rng import hash64
from ltcore.shots import shot_groups_by_count


def balanced(num_classes, per_class, order_seed=0):
    labels = np.repeat(np.arange(num_classes), per_class)
    np.random.default_rng(order_seed).shuffle(labels)
    return [f"train/{i:05d}" for i in range(len(labels))], labels


@pytest.mark.parametrize(
    ("factor", "total", "groups"), [(10, 19_573, (69, 31, 0)), (50, 12_608, (41, 41, 18)), (100, 10_847, (35, 35, 30))]
)
def test_cifar100_totals_and_shot_groups_are_the_published_ones(factor, total, groups):

    counts = profile(500, 100, factor)
    assert sum(counts) == total
    by_group = shot_groups_by_count(counts)
    assert tuple(by_group.count(name) for name in ("many", "medium", "few")) == groups


def test_cifar100_if100_begins_and_ends_as_published():
    counts = profile(500, 100, 100)
    assert counts[:10] == [500, 477, 455, 434, 415, 396, 378, 361, 344, 328]
    assert counts[-10:] == [7, 7, 6, 6, 6, 6, 5, 5, 5, 5]
    prior = np.array(counts) / sum(counts)
    assert -(prior * np.log(prior)).sum() == pytest.approx(4.007500, abs=1e-6)
    assert math.log(prior[0]) == pytest.approx(-3.077036, abs=1e-6)


def test_cifar10_if100_is_as_published():
    assert profile(5000, 10, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert [sum(profile(5000, 10, f)) for f in (10, 50, 100)] == [20_431, 13_996, 12_406]


def test_a_factor_of_one_keeps_all_and_one_class_is_allowed():
    assert profile(7, 3, 1) == [7, 7, 7]
    assert profile(7, 1, 100) == [7]
    with pytest.raises(ValueError, match="imbalance_factor"):
        profile(7, 3, 0.5)


def test_unequal_classes_are_ranked_by_size_and_the_profile_fits_exactly():
    available = np.array([30, 100, 60, 20])
    counts = long_tail_counts(available, 10)
    assert (counts <= available).all()
    assert counts[[1, 2, 0, 3]].tolist() == profile(int(counts.max()), 4, 10)
    largest = int(counts.max())  # one more would not fit
    assert largest == 100 or (np.array(profile(largest + 1, 4, 10)) > available[[1, 2, 0, 3]]).any()
    assert long_tail_counts(np.array([20, 5, 1]), 2).tolist() == [3, 2, 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_class_is_the_largest_that_fits(seed):
    rng = np.random.default_rng(seed)
    available = rng.integers(20, 400, rng.integers(1, 30))
    factor = float(rng.uniform(1, 12))
    room = np.sort(available)[::-1]
    largest = next(n for n in range(room[0], 0, -1) if (np.array(profile(n, len(room), factor)) <= room).all())
    np.testing.assert_array_equal(
        np.sort(long_tail_counts(available, factor))[::-1], profile(largest, len(room), factor)
    )


def test_many_classes_and_images_take_no_longer_than_sorting_them():
    started = time.monotonic()
    long_tail_counts(np.linspace(100_000, 100, 10_000).astype(np.int64), 100.0)
    assert time.monotonic() - started < 5, "one profile of 10,000 classes takes milliseconds"


def test_a_factor_that_empties_the_smallest_class_is_refused_with_the_largest_that_works():
    with pytest.raises(DataError, match=r"imbalance_factor=50 leaves .* use at most 40"):
        long_tail_counts(np.full(5, 40), 50)


def test_the_keyed_selection_takes_the_smallest_hashes_whatever_the_order():
    keys, labels = balanced(5, 40)
    carved = carve(keys, labels, 5, imbalance_factor=8, seed=3)
    for c, count in enumerate(profile(40, 5, 8)):
        members = sorted(
            (k for k, y in zip(keys, labels, strict=True) if y == c), key=lambda k: hash64(3, "longtail", k)
        )
        assert {keys[i] for i in carved.train_n if labels[i] == c} == set(members[:count])
    perm = np.random.default_rng(1).permutation(len(keys))
    other = carve([keys[i] for i in perm], labels[perm], 5, imbalance_factor=8, seed=3)
    assert {keys[perm[i]] for i in other.train_n} == {keys[i] for i in carved.train_n}
    assert {keys[i] for i in carve(keys, labels, 5, imbalance_factor=8, seed=4).train_n} != {
        keys[i] for i in carved.train_n
    }


def test_the_legacy_selection_repeats_the_published_loop():
    _, labels = balanced(10, 50)
    counts = profile(50, 10, 25)
    state = np.random.get_state()
    np.random.seed(0)  # the published code uses the global generator
    expected = []
    for c, count in enumerate(counts):
        positions = np.where(labels == c)[0]
        np.random.shuffle(positions)
        expected += positions[:count].tolist()
    np.random.set_state(state)
    assert select_legacy(labels, np.array(counts), 0).tolist() == sorted(expected)


def test_validation_comes_from_unused_images_and_training_stays_whole():
    keys, labels = balanced(100, 500)
    carved = carve(keys, labels, 100, imbalance_factor=100, val_per_class=10)
    assert len(carved.train_n) == 10_847
    val = np.bincount(labels[carved.val_m], minlength=100)
    assert val[0] == 0 and (val[1:] == 10).all()
    assert carved.val_short == {0: 0}
    assert not set(carved.val_m) & set(carved.train_n)
    without = carve(keys, labels, 100, imbalance_factor=100)
    assert without.train_n.tolist() == carved.train_n.tolist() and not len(without.val_m) and not without.val_short


def test_without_a_factor_validation_takes_at_most_a_fifth_of_each_class_but_one_of_a_small_one():
    labels = np.repeat([0, 1, 2, 3, 4, 5], [100, 12, 4, 3, 2, 1])
    keys = [f"k{i}" for i in range(len(labels))]
    carved = carve(keys, labels, 6, imbalance_factor=None, val_per_class=10)
    assert np.bincount(labels[carved.val_m], minlength=6).tolist() == [10, 2, 1, 1, 0, 0]
    assert np.bincount(labels[carved.train_n]).tolist() == [90, 10, 3, 2, 2, 1]
    assert carved.val_short == {1: 2, 2: 1, 3: 1, 4: 0, 5: 0}
    assert sorted([*carved.train_n, *carved.val_m]) == list(range(len(labels)))


@pytest.mark.parametrize("bits", [64, 3, 0])
def test_a_shuffle_is_that_of_sorted_and_equal_hashes_go_by_key(bits, monkeypatch):
    monkeypatch.setattr(longtail, "hash64", lambda *words: hash64(*words) % 2**bits)
    keys, positions = [f"k{i * 37 % 100}" for i in range(100)], np.arange(99, 9, -1)
    expected = sorted(positions, key=lambda p: (hash64(1, "x", keys[p]) % 2**bits, keys[p]))
    assert hash_order(keys, positions, 1, "x").tolist() == expected
