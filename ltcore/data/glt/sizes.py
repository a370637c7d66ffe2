"""How many images of each class and attribute every split gets, out of those that there are."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ltcore.data.datasets.glt import GltSizes, by_frequency, usual_quotas, wanted_counts
from ltcore.data.datasets.longtail import IntArray, pareto_profile, profile, step_profile
from ltcore.data.glt.choices import MOST_TESTS, GltChoices
from ltcore.data.glt.pool import Pool
from ltcore.errors import ConfigError, DataError
from ltcore.text import counted, few_words

PROFILE = {"exponential": profile, "pareto": pareto_profile, "step": step_profile}
"""Class sizes by rank, from the largest size, the number of classes and the imbalance factor."""
TEST_SHARE, HELD_OUT_SHARE = 4, 2
"""Without a number of test images, test_gbl takes at most a quarter of the rarest class and attribute, as in ImageNet-GLT,
and all tests and val together at most half of any, so that training has the other half."""


def choose_sizes(pool: Pool, choices: GltChoices) -> GltSizes:
    """Chooses the size of every split for images that all have an attribute.

    Class ranks go by the images that there are, ties by class id. An attribute counts for a class that has images of it;
    the usual quotas are those for the fewest attributes of any class. What ``choices`` leave open follows from the rarest
    attribute of any class: first the tests and val, then the largest class for which every quota can be filled, then
    train_cbl. Raises DataError that names class and attribute where there are too few, and what would fit.
    """
    counts_CA = pool.counts()
    own_C = np.count_nonzero(counts_CA, axis=1)
    _refuse_missing(pool, own_C)
    fewest, most = int(own_C.argmin()), int(own_C.argmax())
    quotas = choices.quotas or usual_quotas(int(own_C[fewest]))
    if len(quotas) > own_C[fewest]:
        names = [pool.attributes[a] for a in by_frequency(counts_CA[fewest])]
        raise ConfigError(
            f"--quotas {','.join(map(str, quotas))}: {len(quotas)} shares for {len(names)} attributes of class "
            f"{pool.classes[fewest]!r} ({few_words(names)}). Give at most as many."
        )
    if choices.class_counts and len(choices.class_counts) != len(own_C):
        raise ConfigError(
            f"there are {len(choices.class_counts)} class counts for {len(own_C)} classes. Give one for each."
        )
    is_capped = choices.shortage == "cap"
    if choices.test is not None:
        test = choices.test
    else:
        test = MOST_TESTS * int(own_C[most]) if is_capped else _test_size(pool, counts_CA, quotas)
    for what, value in (("test", test), ("val", choices.val)):
        if value is not None and value < own_C[most]:
            raise ConfigError(
                f"--{what}-per-class {value}: class {pool.classes[most]!r} has {own_C[most]} attributes, and each needs an "
                f"image. Give {own_C[most]} or more."
            )
    val = _val_size(test, own_C) if choices.val is None else choices.val
    fixed = GltSizes(train_C=(), train_cbl=0, val=val, test=test, quotas=quotas, capped=is_capped)
    fitting = _Fitting(pool, choices, counts_CA, fixed)
    return fitting.choose()


def size_remarks(pool: Pool, sizes: GltSizes) -> list[str]:
    """Returns what a person may not expect of classes that do not have the same attributes, a sentence each.

    An attribute that one class alone or a few have is taken for theirs; one that at least half of them have may have been
    forgotten in the others.
    """
    there_CA = pool.counts() > 0
    found, own_C, quotas = [], there_CA.sum(1), ":".join(map(str, sizes.quotas))
    common_A = there_CA.sum(0) >= max(2, len(own_C) / 2)
    gaps = [f"{pool.classes[c]} / {pool.attributes[a]}" for c, a in np.argwhere(common_A & ~there_CA).tolist()]
    if gaps:
        found.append(
            f"{pool.name}: {counted(len(gaps), 'pair')} of class and attribute without images, though half of the classes or "
            f"more have the attribute: {few_words(gaps)}. The shares {quotas} go to the attributes that each class has."
        )
    if sizes.capped:
        found += _shortages(pool, sizes)
        return found
    equal_C, unit = sizes.test // own_C * own_C, _unit(own_C)
    if equal_C.min() < equal_C.max():
        advice = f" --test-per-class {sizes.test // unit * unit} balances it." if unit <= sizes.test else ""
        found.append(
            f"{pool.name}: classes have {own_C.min()} to {own_C.max()} attributes, so test_gbl has {equal_C.min()} to "
            f"{equal_C.max()} images of a class.{advice}"
        )
    return found


def _shortages(pool: Pool, sizes: GltSizes) -> list[str]:
    """Returns which classes have fewer images than sizes and quotas want, a sentence for training and one for the tests."""
    found, counts_CA = [], pool.counts()
    pairs = list(zip(_needs(counts_CA, sizes), _needs(counts_CA, replace(sizes, capped=False)), strict=True))
    for split in ("train", "train_cbl", "val", "test_cbl", "test_gbl"):
        sums = {label: (int(has[split].sum()), int(wants[split].sum())) for (label, has), (_, wants) in pairs}
        short = [pool.classes[label] for label, (has, wants) in sums.items() if has < wants]
        if short:
            has, wants = (sum(pair[i] for pair in sums.values()) for i in (0, 1))
            who = f"{pool.name}: {len(short)} of {counted(len(sums), 'class')} {'has' if len(short) == 1 else 'have'}"
            found.append(
                f"{who} fewer images for {split} than its size says, {has:,} of {wants:,} in all: {few_words(short)}."
            )
    return found


def _refuse_missing(pool: Pool, own_C: IntArray) -> None:
    if len(pool.attributes) < 2:
        there = "no attributes" if not pool.attributes else f"one attribute alone, {pool.attributes[0]!r}"
        raise DataError(
            f"{pool.name} has {there}, and a tail inside classes needs two or more. Give --attributes FILE, --attributes-from "
            "LEVEL or --attribute-column NAME, or have them found: --discover random."
        )
    lacking = [pool.classes[c] for c in np.flatnonzero(own_C < 2)]
    if lacking:
        raise DataError(
            f"{pool.name}: every class needs images of two attributes or more, and {counted(len(lacking), 'class')} "
            f"{'has' if len(lacking) == 1 else 'have'} fewer: {few_words(lacking)}. Add images, or leave such classes out."
        )


def _unit(own_C: IntArray) -> int:
    """Returns the fewest images that every class can divide equally among its attributes."""
    return math.lcm(*own_C.tolist())


def _val_size(test: int, own_C: IntArray) -> int:
    """Returns about half of a test, equally many images of every class where half of a test can be that."""
    unit = _unit(own_C)
    if 2 * unit > test:
        unit = int(own_C.max())
    return max(1, test // unit // 2) * unit


def _test_size(pool: Pool, counts_CA: IntArray, quotas: tuple[int, ...]) -> int:
    """Returns the images per class of a test: equally many of each attribute, at most what the shares allow.

    Where classes differ in their number of attributes, they still have equally many test images if the rarest attributes
    allow it.
    """
    there_CA = np.where(counts_CA > 0, counts_CA, counts_CA.max())
    label, attribute = np.unravel_index(there_CA.argmin(), counts_CA.shape)
    if (rarest := counts_CA[label, attribute]) < TEST_SHARE:
        raise DataError(
            f"class {pool.classes[label]!r} has {rarest} images of attribute {pool.attributes[attribute]!r}, expected "
            f"{TEST_SHARE} or more of each, of which a quarter goes to test_gbl. Add images, or say --test-per-class."
        )
    own_C = np.count_nonzero(counts_CA, axis=1)
    limit = int((own_C * np.minimum(MOST_TESTS, there_CA.min(1) // TEST_SHARE)).min())

    def leaves_half(test: int) -> bool:
        none = GltSizes(train_C=(0,) * len(own_C), train_cbl=0, val=_val_size(test, own_C), test=test, quotas=quotas)
        return all((HELD_OUT_SHARE * _total(need) <= counts_CA[c]).all() for c, need in _needs(counts_CA, none))

    unit = _unit(own_C)
    if unit > limit or not leaves_half(unit):
        unit = int(own_C.max())
    return max(1, _most(limit // unit, lambda units: leaves_half(units * unit))) * unit


@dataclass(frozen=True)
class _Fitting:
    """The search for sizes that the images allow."""

    pool: Pool
    choices: GltChoices
    counts_CA: IntArray
    fixed: GltSizes
    """Of it all but training and what is distributed as training."""

    def choose(self) -> GltSizes:
        room = int(self.counts_CA.sum(1).max())
        if self.choices.fits:
            largest = _most(room, lambda size: self._fits(self._sizes(size)))
            if min(self._profile(largest)) < 1:
                self._refuse(self._sizes(self._least()))
        elif isinstance(self.choices.largest, int):
            largest = self.choices.largest
        else:
            largest = self.choices.class_counts[0]
        sizes = self._sizes(largest)
        self._refuse(sizes)
        if sizes.capped:
            return replace(sizes, train_cbl=self.choices.train_cbl or self._mean_class(sizes))
        if self.choices.train_cbl is not None:
            sizes = replace(sizes, train_cbl=self.choices.train_cbl)
            self._refuse(sizes)
            return sizes
        mean = round(sum(sizes.train_C) / len(sizes.train_C))
        return replace(sizes, train_cbl=_most(mean, lambda size: self._fits(replace(sizes, train_cbl=size))))

    def _mean_class(self, sizes: GltSizes) -> int:
        """Returns the mean of the training images that the classes do have."""
        return max(
            1,
            round(sum(int(wanted["train"].sum()) for _, wanted in _needs(self.counts_CA, sizes)) / len(self.counts_CA)),
        )

    def _profile(self, largest: int) -> list[int]:
        """Returns the training images by class rank."""
        if given := self.choices.class_counts:
            return [count * largest // given[0] for count in given]
        return PROFILE[self.choices.profile](largest, len(self.pool.classes), self.choices.imbalance_factor)

    def _least(self) -> int:
        """Returns the smallest size of the largest class at which no class is empty."""
        start = self.choices.imbalance_factor if not self.choices.class_counts else self.choices.class_counts[0]
        return next(size for size in range(int(start), 2 * int(start) + 2) if min(self._profile(size)) >= 1)

    def _sizes(self, largest: int) -> GltSizes:
        rank_to_class = np.argsort(-self.counts_CA.sum(1), kind="stable")
        train_C = np.empty(len(rank_to_class), np.int64)
        train_C[rank_to_class] = self._profile(largest)
        as_train = self.choices.test_glt, self.choices.val_glt
        test_glt_C, val_C = (apportion(images, train_C.tolist()) if images else () for images in as_train)
        return replace(self.fixed, train_C=tuple(train_C.tolist()), test_glt_C=test_glt_C, val_C=val_C)

    def _fits(self, sizes: GltSizes) -> bool:
        return all((_total(wanted) <= self.counts_CA[label]).all() for label, wanted in _needs(self.counts_CA, sizes))

    def _refuse(self, sizes: GltSizes) -> None:
        """Raises DataError where the sizes do not fit: class, attribute, what is there, and what would fit."""
        if min(sizes.train_C) < 1:
            raise ConfigError(
                f"imbalance_factor={self.choices.imbalance_factor:g} leaves the smallest of {len(sizes.train_C)} classes without "
                f"a training image (the largest has {max(sizes.train_C)}). Use a smaller factor."
            )
        for label, wanted in _needs(self.counts_CA, sizes):
            if sizes.capped and (min(map(np.min, wanted.values())) < 0 or not wanted["train"].any()):
                raise DataError(
                    f"class {self.pool.classes[label]!r} has {self.counts_CA[label].sum():,} images, and nothing of them is left "
                    f"for training beside its tests. Add images, leave the class out, or give smaller tests (--test-per-class)."
                )
            short = np.flatnonzero(_total(wanted) > self.counts_CA[label])
            if len(short):
                raise DataError(self._shortage(label, int(short[0]), wanted, sizes))

    def _shortage(self, label: int, attribute: int, wanted: dict[str, IntArray], sizes: GltSizes) -> str:
        parts = {split: int(counts_A[attribute]) for split, counts_A in wanted.items() if counts_A[attribute]}
        listed = ", ".join(f"{split} {count:,}" for split, count in parts.items())
        room = max(sizes.train_C)
        fitting = _most(room, lambda size: self._fits(self._sizes(size)))
        smaller = f"smaller tests (--test-per-class, {'--val-glt' if sizes.val_C else '--val-per-class'})"
        if fitting and min(self._profile(fitting)) >= 1:
            advice = f"--max-class {fitting} fits, and --max-class fit finds it"
            if sizes.train_cbl and fitting >= room:
                advice = "Give a smaller --train-cbl"
        elif factor := self._fitting_factor():
            advice = f"--imbalance-factor {factor} fits, or give {smaller}"
        else:
            advice = f"Give {smaller}"
        if not (self.choices.fits or self.choices.test_glt or self.choices.val_glt):
            advice += ". Or take what is there: --shortage cap"
        return (
            f"class {self.pool.classes[label]!r} has {self.counts_CA[label, attribute]:,} images of attribute "
            f"{self.pool.attributes[attribute]!r}, and {int(_total(wanted)[attribute]):,} are wanted ({listed}; the two "
            f"training splits share theirs). {advice}."
        )

    def _fitting_factor(self) -> int:
        """Returns the largest whole imbalance factor below the present one at which the images suffice; 0 where none does."""
        if self.choices.class_counts or not self.choices.fits:
            return 0

        def suffices(factor: int) -> bool:
            tried = replace(self, choices=replace(self.choices, imbalance_factor=float(factor)))
            return tried._fits(tried._sizes(tried._least()))

        return _most(int(self.choices.imbalance_factor), suffices)


def _needs(counts_CA: IntArray, sizes: GltSizes) -> Iterator[tuple[int, dict[str, IntArray]]]:
    """Yields each class and the images that every split wants of its attributes."""
    for label, counts_A in enumerate(counts_CA):
        yield label, wanted_counts(label, by_frequency(counts_A), sizes, len(counts_A), counts_A)


def _total(wanted: dict[str, IntArray]) -> IntArray:
    """Returns [A] images that all splits together take; those of training share."""
    total_A = np.maximum(wanted["train"], wanted["train_cbl"])
    for split, counts_A in wanted.items():
        if not split.startswith("train"):
            total_A += counts_A
    return total_A


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """Returns the largest number up to ``limit`` that fits; 0 where none does.

    Rounded quotas may fall by one when their sum grows, so the number found by halving is tried against its neighbors.
    """
    found = bisect.bisect_left(range(1, limit + 1), True, key=lambda size: not fits(size))
    return next((size for size in range(min(limit, found + 1), 0, -1) if fits(size)), 0)


def apportion(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Returns whole numbers in proportion to the weights that sum to ``total``; ties of remainders to the first."""
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return tuple(shares)
