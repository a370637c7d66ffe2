"""Images of a split by class and attribute, and by the attribute's rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from ltcore.reporting import split_counts
from ltcore.reporting.split_counts import by_size, count_split, rank_counts, reading_order
from tests.reporting import colored


def test_counts_are_those_of_the_data(tmp_path: Path) -> None:
    colored.write(tmp_path)
    store = ShardStore(str(tmp_path))
    for split, expected in colored.COUNTS.items():
        counts = count_split(store, split)
        assert counts.counts_CA is not None and counts.counts_CA.tolist() == [list(row) for row in expected]
        assert counts.counts_C.tolist() == [sum(row) for row in expected]
        assert (counts.num_images, counts.num_unknown) == (sum(map(sum, expected)), 0)
    with pytest.raises(DataError, match="no split 'tset_gbl'"):
        count_split(store, "tset_gbl")


def test_data_without_attributes_or_with_too_many_have_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colored.write(tmp_path / "plain", attributes=False)
    assert count_split(ShardStore(str(tmp_path / "plain")), "train").counts_CA is None
    colored.write(tmp_path / "colored")
    monkeypatch.setattr(split_counts, "MAX_CELLS", 5)
    assert count_split(ShardStore(str(tmp_path / "colored")), "train").counts_CA is None


def test_ranks_are_those_of_training_and_ties_go_to_the_lower_id() -> None:
    train_CA = np.array([[5, 5, 1, 0], [0, 1, 2, 9]])
    assert rank_counts(train_CA, train_CA) == (5 + 9, 5 + 2, 1 + 1)
    test_CA = np.array([[1, 10, 100, 1000], [1, 10, 100, 1000]])
    assert rank_counts(train_CA, test_CA) == (1 + 1000, 10 + 100, 1100 + 11)
    assert rank_counts(np.array([[3]]), np.array([[7]])) == (7, 0, 0), "one attribute alone"
    assert rank_counts(np.array([[1, 3]]), np.array([[5, 7]])) == (7, 0, 5), "of two, the other one is rare"
    assert rank_counts(np.array([[4, 0, 0]]), np.array([[1, 2, 3]])) == (1, 0, 5), "untrained attributes are rare"
    assert rank_counts(np.array([[0, 0, 0], [1, 2, 3]]), np.ones((2, 3), np.int64)) == (1, 1, 1), "untrained classes"


def test_splits_and_classes_have_an_order() -> None:
    splits = ["test_cbl", "val", "other", "train_cbl", "test_gbl", "train"]
    assert reading_order(splits) == ["train", "train_cbl", "val", "test_gbl", "test_cbl", "other"]
    assert reading_order(splits[::-1], "train_cbl") == ["train_cbl", "train", "val", "test_gbl", "test_cbl", "other"]
    assert reading_order(["test"]) == ["test"]
    assert by_size([3, 9, 3, 0]) == [1, 0, 2, 3]
