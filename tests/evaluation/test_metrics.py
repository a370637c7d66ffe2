"""Metrics against closed-form values and against scikit-learn."""

from __future__ import annotations

import pytest
import torch

from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.metrics import (
    ClassCounts,
    glt_f1,
    macro_f1,
    macro_precision,
    metrics,
    per_attribute,
    per_class,
    reliability_bins,
)
from ltcore.evaluation.pairs import Pairs
from ltcore.shots import shot_groups_by_count

GROUPS = ("many", "medium", "few")


def counts_of(labels: str, predictions: str, attributes: str | None = None, num_attributes: int = 0) -> Confusion:
    """Counts of digit strings, so that a test reads like the definition."""
    classes = 3
    confusion = Confusion(Pairs.every(classes, num_attributes))
    logits_BC = torch.nn.functional.one_hot(torch.tensor([int(p) for p in predictions]), classes).float()
    attributes_B = None if attributes is None else torch.tensor([int(a) if a != "-" else -1 for a in attributes])
    confusion.update(logits_BC, torch.tensor([int(x) for x in labels]), attributes_B)
    return confusion


def test_reference_values() -> None:
    counts = counts_of("000111222", "001111021")
    result = metrics(counts, GROUPS)
    assert result["top1"] == pytest.approx(0.666667, abs=1e-6)
    assert result["macro_precision"] == pytest.approx(0.755556, abs=1e-6)
    assert result["glt_f1"] == pytest.approx(0.708333, abs=1e-6)
    assert per_class(counts) == pytest.approx([2 / 3, 1.0, 1 / 3])
    assert [result[g] for g in GROUPS] == pytest.approx([2 / 3, 1.0, 1 / 3])
    assert result["worst_class"] == pytest.approx(1 / 3)


def test_precision_of_a_group_counts_predictions_for_its_classes_from_all_samples() -> None:
    """Predicted 3, 5 and 1 times, of which 2, 3 and 1 are right."""
    result = metrics(counts_of("000111222", "001111021"), ("many", "many", "few"))
    assert result["many/macro_precision"] == pytest.approx((2 / 3 + 3 / 5) / 2)
    assert result["few/macro_precision"] == 1.0
    assert result["medium/macro_precision"] is None


def test_f1_of_glt_is_not_the_macro_f1() -> None:
    counts = ClassCounts.of(counts_of("000111222", "001111021"))
    precisions = [macro_precision(counts.only([c])) for c in range(3)]
    assert precisions == pytest.approx([0.666667, 0.6, 1.0], abs=1e-6)
    pairs = list(zip(precisions, counts.recalls(), strict=True))
    expected = sum(2 * p * r / (p + r) for p, r in pairs) / 3
    assert macro_f1(counts) == pytest.approx(expected)
    assert expected == pytest.approx(0.638889, abs=1e-6)  # glt_f1: 0.708333


def test_twenty_and_a_hundred_training_images_are_medium() -> None:
    assert shot_groups_by_count([101, 100, 20, 19]) == ("many", "medium", "medium", "few")


def test_a_class_never_predicted_contributes_zero() -> None:
    result = metrics(counts_of("000111222", "001111001"), GROUPS)
    assert result["top1"] == pytest.approx(0.555556, abs=1e-6)
    assert result["macro_precision"] == pytest.approx(0.366667, abs=1e-6)
    assert result["worst_class"] == 0


def test_only_classes_present_in_the_labels_count() -> None:
    counts = counts_of("0011", "0121")  # class 2 is predicted and never true
    assert macro_precision(ClassCounts.of(counts)) == pytest.approx((1.0 + 0.5) / 2)
    assert per_class(counts) == [0.5, 0.5, None]
    result = metrics(counts, GROUPS)
    assert (result["many"], result["medium"], result["few"]) == (0.5, 0.5, None)


def test_an_empty_group_is_none_and_not_zero() -> None:
    assert metrics(counts_of("012", "012"), ("many", "many", "medium"))["few"] is None


def test_everything_wrong_has_f1_zero() -> None:
    assert metrics(counts_of("012", "120"), GROUPS)["glt_f1"] == 0.0
    assert glt_f1(None, None) is None


def test_an_empty_evaluation_has_no_numbers() -> None:
    empty = Confusion(Pairs.every(3, 2))
    assert set(metrics(empty, GROUPS).values()) == {None}
    assert set(per_attribute(empty, ("ink", "paper")).values()) == {None}


