"""The table of metrics: names, directions, and when one has a value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltcore.config.schema import TrainConfig
from ltcore.config.sweep import SELECTABLE
from ltcore.evaluation.attributes import AttributeRanks, CellCounts, attribute_metrics
from ltcore.evaluation.balance import is_balanced, remarks
from ltcore.evaluation.catalog import METRICS, NCM_METRICS, goodness, headline, minimized, title_of
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.metrics import metrics
from ltcore.evaluation.pairs import AttributeCounts, Pairs
from ltcore.shots import SHOT_GROUPS


def test_every_metric_of_the_table_is_computed_and_may_choose() -> None:
    confusion = Confusion(Pairs.every(6, 0))
    confusion.update(torch.eye(6), torch.arange(6))
    groups = [*SHOT_GROUPS, *SHOT_GROUPS]
    ranks = AttributeRanks(AttributeCounts.of_table(np.zeros((6, 0), np.int64)))
    cells = CellCounts.of(confusion, ranks.of(confusion.pairs))
    assert list(metrics(confusion, groups) | attribute_metrics(cells, groups)) == list(METRICS)
    assert list(SELECTABLE) == [f"val/{name}" for name in (*METRICS, *NCM_METRICS)]
    assert TrainConfig().select == SELECTABLE[0] == "val/balanced_accuracy"


def test_the_lowest_calibration_error_is_the_best_and_of_all_others_the_highest_value() -> None:
    errors = {"ece", *(f"{group}/ece" for group in SHOT_GROUPS), "attribute_gap"}
    assert {name for name in METRICS if minimized(name)} == errors
    assert goodness("val/ece", 0.1) > goodness("val/ece", 0.2) > goodness("val/ece", None)
    assert goodness("val/few/ece", 0.1) > goodness("few/ece", math.nan)
    assert goodness("val/few", 0.2) > goodness("val/few", 0.1) > goodness("val/few", None)
    assert goodness("attribute/red", 0.2) > goodness("attribute/red", 0.1)


def test_a_metric_says_why_it_has_no_value() -> None:
    assert METRICS["few/ece"].missing({"many", "medium"}, 10) == "no few-shot class has a sample"
    assert METRICS["top5"].missing(SHOT_GROUPS, 5) == "top-5 needs more than 5 classes, there are 5"
    assert METRICS["top5"].missing(SHOT_GROUPS, 6) == METRICS["ece"].missing((), 2) == ""
    second = METRICS["attribute_rank/second"]
    assert second.missing(SHOT_GROUPS, 6, 2) == "it needs more than 2 attributes, there are 2"
    assert METRICS["worst_group"].missing(SHOT_GROUPS, 6) == "it needs attributes, there are none"
    assert second.missing(SHOT_GROUPS, 6, 3) == METRICS["attribute_gap"].missing((), 6, 2) == ""
    assert METRICS["attribute_rank/rare/few"].missing({"many"}, 6, 3) == "no few-shot class has a sample"


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("val/top1", "validation top-1"),
        ("val/few/ece", "validation few-shot ECE"),
        ("attribute/red", "attribute red"),
        ("val/ncm_top1", "validation NCM top-1"),
        ("ncm_few", "NCM few-shot"),
        ("attribute/red/macro_precision", "attribute red macro precision"),
        ("val/attribute_rank/rare", "validation rare attributes"),
        ("attribute_rank/rare/few", "rare attributes, few-shot"),
    ],
)
def test_titles(metric: str, title: str) -> None:
    assert title_of(metric) == title


def test_top1_alone_is_named_where_it_is_the_balanced_accuracy() -> None:
    assert headline({"balanced_accuracy": 0.5, "top1": 0.5}) == ("top1",)
    assert headline({"balanced_accuracy": 0.5, "top1": 0.75}) == ("balanced_accuracy", "top1")


def test_words_about_a_split_that_is_not_balanced_or_not_complete() -> None:
    assert remarks("test", [3, 3, 3]) == [] and is_balanced([3, 0, 3]) and not is_balanced([3, 2])
    assert remarks("test", [40, 2, 7]) == [
        "test is not balanced (largest/smallest class 40/2): top-1 follows the large classes, balanced accuracy counts "
        "every class alike."
    ]
    assert remarks("test", [3, 0, 3]) == ["test: 2 of 3 classes have images; the metrics are of these alone."]
    assert remarks("test", [0, 0]) == ["test: 0 of 2 classes have images; the metrics are of these alone."]
