"""Quotas and disjointness of the generalized long-tailed splits, for rendered and for given attributes."""

import numpy as np
import pytest

from ltcore.data.datasets.glt import GltSizes, glt_splits, quota_counts, usual_quotas
from ltcore.errors import DataError


def test_quotas_are_those_of_glt_and_always_sum_to_n():
    assert quota_counts(60, [0, 1, 2]).tolist() == [42, 12, 6]
    assert quota_counts(60, [2, 0, 1]).tolist() == [12, 6, 42]
    assert quota_counts(10, [3, 4, 0, 1, 2]).tolist() == [1, 0, 0, 7, 2]
    for n in range(200):
        counts = quota_counts(n, [1, 2, 3, 4, 0])
        assert counts.sum() == n and (counts >= 0).all()
        assert abs(counts[1] - 0.7 * n) < 1 and abs(counts[2] - 0.2 * n) < 1
        rest = counts[[3, 4, 0]]
        assert rest.max() - rest.min() <= 1


def test_a_small_class_keeps_its_minorities():
    assert quota_counts(5, [0, 1, 2]).tolist() == [3, 1, 1]


@pytest.mark.parametrize(
    ("quotas", "order", "n", "expected"),
    [
        ((10, 5, 3, 1, 1), [0, 1, 2, 3, 4], 40, [20, 10, 6, 2, 2]),
        ((10, 5, 3, 1, 1), [4, 3, 2, 1, 0], 20, [1, 1, 3, 5, 10]),
        ((7, 3), [1, 0], 10, [3, 7]),
        ((3, 1), [0, 1, 2, 3], 8, [6, 1, 1, 0]),  # the last quota is shared
        ((1,), [0, 1, 2], 7, [3, 2, 2]),  # balanced
        ((5, 5, 5), [0, 1, 2], 10, [3, 3, 4]),  # ties to the rarer share
    ],
)
def test_quotas_may_be_of_any_number(quotas, order, n, expected):
    assert quota_counts(n, order, quotas).tolist() == expected


def test_usual_quotas_are_the_published_ones_of_three_and_five():
    assert usual_quotas(3) == (7, 2, 1) and usual_quotas(5) == (10, 5, 3, 1, 1)
    for num_attributes in range(2, 20):
        assert 2 <= len(usual_quotas(num_attributes)) <= num_attributes


SIZES = GltSizes(train_C=(20, 10, 4), train_cbl=11, val=6, test=20)


def means(splits, labels, name, num_attributes):
    table = np.zeros((3, num_attributes), int)
    for position, attribute in splits[name]:
        table[labels[position], attribute] += 1
    return table


def test_rendered_keys_come_in_every_attribute_where_held_out_and_once_in_training():
    labels = np.repeat([0, 1, 2], 50)
    keys = [f"d{i}" for i in range(150)]
    splits = glt_splits(keys, labels, None, SIZES, num_attributes=4, seed=0)
    identities = {name: {p for p, _ in picks} for name, picks in splits.items()}
    training = identities["train"] | identities["train_cbl"]
    assert not training & identities["val"] and not training & identities["test_gbl"]
    assert not identities["val"] & identities["test_gbl"]
    assert identities["test_cbl"] == identities["test_gbl"]
    assert (means(splits, labels, "test_gbl", 4) == 20).all() and (means(splits, labels, "val", 4) == 6).all()
    for name, per_class in {"train": SIZES.train_C, "train_cbl": (11,) * 3, "test_cbl": (20,) * 3}.items():
        table = means(splits, labels, name, 4)
        for c, n in enumerate(per_class):
            assert table[c].tolist() == quota_counts(n, [(c + i) % 4 for i in range(4)]).tolist()
        assert len(identities[name]) == sum(per_class) == len(splits[name])


def test_given_attributes_are_respected_and_all_held_out_splits_are_disjoint():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 300)
    attributes = rng.choice(3, size=900, p=(0.6, 0.25, 0.15))
    keys = [f"k{i}" for i in range(900)]
    sizes = GltSizes(train_C=(60, 20, 8), train_cbl=30, val=6, test=30)
    splits = glt_splits(keys, labels, attributes, sizes, num_attributes=3, seed=1)
    assert all(attributes[p] == a for picks in splits.values() for p, a in picks)
    held_out = [p for name in ("val", "test_cbl", "test_gbl") for p, _ in splits[name]]
    assert len(held_out) == len(set(held_out))
    assert not set(held_out) & {p for name in ("train", "train_cbl") for p, _ in splits[name]}
    assert (means(splits, labels, "test_gbl", 3) == 10).all() and (means(splits, labels, "val", 3) == 2).all()
    assert sorted(means(splits, labels, "test_cbl", 3)[0].tolist()) == [3, 6, 21]
    assert means(splits, labels, "train", 3).sum(1).tolist() == [60, 20, 8]


