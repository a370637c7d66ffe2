"""The pairs confused most: counted exactly, ordered, with examples that are theirs and few."""

from __future__ import annotations

import numpy as np

from ltcore.evaluation.confused import MAX_EXAMPLES, MAX_PAIRS, ConfusedPair, keyed_choice
from tests.confusions import pairs_of


def test_pairs_are_counted_and_ordered_and_show_their_own_samples() -> None:
    labels_N = np.array([0, 0, 0, 1, 2, 2, 1, 2])
    predictions_N = np.array([1, 1, 0, 0, 1, 1, 1, 0])
    assert pairs_of(labels_N, predictions_N, 3) == [
        ConfusedPair(0, 1, 2, (0, 1)),
        ConfusedPair(2, 1, 2, (4, 5)),
        ConfusedPair(1, 0, 1, (3,)),
        ConfusedPair(2, 0, 1, (7,)),
    ]
    assert pairs_of(labels_N, labels_N, 3) == [] == pairs_of(labels_N[:0], labels_N[:0], 3)


def test_what_is_kept_is_bounded_and_depends_on_nothing_but_the_samples() -> None:
    rng = np.random.default_rng(0)
    labels_N, predictions_N = rng.integers(0, 30, (2, 20_000))
    pairs = pairs_of(labels_N, predictions_N, 30)
    assert len(pairs) == MAX_PAIRS and {len(pair.examples) for pair in pairs} == {MAX_EXAMPLES}
    for pair in pairs:
        at = list(pair.examples)
        assert set(labels_N[at]) == {pair.label} and set(predictions_N[at]) == {pair.prediction}
        assert pair.count == ((labels_N == pair.label) & (predictions_N == pair.prediction)).sum()
    assert pairs == pairs_of(labels_N, predictions_N, 30)
    assert [pair.examples for pair in pairs] != [
        pair.examples for pair in pairs_of(labels_N, predictions_N, 30, "test_other")
    ]


def test_the_choice_is_spread_over_all_of_them_also_where_there_are_many() -> None:
    chosen = keyed_choice(range(1_000_000), 1000, "test")
    assert len(set(chosen)) == 1000 and list(chosen) == sorted(chosen)
    assert 450_000 < np.mean(chosen) < 550_000