def test_groups_must_name_every_class() -> None:
    with pytest.raises(ValueError, match="zip"):
        metrics(counts_of("012", "012"), ("many", "few"))


def test_attributes_count_the_predictions_of_their_own_samples() -> None:
    #            attribute 0: 0->0 1->0    attribute 1: 0->0 1->1   unknown: 1->1
    counts = counts_of("01011", "00011", "0011-", num_attributes=2)
    subset = per_attribute(counts, ("ink", "paper"))
    assert subset == pytest.approx(
        {
            "attribute/ink": 0.5,
            "attribute/ink/macro_precision": (1 / 2 + 0) / 2,
            "attribute/paper": 1.0,
            "attribute/paper/macro_precision": 1.0,
        }
    )


def test_renaming_classes_changes_nothing() -> None:
    base = metrics(counts_of("000111222", "001111021"), GROUPS)
    renamed = metrics(counts_of("222000111", "220000210"), ("medium", "few", "many"))
    assert renamed == pytest.approx(base)


def test_balanced_accuracy_and_the_means_of_recalls_by_hand() -> None:
    """Recalls 1, 1/2 and 1/4 of 1, 2 and 4 samples."""
    result = metrics(counts_of("0112222", "0102000"), GROUPS)
    assert result["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert result["top1"] == pytest.approx(3 / 7)
    assert result["geometric_mean"] == pytest.approx(1 / 2)
    assert result["harmonic_mean"] == pytest.approx(3 / (1 + 2 + 4))


def test_one_class_that_is_never_recognized_makes_both_means_zero_and_not_the_balanced_accuracy() -> None:
    result = metrics(counts_of("0012", "0010"), GROUPS)
    assert (result["geometric_mean"], result["harmonic_mean"]) == (0.0, 0.0)
    assert result["balanced_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(20))
def test_on_a_balanced_split_the_balanced_accuracy_is_top1_to_the_last_bit(seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    predictions = torch.randint(3, (3 * 7,), generator=gen)
    result = metrics(counts_of("0" * 7 + "1" * 7 + "2" * 7, "".join(map(str, predictions.tolist()))), GROUPS)
    assert result["balanced_accuracy"] == result["top1"]


def test_top5_needs_more_than_five_classes_and_goes_by_class_id_where_logits_are_equal() -> None:
    for classes, expected in ((5, None), (6, 5 / 6), (7, 5 / 7)):
        confusion = Confusion(Pairs.every(classes, 0))
        confusion.update(torch.zeros(classes, classes), torch.arange(classes))
        assert metrics(confusion, ["many"] * classes)["top5"] == expected


def test_logits_that_are_not_finite_are_no_hit_and_no_confidence() -> None:
    confusion = Confusion(Pairs.every(6, 0))
    confusion.update(torch.full((1, 6), torch.nan), torch.tensor([3]))
    result = metrics(confusion, ["many"] * 6)
    assert (result["top5"], result["ece"], result["top1"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("classes", "place"), [(3, 4), (5, 2), (15, 0)])
def test_a_confidence_at_the_edge_of_two_bins_is_of_the_lower_one(classes: int, place: int) -> None:
    """Equal logits of 3, 5 and 15 classes: a confidence of 5, 3 and 1 fifteenths, where bins of 1/15 end."""
    confusion = Confusion(Pairs.every(classes, 0))
    confusion.update(torch.zeros(1, classes), torch.tensor([0]))
    assert [m for m, found in enumerate(reliability_bins(confusion)) if found.count] == [place]


def test_calibration_by_hand() -> None:
    """Confidences 0.9, twice, one of them wrong, and 1: |1/2 - 0.9| of two samples, 0 of the third."""
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [1.0, 0.0]]).double().log()
    confusion = Confusion(Pairs.every(2, 0))
    confusion.update(logits, torch.tensor([0, 1, 0]))
    result = metrics(confusion, ("many", "few"))
    assert result["ece"] == pytest.approx(2 / 3 * 0.4)
    assert result["few/ece"] == pytest.approx(0.9)  # alone in its bin, and wrong
    assert result["many/ece"] == pytest.approx(1 / 2 * 0.1)
    bins = reliability_bins(confusion)
    assert [found.count for found in bins] == [0] * 13 + [2, 1]
    assert (bins[13].confidence, bins[13].accuracy) == (pytest.approx(0.9), 0.5)
    assert (bins[14].confidence, bins[14].accuracy) == (1.0, 1.0)