def test_a_third_test_is_distributed_as_training_and_apart_from_everything():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 400)
    attributes = rng.choice(5, size=1200, p=(0.4, 0.3, 0.1, 0.1, 0.1))
    keys = [f"k{i}" for i in range(1200)]
    quotas = (10, 5, 3, 1, 1)
    sizes = GltSizes(train_C=(80, 40, 40), train_cbl=40, val=5, test=20, test_glt_C=(40, 20, 20), quotas=quotas)
    splits = glt_splits(keys, labels, attributes, sizes, num_attributes=5, seed=0)
    apart = [{p for p, _ in splits[name]} for name in ("val", "test_cbl", "test_gbl", "test_glt")]
    apart.append({p for name in ("train", "train_cbl") for p, _ in splits[name]})
    assert len(set().union(*apart)) == sum(map(len, apart))
    train, test = means(splits, labels, "train", 5), means(splits, labels, "test_glt", 5)
    assert (train == 2 * test).all() and sorted(train[0].tolist()) == [4, 4, 12, 20, 40]
    rendered = glt_splits(keys, labels, None, sizes, num_attributes=5, seed=0)
    assert means(rendered, labels, "test_glt", 5).sum(1).tolist() == [40, 20, 20]
    ours = {p for p, _ in rendered["test_glt"]}
    assert not ours & {p for name, picks in rendered.items() if name != "test_glt" for p, _ in picks}


@pytest.mark.parametrize("seed", range(8))
def test_quotas_and_balance_are_about_the_attributes_that_a_class_has(seed):
    rng = np.random.default_rng(seed)
    own = [rng.choice(9, size, replace=False) for size in rng.integers(2, 6, 3)]
    labels = np.repeat([0, 1, 2], 400)
    attributes = np.concatenate([rng.choice(ids, 400) for ids in own])
    keys = [f"k{i}" for i in range(1200)]
    sizes = GltSizes(train_C=(40, 20, 10), train_cbl=20, val=9, test=25, test_glt_C=(8, 4, 2), quotas=(7, 3))
    splits = glt_splits(keys, labels, attributes, sizes, num_attributes=9, seed=seed)
    apart = [{p for p, _ in splits[name]} for name in ("val", "test_cbl", "test_gbl", "test_glt")]
    apart.append({p for name in ("train", "train_cbl") for p, _ in splits[name]})
    assert len(set().union(*apart)) == sum(map(len, apart))
    assert all(attributes[p] == a for picks in splits.values() for p, a in picks)
    tables = {name: means(splits, labels, name, 9) for name in splits}
    for c, ids in enumerate(own):
        there = np.bincount(attributes[labels == c], minlength=9)
        order = sorted(ids.tolist(), key=lambda a, there=there: (-there[a], a))
        for name, n in {"test_gbl": 25, "val": 9}.items():
            assert tables[name][c, order].tolist() == [n // len(ids)] * len(ids)
        for name, n in {"train": sizes.train_C[c], "train_cbl": 20, "test_cbl": 25, "test_glt": (8, 4, 2)[c]}.items():
            assert tables[name][c, order].tolist() == quota_counts(n, range(len(ids)), (7, 3)).tolist()
            assert tables[name][c].sum() == n


def test_the_listing_order_changes_nothing_and_the_seed_does():
    labels = np.repeat([0, 1, 2], 50)
    keys = [f"d{i}" for i in range(150)]
    perm = np.random.default_rng(0).permutation(150)

    def named(keys, labels, seed):
        splits = glt_splits(keys, labels, None, SIZES, num_attributes=4, seed=seed)
        return {name: {(keys[p], a) for p, a in picks} for name, picks in splits.items()}

    assert named(keys, labels, 0) == named([keys[i] for i in perm], labels[perm], 0)
    assert named(keys, labels, 0) != named(keys, labels, 1)


def test_a_class_with_too_few_images_is_named():
    labels = np.repeat([0, 1, 2], [50, 35, 50])
    keys = [f"d{i}" for i in range(len(labels))]
    with pytest.raises(DataError, match="class 1 has too few images for split 'train"):
        glt_splits(keys, labels, None, SIZES, num_attributes=4, seed=0)
