"""Long-tailed training sets with an exponential profile, and the validation split beside them.

Source: the generator that LDAM-DRW, PaCo, DRO-LT, SADE and BoT share. The class of rank r of C keeps
``int(n_max * (1 / IF) ** (r / (C - 1)))`` images. Differs: the published code knows only data sets whose classes are equally
large and in whose order class id and rank agree; here rank is the order of descending size (ties by class id), which
is the same thing there, and ``n_max`` is the largest number for which every class can fill its place exactly.

There is no published validation split: every reference selects on the test set. Ours comes from the training images
that the long tail leaves over, so neither the training nor the test set changes.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcore.data.config import DataConfig
from ltcore.data.shards.remarks import SELECTED_FROM
from ltcore.errors import DataError
from ltcore.hashing import hash64

IntArray = NDArray[np.int64]

PARETO_POWER = 6
ROUNDING = 1e-9
"""Added before a quotient is truncated: 0.1 * 50 may be a little less than 5."""
VAL_AT_MOST = 5
"""Validation images that must come out of the training split itself are at most 1/5 of a class, but one of a small class."""
VAL_FROM = 3
"""Smallest class that gives a validation image, counted with its test image where that is taken out of it as well."""


@dataclass(frozen=True)
class Subset:
    """Positions, ascending, into the arrays given to :func:`carve`; ``val`` is empty where none was asked for."""

    available: int
    """How many positions there were."""
    train_n: IntArray
    val_m: IntArray
    val_short: dict[int, int]
    """class id -> validation images it got, for the classes that got fewer than was asked."""


def profile(largest: int, num_classes: int, imbalance_factor: float) -> list[int]:
    """Returns the number of images per class rank, ``largest`` first.

    It is ``int(largest * (1 / IF) ** (r / (C - 1)))``, truncated as published but for what is a whole number up to rounding:
    49 / 49 is 1. The published selections of CIFAR have no such sizes.
    """
    if imbalance_factor < 1:
        raise ValueError(f"imbalance_factor={imbalance_factor} must be at least 1 (largest class / smallest class)")
    mu = 1.0 / imbalance_factor
    return [int(largest * mu ** (rank / max(num_classes - 1, 1)) + ROUNDING) for rank in range(num_classes)]


def pareto_profile(largest: int, num_classes: int, imbalance_factor: float) -> list[int]:
    """Returns the number of images per class rank, ``largest`` first, by a Pareto law with power 6.

    Source: Liu et al. (CVPR 2019), who draw ImageNet-LT from a Pareto distribution with power 6. They publish the list and
    not the draw; here rank r of C gets the quantile ``((r + 1) / C) ** (-1/6)``, stretched so that the first class has
    ``largest`` images and the last ``largest / imbalance_factor``, truncated. 1000 classes of 1280 to 5 images are then
    121,449 images, where theirs are 115,846.
    """
    smallest = largest / imbalance_factor
    quantiles = [((rank + 1) / num_classes) ** (-1 / PARETO_POWER) for rank in range(num_classes)]
    stretch = (largest - smallest) / max(quantiles[0] - 1, 1e-9)
    return [largest, *(int(smallest + stretch * (quantile - 1) + ROUNDING) for quantile in quantiles[1:])]


def step_profile(largest: int, num_classes: int, imbalance_factor: float) -> list[int]:
    """Returns ``largest`` for the first half of the class ranks, and ``largest / imbalance_factor`` for the others.

    Source: step imbalance of Buda et al. (Neural Networks 2018) with half of the classes in the minority, as in LDAM (Cao
    et al., NeurIPS 2019). Truncated; with an odd number of classes the larger half is in the minority.
    """
    half = num_classes // 2
    return [largest] * half + [int(largest / imbalance_factor + ROUNDING)] * (num_classes - half)


def long_tail_counts(available_C: IntArray, imbalance_factor: float) -> IntArray:
    """Returns [C] images that each class keeps, by class id, so that the profile holds exactly.

    As sizes are whole numbers, truncated as published, the largest is up to twice the factor of a very small one.
    Raises DataError where the smallest class would be left without an image.
    """
    rank_to_class = np.argsort(-available_C, kind="stable")
    room_C = available_C[rank_to_class]

    def kept(largest: int) -> IntArray:
        return np.array(profile(largest, len(room_C), imbalance_factor), np.int64)

    def too_many(largest: int) -> bool:
        return bool((kept(largest) > room_C).any())

    # the most for which no class lacks any
    largest = bisect.bisect_left(range(int(room_C[0]) + 1), True, key=too_many) - 1
    kept_C = kept(largest)
    if kept_C[-1] < 1:
        raise DataError(
            f"imbalance_factor={imbalance_factor:g} leaves the smallest of {len(room_C)} classes without a training "
            f"image (the largest would have {largest}); use at most {largest}."
        )
    counts_C = np.empty_like(kept_C)
    counts_C[rank_to_class] = kept_C
    return counts_C


def keyed_order(keys: Sequence[str], positions: IntArray, seed: int, purpose: str) -> IntArray:
    """Returns the positions by ascending hash of (seed, purpose, key).

    This is a shuffle that does not depend on the order of the listing.
    """
    return hash_order(keys, positions, seed, purpose)


def hash_order(keys: Sequence[str], positions: IntArray, *words: int | str) -> IntArray:
    """Returns the positions by ascending hash of words and key; equal hashes go by key."""
    hashes_n = np.fromiter((hash64(*words, keys[p]) for p in map(int, positions)), np.uint64, len(positions))
    order_n = np.argsort(hashes_n, kind="stable")
    ordered_n = hashes_n[order_n]
    if (ordered_n[1:] == ordered_n[:-1]).any():
        order_n = np.array(sorted(order_n.tolist(), key=lambda n: (hashes_n[n], keys[int(positions[n])])))
    return positions[order_n]


def select_keyed(keys: Sequence[str], labels_N: IntArray, counts_C: IntArray, seed: int) -> IntArray:
    """Selects the ``counts_C`` keys with the smallest hash from every class; positions ascend."""
    chosen = [
        keyed_order(keys, np.flatnonzero(labels_N == c), seed, "longtail")[:count] for c, count in enumerate(counts_C)
    ]
    return np.sort(np.concatenate(chosen))


def select_legacy(labels_N: IntArray, counts_C: IntArray, seed: int) -> IntArray:
    """Makes the published selection; ``labels_N`` must be in the data set's original order.

    One legacy MT19937 stream (published seed: 0) shuffles the ascending positions of class 0, 1, ... in place and keeps
    the first ``counts_C`` of each. The positions returned ascend.
    """
    stream = np.random.RandomState(seed)
    chosen = []
    for c, count in enumerate(counts_C):
        positions = np.flatnonzero(labels_N == c)
        stream.shuffle(positions)
        chosen.append(positions[:count])
    return np.sort(np.concatenate(chosen))


def carve(
    keys: Sequence[str],
    labels_N: IntArray,
    num_classes: int,
    *,
    imbalance_factor: float | None,
    subset: str = "keyed",
    seed: int = 0,
    val_per_class: int = 0,
    smallest: int = VAL_FROM,
) -> Subset:
    """Selects long-tailed training positions, and ``val_per_class`` validation positions per class.

    With an ``imbalance_factor`` validation images come only from those the long tail leaves over: the largest class has
    none left and gets fewer or none, and the training split keeps its published size. Without one (the data are used as
    they are) they are taken out of training, at most a fifth of each class, but at least one of a class of ``smallest``
    images or more. ``val_short`` says which classes got fewer.

    Args:
        keys: [N] distinct keys; for ``subset="legacy"`` in the data set's original order.
        labels_N: int64 class ids of the keys.
        imbalance_factor: images of the largest class / images of the smallest one; None uses all images.
        subset: "keyed" (smallest hash first) or "legacy" (published numpy selection); no effect without a factor.
        val_per_class: 0 for none.
        smallest: class that still gives a validation image, without a factor.
    """
    available_C = np.bincount(labels_N, minlength=num_classes).astype(np.int64)
    if imbalance_factor is None:
        train_n = np.arange(len(labels_N), dtype=np.int64)
        spare_n, spare_C = train_n, available_C
        share_C = np.where(available_C >= smallest, np.maximum(available_C // VAL_AT_MOST, 1), 0)
        limit_C = np.minimum(val_per_class, share_C)
    else:
        counts_C = long_tail_counts(available_C, imbalance_factor)
        if subset == "legacy":
            train_n = select_legacy(labels_N, counts_C, seed)
        else:
            train_n = select_keyed(keys, labels_N, counts_C, seed)
        spare_n = np.setdiff1d(np.arange(len(labels_N), dtype=np.int64), train_n)
        spare_C = available_C - counts_C
        limit_C = np.minimum(val_per_class, spare_C)
    by_class = np.split(spare_n[np.argsort(labels_N[spare_n], kind="stable")], np.cumsum(spare_C)[:-1])
    val = [keyed_order(keys, by_class[c], seed, "val")[: limit_C[c]] for c in np.flatnonzero(limit_C)]
    val_m = np.concatenate([np.empty(0, np.int64), *val])
    return Subset(
        available=len(labels_N),
        train_n=np.setdiff1d(train_n, val_m),
        val_m=np.sort(val_m),
        val_short={c: int(limit) for c, limit in enumerate(limit_C) if limit < val_per_class},
    )


def tail_name(base: str, cfg: DataConfig) -> str:
    """Returns a name such as ``cifar100-if100-keyed``, or the base alone for data used as they are."""
    return base if cfg.imbalance_factor is None else f"{base}-if{cfg.imbalance_factor:g}-{cfg.chosen_subset}"


def tail_provenance(cfg: DataConfig, carved: Subset, classes: Sequence[str], *, val_given: bool) -> dict[str, Any]:
    """Returns how train and val were chosen, and which classes have too few validation images."""
    chosen: dict[str, Any] = {}
    if cfg.imbalance_factor is not None:
        chosen |= {"subset": cfg.chosen_subset, SELECTED_FROM: carved.available}
    chosen |= {"imbalance_factor": cfg.imbalance_factor, "subset_seed": cfg.subset_seed}
    if val_given:
        return {**chosen, "val": "as given"}
    own = "training images, at most a fifth of a class, but one image of a small one"
    spare = own if cfg.imbalance_factor is None else "unused training images"
    return {
        **chosen,
        "val": f"{cfg.val_per_class} per class of {spare}",
        "val_short": {classes[c]: count for c, count in carved.val_short.items()},
    }
