"""Sizes follow from the images, and where they do not fit, the message says what would."""

import re

import numpy as np
import pytest

from ltcore.data.datasets.glt import by_frequency, quota_counts, wanted_counts
from ltcore.data.datasets.image_folder import Item
from ltcore.data.datasets.image_root import AtHand
from ltcore.data.glt.choices import Discovery, GltChoices
from ltcore.data.glt.items import Items
from ltcore.data.glt.pool import Pool
from ltcore.data.glt.sizes import apportion, choose_sizes, size_remarks
from ltcore.errors import ConfigError, DataError


def pool_of(counts_CA):
    items = [
        Item(f"{c}/{a}/{n}", f"{c}/{a}/{n}", "png", c, a)
        for c, row in enumerate(counts_CA)
        for a, count in enumerate(row)
        for n in range(count)
    ]
    names = tuple(f"c{c}" for c in range(len(counts_CA))), tuple(f"a{a}" for a in range(len(counts_CA[0])))
    return Pool(name="p", root=AtHand(), items=Items.of(items), classes=names[0], attributes=names[1], identity="p")


def taken(counts_CA, sizes):
    """[C, A] images that all splits take."""
    found = []
    for label, row in enumerate(counts_CA):
        wanted = wanted_counts(label, by_frequency(np.array(row)), sizes, len(row), np.array(row))
        train = np.maximum(wanted.pop("train"), wanted.pop("train_cbl"))
        found.append(train + sum(wanted.values()))
    return np.array(found)


COUNTS = [[400, 200, 100], [100, 300, 150], [80, 60, 200], [90, 90, 90]]


def wanted_of(counts_CA, sizes):
    rows = enumerate(map(np.array, counts_CA))
    return [wanted_counts(label, by_frequency(row), sizes, len(row), row) for label, row in rows]


def test_a_shortage_is_capped_at_what_is_there_as_in_imagenet_glt():
    """The list of class sizes stays, whole classes give their quotas, and short ones what is left beside their tests."""
    counts_CA = [[500, 400, 400], [600, 500, 200], [520, 30, 8], [900, 300, 100]]
    choices = GltChoices(class_counts=(300, 120, 60, 20), shortage="cap", train_cbl=100)
    sizes = choose_sizes(pool_of(counts_CA), choices)
    assert (sizes.test, sizes.val, sizes.train_C) == (60, 30, (300, 120, 20, 60))
    whole, first, short, last = wanted_of(counts_CA, sizes)
    assert first["test_gbl"].tolist() == [20, 20, 20] and first["test_cbl"].tolist() == [42, 12, 6]
    for has in (whole, first, short, last):  # a quarter of the rarest attribute at most, and half is left
        assert len(set(has["test_gbl"].tolist())) == len(set(has["val"].tolist())) == 1
    assert short["test_gbl"].tolist() == [2, 2, 2] and short["val"].tolist() == [1, 1, 1]
    assert short["test_cbl"].sum() == 6
    left = np.array(counts_CA[2]) - short["test_gbl"] - short["test_cbl"] - short["val"]
    assert (short["train_cbl"] == np.minimum([70, 20, 10], left)).all() and short["train_cbl"].sum() < 100
    assert (taken(counts_CA, sizes) <= np.array(counts_CA)).all()
    said = size_remarks(pool_of(counts_CA), sizes)
    assert [sentence.partition(" than ")[0] for sentence in said] == [
        f"p: 1 of 4 classes has fewer images for {split}" for split in ("train_cbl", "val", "test_cbl", "test_gbl")
    ]
    assert said[-1] == "p: 1 of 4 classes has fewer images for test_gbl than its size says, 186 of 240 in all: c2."


def test_a_shortage_says_that_it_can_be_capped_and_what_cannot_be():
    counts_CA = [[200, 30, 8], [90, 60, 40]]
    pool = pool_of(counts_CA)
    with pytest.raises(DataError, match=r"Or take what is there: --shortage cap"):
        choose_sizes(pool, GltChoices(class_counts=(80, 40)))
    sizes = choose_sizes(pool, GltChoices(class_counts=(80, 40), shortage="cap"))
    assert sizes.train_cbl == round(sum(int(wanted["train"].sum()) for wanted in wanted_of(counts_CA, sizes)) / 2)
    assert "for train than its size says" in size_remarks(pool, sizes)[0]
    with pytest.raises(DataError, match="class 'c0' has 6 images, and nothing of them is left for training"):
        choose_sizes(pool_of([[3, 2, 1], [90, 60, 40]]), GltChoices(class_counts=(80, 40), shortage="cap"))
    for choices, said in (
        ({}, "needs sizes that are given"),
        ({"largest": 9, "test_glt": 4}, "does not go with test_glt"),
        ({"largest": 9, "val_glt": 4}, "does not go with val_glt"),
    ):
        with pytest.raises(ValueError, match=said):
            GltChoices(shortage="cap", **choices)


