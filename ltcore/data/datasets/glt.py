"""Generalized long-tailed splits: a long tail over classes, and one over attributes inside every class.

Source: Tang et al., "Invariant Feature Learning for Generalized Long-Tailed Classification" (ECCV 2022), construction of
ImageNet-GLT: attribute quotas 7 : 2 : 1 inside a class; tests are extracted first. Protocols: CLT = (train, test_cbl),
ALT = (train_cbl, test_gbl), GLT = (train, test_gbl).
Differs: "first in the list" is "smallest hash of (seed, key)", so no listing order matters; quotas are rounded to sum to
n (theirs truncate); where there are more attributes than quotas, the last quota is spread over all remaining attributes;
val is balanced over both unless ``GltSizes.val_C`` makes it i.i.d. with train, as theirs is. Attributes may be a class's
own: ranks, quotas and balance are about those that the class has.

A *key* is one picture's identity. Either its attribute is given, or it can be *rendered* with any of them; then val and
test_gbl hold every one of their keys with every attribute, and test_cbl one rendering of each test key.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ltcore.data.datasets.longtail import IntArray, keyed_order
from ltcore.errors import DataError

QUOTAS = (7, 2, 1)
"""Of the most frequent attribute of a class, the second, and the others, as in ImageNet-GLT."""
USUAL_QUOTAS = {2: (7, 3), 5: (10, 5, 3, 1, 1)}
"""By the number of attributes; ``QUOTAS`` for all other numbers."""

RENDERED = ("val", "test_gbl")
"""Splits that hold every one of their keys with every attribute, where keys are rendered."""
Picks = IntArray
"""[n, 2] positions of keys and attributes."""


@dataclass(frozen=True, kw_only=True)
class GltSizes:
    """How many keys of each class go where."""

    train_C: tuple[int, ...]
    """Long-tailed training images, by class id."""
    train_cbl: int
    """Class-balanced training images per class, of the same pool as ``train``; 0 for no such split."""
    val: int
    """Validation keys per class; no effect beside ``val_C``."""
    test: int
    """Test keys per class."""
    val_C: tuple[int, ...] = ()
    """Validation images, by class id, that are distributed as ``train``; () for as many of every class and attribute."""
    test_glt_C: tuple[int, ...] = ()
    """Images, by class id, of a further test that is distributed as ``train``; () for no such split."""
    quotas: tuple[int, ...] = QUOTAS
    """Shares of a class's attributes, most frequent first, at most as many as any class has attributes."""
    capped: bool = False
    """Whether a class that has too few images of an attribute gives what it has, as in ImageNet-GLT: its tests and val then
    are smaller, so that about half of the attribute is left, and training gets that."""


def usual_quotas(num_attributes: int) -> tuple[int, ...]:
    """Returns the usual quotas for so many attributes, at least two."""
    return USUAL_QUOTAS.get(num_attributes, QUOTAS)


