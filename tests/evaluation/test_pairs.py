"""Rows for the pairs of class and attribute that exist, against tables of all pairs, and how little they take."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch

from ltcore.evaluation.attributes import UNRANKED, AttributeRanks, CellCounts, attribute_metrics
from ltcore.evaluation.bootstrap import bootstrap_intervals
from ltcore.evaluation.catalog import MAX_NAMED_ATTRIBUTES
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.confusion_file import ConfusionCells
from ltcore.evaluation.metrics import metrics, per_attribute, per_class, support
from ltcore.evaluation.pairs import AttributeCounts, Ints, Pairs
from ltcore.evaluation.plugged import Counted
from ltcore.shots import SHOT_GROUPS

CLASSES, ATTRIBUTES = 1000, 3
"""Of the large benchmark: classes, and attributes of each that no other class has."""


class Split:
    """Random samples: some classes and pairs have none, some attributes are unknown, half of the splits balance theirs."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.sizes = self.num_classes, self.num_attributes = int(rng.integers(2, 8)), int(rng.integers(1, 6))
        if seed % 2:
            pairs_P = np.arange(self.num_classes * self.num_attributes).repeat(4)
            self.labels_N, self.attributes_N = pairs_P % self.num_classes, pairs_P // self.num_classes
        else:
            self.labels_N = rng.integers(0, self.num_classes - 1, 60)
            self.attributes_N = rng.integers(-1, self.num_attributes, 60)
        own_NC = np.eye(self.num_classes)[self.labels_N]
        self.logits_NC = torch.from_numpy(2 * rng.normal(size=own_NC.shape) + own_NC)
        self.trained = AttributeCounts.of_table(rng.integers(0, 4, self.sizes) * rng.integers(0, 2, self.sizes))
        self.shot_groups = [SHOT_GROUPS[c % 3] for c in range(self.num_classes)]

    def pairs(self) -> Pairs:
        return Pairs.of(self.labels_N, self.attributes_N, *self.sizes)

    def counted(self, pairs: Pairs, step: int = 1) -> Confusion:
        """Counts the samples as ``step`` ranks do, of which each has a part of them, and their sums."""
        parts = [Confusion(pairs) for _ in range(step)]
        labels_N, attributes_N = torch.from_numpy(self.labels_N), torch.from_numpy(self.attributes_N)
        for rank, part in enumerate(parts):
            part.update(self.logits_NC[rank::step], labels_N[rank::step], attributes_N[rank::step])
        for part in parts[1:]:
            parts[0].counts_PC += part.counts_PC
            parts[0].top_C += part.top_C
            parts[0].bins_CK3 += part.bins_CK3
        return parts[0]

    def results(self, found: Confusion) -> dict[str, object]:
        """Everything that an evaluation reads out of the counts."""
        ranks_P, names = AttributeRanks(self.trained).of(found.pairs), [str(a) for a in range(self.num_attributes)]
        values = metrics(found, self.shot_groups) | per_attribute(found, names)
        values |= attribute_metrics(CellCounts.of(found, ranks_P), self.shot_groups)
        return {
            "metrics": values,
            "intervals": bootstrap_intervals(found, ranks_P, self.shot_groups, seed=1, resamples=20),
            "classes": (per_class(found), support(found), ConfusionCells.of(found)),
        }

    def dense_ACC(self) -> Ints:
        counts_ACC = np.zeros((self.num_attributes + 1, self.num_classes, self.num_classes), np.int64)
        np.add.at(counts_ACC, (self.attributes_N, self.labels_N, self.logits_NC.argmax(1).numpy()), 1)
        return counts_ACC


@pytest.mark.parametrize("seed", range(12))
def test_every_number_is_that_of_the_table_of_all_pairs_to_the_last_bit(seed: int) -> None:
    split = Split(seed)
    dense, compact = split.counted(Pairs.every(*split.sizes)), split.counted(split.pairs(), step=3)
    assert len(compact.counts_PC) <= len(dense.counts_PC) and compact.total == len(split.labels_N)
    assert dense.counts_PC.tolist() == split.dense_ACC().reshape(-1, split.num_classes).tolist()
    assert split.results(compact) == split.results(dense)


@pytest.mark.parametrize("seed", range(6))
def test_a_metric_of_a_plugin_may_read_every_table(seed: int) -> None:
    split = Split(seed)
    found, dense_ACC = split.counted(split.pairs()), split.dense_ACC()
    counts, groups, zeros_C = found.counts_PC.numpy(), tuple(split.shot_groups), np.zeros(split.num_classes)
    counted = Counted(found.pairs, counts, found.top_C.numpy(), found.bins_CK3.numpy(), groups, zeros_C)
    assert np.array_equal(counted.counts_ACC, dense_ACC) and np.array_equal(counted.counts_CC, dense_ACC.sum(0))
    assert np.array_equal(counted.samples_C, dense_ACC.sum((0, 2)))