@pytest.mark.parametrize("profile", ["exponential", "pareto", "step"])
@pytest.mark.parametrize("test_glt", [0, 40])
def test_the_largest_class_is_as_large_as_fits_and_no_larger(profile, test_glt):
    choices = GltChoices(profile=profile, imbalance_factor=10, test_glt=test_glt)
    sizes = choose_sizes(pool_of(COUNTS), choices)
    assert (taken(COUNTS, sizes) <= np.array(COUNTS)).all()
    assert sizes.train_C[0] == max(sizes.train_C) and min(sizes.train_C) >= 1
    assert (
        sizes.test == 36 and sizes.val == 18
    )  # of 90 the majority gives 12 + 25 + 6 to them, and 13 + 27 + 6 are too many
    assert sum(sizes.test_glt_C) == test_glt
    with pytest.raises(DataError, match=f"--max-class {max(sizes.train_C)} fits"):
        choose_sizes(pool_of(COUNTS), GltChoices(profile=profile, imbalance_factor=10, test_glt=test_glt, largest=2000))
    fixed = GltChoices(
        profile=profile, imbalance_factor=10, test_glt=test_glt, largest=max(sizes.train_C), train_cbl=sizes.train_cbl
    )
    assert choose_sizes(pool_of(COUNTS), fixed) == sizes