def quota_counts(
    n: int, order: Sequence[int], quotas: Sequence[int] = QUOTAS, num_attributes: int | None = None
) -> IntArray:
    """Returns [A] images of each attribute for a class of ``n`` images.

    ``order[i]`` gets the share ``quotas[i]`` of their sum, and all attributes from the last quota on share that one.
    Counts are rounded by largest remainder (ties to the rarer share, so that a small class keeps its minorities); the
    last share goes around its attributes one by one. ``order`` has the attributes of the class, most frequent first, at
    least as many as there are quotas; the others of ``num_attributes`` (None: there are none) get no image.
    """
    total, last = sum(quotas), len(quotas) - 1
    shares = [n * quota // total for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: (n * quotas[i] % total, i), reverse=True)
    for i in by_remainder[: n - sum(shares)]:
        shares[i] += 1
    counts_A = np.zeros(len(order) if num_attributes is None else num_attributes, np.int64)
    counts_A[list(order[:last])] = shares[:last]
    around = len(order) - last
    counts_A[list(order[last:])] = [(shares[last] + around - 1 - i) // around for i in range(around)]
    return counts_A


def attribute_order(label: int, num_attributes: int, attributes_n: IntArray | None) -> list[int]:
    """Returns the attributes of a class, most frequent first.

    Where keys are rendered, it is a rotation from ``label``.
    """
    if attributes_n is None:
        return [(label + i) % num_attributes for i in range(num_attributes)]
    return by_frequency(np.bincount(attributes_n, minlength=num_attributes))


def by_frequency(counts_A: IntArray) -> list[int]:
    """Returns the attributes that have images, most frequent first (ties by id)."""
    there = np.flatnonzero(counts_A)
    return there[np.argsort(-counts_A[there], kind="stable")].tolist()


def wanted_counts(
    label: int, order: Sequence[int], sizes: GltSizes, num_attributes: int, there_A: IntArray | None = None
) -> dict[str, IntArray]:
    """Returns split -> [A] images that a class of given attributes needs, in the order of extraction.

    The two training splits, which come last, share their pool; all others are disjoint. What is balanced over attributes
    is rounded down to a multiple of those in ``order``, which are the class's. ``there_A`` are its images of each, for sizes
    that are ``capped``.
    """

    def equal(n: int) -> IntArray:
        counts_A = np.zeros(num_attributes, np.int64)
        counts_A[list(order)] = n // len(order)
        return counts_A

    def tailed(n: int) -> IntArray:
        return quota_counts(n, order, sizes.quotas, num_attributes)

    def held_out(test: int, val: int) -> dict[str, IntArray]:
        chosen = tailed(sizes.val_C[label]) if sizes.val_C else equal(val)
        return {"test_gbl": equal(test), "test_cbl": tailed(test), "val": chosen}

    counts = held_out(sizes.test, sizes.val)
    if sizes.capped and there_A is not None:
        own, each = len(order), sizes.test // len(order)
        while each > 1 and (2 * _total(counts) > there_A).any():
            each -= 1
            counts = held_out(each * own, min(sizes.val, max(1, each // 2) * own))
    if sizes.test_glt_C:
        counts["test_glt"] = tailed(sizes.test_glt_C[label])
    training = {"train": tailed(sizes.train_C[label]), "train_cbl": tailed(sizes.train_cbl)}
    if sizes.capped and there_A is not None:
        left_A = there_A - _total(counts)
        training = {split: np.minimum(counts_A, left_A) for split, counts_A in training.items()}
    return counts | training


def _total(counts: Mapping[str, IntArray]) -> IntArray:
    return np.sum(list(counts.values()), axis=0, dtype=np.int64)


def glt_splits(
    keys: Sequence[str],
    labels_N: IntArray,
    attributes_N: IntArray | None,
    sizes: GltSizes,
    *,
    num_attributes: int,
    seed: int,
) -> dict[str, Picks]:
    """Splits train, train_cbl, val, test_cbl, test_gbl, and test_glt if asked for, as [n, 2] positions and attributes.

    Keys of val, of the tests and of the training splits are disjoint; train and train_cbl share one pool. With given
    attributes the tests are disjoint as well, and where a split is balanced over attributes, ``val`` and ``test`` are
    rounded down to a multiple of those that the class has.

    Args:
        keys: [N] distinct identities.
        labels_N: int64 class ids.
        attributes_N: int64 attribute ids, or None where every key can be rendered with every attribute.
        num_attributes: A; every class has at least len(sizes.quotas) of them.

    Raises DataError naming class and split where a class has too few keys.
    """
    names = ("train", "train_cbl", "val", "test_cbl", "test_gbl", *(("test_glt",) if sizes.test_glt_C else ()))
    splits: dict[str, list[Picks]] = {name: [np.empty((0, 2), np.int64)] for name in names}

    def add(name: str, pairs: Iterable[tuple[int, int]]) -> None:
        splits[name].append(np.array(list(pairs), np.int64).reshape(-1, 2))

    by_label = np.split(
        np.argsort(labels_N, kind="stable"),
        np.cumsum(np.bincount(labels_N, minlength=len(sizes.train_C)))[:-1],
    )
    for label, members in enumerate(by_label):
        order = attribute_order(label, num_attributes, None if attributes_N is None else attributes_N[members])
        pool = keyed_order(keys, members, seed, "glt").tolist()
        fill = _Filler(label, attributes_N, order)
        there_A = None if attributes_N is None else np.bincount(attributes_N[members], minlength=num_attributes)
        counts = wanted_counts(label, order, sizes, num_attributes, there_A)
        if attributes_N is None:
            tests, pool = pool[: sizes.test], pool[sizes.test :]
            held_out, pool = pool[: sizes.val], pool[sizes.val :]
            add("test_gbl", itertools.product(tests, range(num_attributes)))
            add("test_cbl", fill("test_cbl", counts["test_cbl"], tests)[0])
            add("val", itertools.product(held_out, range(num_attributes)))
            alone = [name for name in counts if name == "test_glt"]
        else:
            alone = [name for name in counts if not name.startswith("train")]
        for name in alone:
            picks, pool = fill(name, counts[name], pool)
            add(name, picks)
        for name in ("train", "train_cbl"):
            add(name, fill(name, counts[name], pool)[0])
    return {name: np.concatenate(parts) for name, parts in splits.items()}


@dataclass(frozen=True)
class _Filler:
    """Fills the quotas of one class from a pool in hash order."""

    label: int
    attributes_N: IntArray | None
    order: list[int]

    def __call__(self, name: str, counts_A: IntArray, pool: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        """Returns the first keys that fill the quotas, and the pool without them."""
        need = counts_A.tolist()
        picks: list[tuple[int, int]] = []
        rest: list[int] = []
        for position in pool:
            if self.attributes_N is None:
                attribute = next((a for a in self.order if need[a]), self.order[0])
            else:
                attribute = int(self.attributes_N[position])
            if need[attribute]:
                need[attribute] -= 1
                picks.append((position, attribute))
            else:
                rest.append(position)
        if any(need):
            raise DataError(
                f"class {self.label} has too few images for split {name!r}: of the quotas per attribute "
                f"{counts_A.tolist()}, {need} are left open; ask for fewer images per class."
            )
        return picks, rest