@pytest.mark.parametrize("seed", range(12))
def test_ranks_are_those_of_sorted_counts(seed: int) -> None:
    """Attributes are named in another order by the data that are asked about, and some have other names."""
    split = Split(seed)
    table_CA = split.trained.table_CA()
    to_trained_A = np.random.default_rng(seed).permutation(split.num_attributes + 1) - 1
    asked = Pairs.every(split.num_classes, len(to_trained_A))
    found_P = AttributeRanks(split.trained, to_trained_A).of(asked)
    for label, attribute, rank in zip(asked.labels_P, asked.attributes_P, found_P, strict=True):
        trained_a = -1 if attribute == len(to_trained_A) else to_trained_A[attribute]
        counts_A = table_CA[label]
        if trained_a < 0 or not counts_A.any():
            assert rank == UNRANKED
            continue
        family_A = counts_A > 0
        for _ in range(split.num_classes):  # to all attributes of the classes that have one of them
            family_A = (table_CA[(table_CA[:, family_A] > 0).any(1)] > 0).any(0)
        place = (
            sorted(np.flatnonzero(counts_A), key=lambda a: -counts_A[a]).index(trained_a) if counts_A[trained_a] else 2
        )
        assert rank == (2 if place and family_A.sum() == 2 else min(place, 2))


def test_counts_come_back_from_json_in_either_form() -> None:
    shared = AttributeCounts.of_table(np.array([[3, 1, 0], [2, 2, 2]]))
    assert shared.to_rows() == [[3, 1, 0], [2, 2, 2]], "as they always were"
    own = AttributeCounts.of_table(np.array([[3, 1, 0, 0, 0], [0, 0, 0, 7, 0], [0, 0, 0, 0, 0]]))
    assert own.to_rows() == [{"0": 3, "1": 1}, {"3": 7}, {}]
    assert AttributeCounts.of_table(np.zeros((2, 0), np.int64)).to_rows() == [[], []]
    for counts in (shared, own):
        rows = json.loads(json.dumps(counts.to_rows()))
        again = AttributeCounts.of_rows(rows, counts.pairs.num_attributes)
        assert np.array_equal(again.table_CA(), counts.table_CA())
        assert np.array_equal(again.pairs.codes_P, counts.pairs.codes_P)


def test_a_thousand_classes_with_attributes_of_their_own_take_megabytes() -> None:
    """A table of all pairs would have 24 GB."""
    attributes_N = np.arange(CLASSES * ATTRIBUTES)
    labels_N, sizes = attributes_N // ATTRIBUTES, (CLASSES, CLASSES * ATTRIBUTES)
    groups = [SHOT_GROUPS[c % 3] for c in range(CLASSES)]
    logits_BC = torch.randn(500, CLASSES, generator=torch.Generator().manual_seed(0))
    tracemalloc.start()
    found = Confusion(Pairs.of(labels_N, attributes_N, *sizes))
    for start in range(0, len(labels_N), 500):
        at = slice(start, start + 500)
        found.update(logits_BC, torch.from_numpy(labels_N[at]), torch.from_numpy(attributes_N[at]))
    trained = AttributeCounts.of(labels_N, attributes_N, *sizes)
    ranks_P = AttributeRanks(trained).of(found.pairs)
    values = metrics(found, groups) | attribute_metrics(CellCounts.of(found, ranks_P), groups)
    cells, rows = ConfusionCells.of(found), json.dumps(trained.to_rows())
    bootstrap_intervals(found, ranks_P, groups, seed=1, resamples=2)
    of_numpy = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert values["top1"] is not None and sum(cell.count for cell in cells.cells) == found.total == len(labels_N)
    assert found.counts_PC.shape == (CLASSES * ATTRIBUTES, CLASSES), "24 MB"
    assert of_numpy < 2**27 and len(rows) < 2**16


def test_of_very_many_attributes_single_ones_have_no_metrics() -> None:
    for number, metrics_of_one in ((MAX_NAMED_ATTRIBUTES, 2), (MAX_NAMED_ATTRIBUTES + 1, 0)):
        names = [f"breed {a}" for a in range(number)]
        assert len(per_attribute(Confusion(Pairs.every(2, number)), names)) == metrics_of_one * number