def test_a_validation_that_is_distributed_as_training_fits_beside_all_else():
    choices = GltChoices(imbalance_factor=10, val_glt=120)
    sizes = choose_sizes(pool_of(COUNTS), choices)
    assert (
        sizes.val_C == apportion(120, sizes.train_C) and sum(sizes.val_C) == 120 and max(sizes.val_C) == sizes.val_C[0]
    )
    assert (taken(COUNTS, sizes) <= np.array(COUNTS)).all()
    first = wanted_of(COUNTS, sizes)[0]
    assert first["val"].tolist() == quota_counts(sizes.val_C[0], [0, 1, 2]).tolist() != [sizes.val // 3] * 3
    balanced = choose_sizes(pool_of(COUNTS), GltChoices(imbalance_factor=10))
    assert balanced.val_C == () and len(set(wanted_of(COUNTS, balanced)[0]["val"].tolist())) == 1
    with pytest.raises(DataError, match=r"are wanted \(.*val 1,.*Give smaller tests \(--test-per-class, --val-glt\)"):
        choose_sizes(pool_of(COUNTS), GltChoices(imbalance_factor=10, val_glt=4000, largest=60))
    with pytest.raises(ValueError, match="val=12 has no effect beside val_glt=40"):
        GltChoices(val=12, val_glt=40)


def test_class_ranks_go_by_images_and_ties_by_name():
    sizes = choose_sizes(pool_of(COUNTS), GltChoices(imbalance_factor=8, largest=80))
    assert sizes.train_C == (80, 40, 20, 10)  # 700, 550, 340, 270 images
    tied = choose_sizes(pool_of([[90, 90, 90]] * 3), GltChoices(imbalance_factor=4, largest=40, test=15, val=6))
    assert tied.train_C == (40, 20, 10)


def test_given_counts_hold_exactly_or_are_scaled_where_that_is_asked():
    counts = (600, 60, 30, 6)
    with pytest.raises(DataError, match=r"class 'c0' has .* --max-class \d+ fits"):
        choose_sizes(pool_of(COUNTS), GltChoices(class_counts=counts))
    sizes = choose_sizes(pool_of(COUNTS), GltChoices(class_counts=counts, largest="fit"))
    assert sizes.train_C[1] == 60 * sizes.train_C[0] // 600
    exact = choose_sizes(pool_of(COUNTS), GltChoices(class_counts=(60, 30, 20, 10)))
    assert exact.train_C == (60, 30, 20, 10) and exact.train_cbl == 30
    with pytest.raises(ConfigError, match="3 class counts for 4 classes"):
        choose_sizes(pool_of(COUNTS), GltChoices(class_counts=(3, 2, 1)))


def test_what_is_short_is_named_with_its_numbers():
    choices = GltChoices(imbalance_factor=1, largest=100, test=6, val=3, quotas=(7, 2, 1))
    with pytest.raises(DataError) as caught:
        choose_sizes(pool_of([[100, 50, 40], [70, 40, 30]]), choices)
    found = re.search(
        r"class '(\w+)' has (\d+) images of attribute '(\w+)', and (\d+) are wanted \((.*);", str(caught.value)
    )
    assert found.groups() == ("c1", "70", "a0", "77", "test_gbl 2, test_cbl 4, val 1, train 70")
    assert "--max-class 90 fits" in str(caught.value)
    choose_sizes(pool_of([[100, 50, 40], [70, 40, 30]]), GltChoices(imbalance_factor=1, largest=90, test=6, val=3))


@pytest.mark.parametrize(
    ("counts_CA", "choices", "error", "words"),
    [
        ([[9, 0, 0], [9, 9, 9]], {}, DataError, "images of two attributes or more, and 1 class has fewer: c0"),
        ([[9, 0], [0, 9], [9, 9]], {}, DataError, "2 classes have fewer: c0, c1"),
        ([[9, 9, 0, 3], [0, 0, 9, 9]], {}, DataError, "class 'c0' has 3 images of attribute 'a3'"),
        ([[9, 9, 3], [9, 9, 9]], {}, DataError, "class 'c0' has 3 images of attribute 'a2'"),
        ([[9], [9]], {}, DataError, "one attribute alone, 'a0'"),
        ([[99, 99], [99, 99]], {"quotas": (7, 2, 1)}, ConfigError, "3 shares for 2 attributes of class 'c0' .a0, a1."),
        (
            [[99, 99, 99], [0, 99, 99]],
            {"quotas": (7, 2, 1)},
            ConfigError,
            "3 shares for 2 attributes of class 'c1' .a1, a2.",
        ),
        ([[99, 99], [99, 99]], {"test": 1}, ConfigError, "--test-per-class 1: class 'c0' has 2 attributes"),
        ([[99, 99], [99, 99]], {"val": 1}, ConfigError, "--val-per-class 1: class 'c0' has 2 attributes"),
        ([[99, 99, 0], [99, 99, 99]], {"val": 2}, ConfigError, "--val-per-class 2: class 'c1' has 3 attributes"),
        ([[99, 99], [99, 99]], {"test": 190}, DataError, "Give smaller tests"),
        ([[99, 99], [99, 99]], {"train_cbl": 150}, DataError, "Give a smaller --train-cbl"),
        ([[99, 99], [99, 99]], {"largest": 5}, ConfigError, "without a training image"),
    ],
)
def test_what_cannot_be_is_refused(counts_CA, choices, error, words):
    with pytest.raises(error, match=words):
        choose_sizes(pool_of(counts_CA), GltChoices(**{"imbalance_factor": 10.0, **choices}))


OWN = [[30, 20, 0, 0, 0, 0], [0, 0, 20, 30, 0, 0], [0, 0, 0, 0, 30, 20]]


def test_attributes_may_be_a_class_s_own():
    pool = pool_of(OWN)
    sizes = choose_sizes(pool, GltChoices(imbalance_factor=2))
    assert sizes.quotas == (7, 3) and size_remarks(pool, sizes) == []
    shared = choose_sizes(pool_of([[30, 20], [20, 30], [30, 20]]), GltChoices(imbalance_factor=2))
    assert sizes == shared
    assert (taken(OWN, sizes) <= np.array(OWN)).all()


def test_classes_may_differ_in_their_number_of_attributes():
    counts = np.zeros((3, 10), int)
    counts[0, :5], counts[1, 5:7], counts[2, 7:] = (90, 60, 40, 30, 30), (90, 80), (80, 70, 60)
    pool = pool_of(counts)
    sizes = choose_sizes(pool, GltChoices(imbalance_factor=2))
    assert sizes.quotas == (7, 3) and (taken(counts, sizes) <= np.array(counts)).all()
    assert (sizes.test, sizes.val) == (30, 15)  # 30 is the least that 5, 2 and 3 divide
    assert size_remarks(pool, sizes) == []
    given = choose_sizes(pool, GltChoices(imbalance_factor=2, test=20, val=10))
    said = "p: classes have 2 to 5 attributes, so test_gbl has 18 to 20 images of a class."
    assert size_remarks(pool, given) == [said]
    above = choose_sizes(pool, GltChoices(imbalance_factor=2, test=32, val=10))
    said = "test_gbl has 30 to 32 images of a class. --test-per-class 30 balances it."
    assert size_remarks(pool, above)[0].endswith(said)


def test_an_attribute_that_most_classes_have_may_have_been_forgotten_in_the_others():
    counts = [[90, 60, 40]] * 9 + [[90, 60, 0]]
    pool = pool_of(counts)
    sizes = choose_sizes(pool, GltChoices(imbalance_factor=2))
    assert (taken(counts, sizes) <= np.array(counts)).all()
    assert size_remarks(pool, sizes) == [
        "p: 1 pair of class and attribute without images, though half of the classes or more have the attribute: c9 / a2. "
        "The shares 7:3 go to the attributes that each class has."
    ]
    few = pool_of([[60, 60, 60, 0], [60, 60, 0, 60], [60, 60, 60, 0], [60, 60, 0, 0], [60, 60, 0, 0]])
    assert size_remarks(few, choose_sizes(few, GltChoices(imbalance_factor=1))) == []


@pytest.mark.parametrize("seed", range(20))
def test_what_is_chosen_fits_whatever_attributes_classes_have(seed):
    rng = np.random.default_rng(seed)
    num_classes, num_attributes = int(rng.integers(2, 7)), int(rng.integers(4, 12))
    counts = np.zeros((num_classes, num_attributes), np.int64)
    for row in counts:
        own = rng.choice(num_attributes, int(rng.integers(2, min(6, num_attributes) + 1)), replace=False)
        row[own] = rng.integers(60, 200, len(own))
    own_C = (counts > 0).sum(1)
    sizes = choose_sizes(pool_of(counts), GltChoices(imbalance_factor=3, test_glt=10))
    assert (taken(counts, sizes) <= counts).all() and min(sizes.train_C) >= 1
    assert len(sizes.quotas) <= own_C.min() and own_C.max() <= sizes.test and own_C.max() <= sizes.val
    assert (sizes.test // own_C <= 20).all() or sizes.test == own_C.max()


def test_apportioned_numbers_sum_to_the_whole():
    assert apportion(10, [3, 1]) == (8, 2) and apportion(1, [1, 1, 1]) == (1, 0, 0)
    weights = np.random.default_rng(0).integers(1, 50, 30).tolist()
    for total in (0, 7, 100, 12_345):
        shares = apportion(total, weights)
        assert sum(shares) == total
        assert all(
            abs(share - total * weight / sum(weights)) < 1 for share, weight in zip(shares, weights, strict=True)
        )


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"profile": "zipf"}, "profile"),
        ({"quotas": (1, 2)}, "do not rise"),
        ({"quotas": (2, 0)}, ">= 1"),
        ({"class_counts": (3, 4)}, "class_counts"),
        ({"largest": "most"}, "'fit'"),
        ({"imbalance_factor": 0.5}, "imbalance_factor"),
        ({"attributes_file": "a.csv", "attribute_level": 1}, "one place"),
    ],
)
def test_choices_that_mean_nothing_are_refused(choices, words):
    with pytest.raises(ValueError, match=words):
        GltChoices(**choices)


@pytest.mark.parametrize("choices", [{"groups": 1}, {"groups": 3, "clusters": 4}, {"groups": 3, "clusters": 2}])
def test_clusters_are_merged_evenly(choices):
    with pytest.raises(ValueError, match="groups"):
        Discovery(features="random", **choices)


def test_few_images_are_told_the_largest_factor_that_they_allow():
    """With the default of 100, which no small folder can have."""
    pool = pool_of([[17, 17, 16]] * 4)
    with pytest.raises(DataError, match=r"--imbalance-factor \d+ fits, or give smaller tests") as caught:
        choose_sizes(pool, GltChoices())
    factor = int(re.search(r"--imbalance-factor (\d+)", str(caught.value)).group(1))
    assert min(choose_sizes(pool, GltChoices(imbalance_factor=factor)).train_C) >= 1
    with pytest.raises(DataError):
        choose_sizes(pool, GltChoices(imbalance_factor=factor + 1))
