"""Which classes, attributes and images a sample grid shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltcore.data.shards.reader import ShardStore
from ltcore.reporting.grid_columns import Columns, grid_columns, without_attributes
from ltcore.reporting.sample_grid import EXAMPLES, sample_grid, shown_classes
from ltcore.reporting.split_counts import SplitCounts, count_split
from ltcore.shots import shot_groups_by_count
from tests.reporting import colored

BY_NAME = Columns(colored.ATTRIBUTES, np.array([[0, 1, 2], [0, 1, 2]]))


def test_few_classes_are_all_shown_the_largest_first() -> None:
    assert shown_classes(np.array([5, 50, 500]), ["few", "medium", "many"]) == [2, 1, 0]


@pytest.mark.parametrize(("many", "medium", "few"), [(35, 35, 30), (1, 0, 200), (0, 3, 2000), (2, 8000, 140)])
def test_of_many_classes_every_group_has_its_largest_and_smallest(many: int, medium: int, few: int) -> None:
    counts = np.array([*range(101 + many, 101, -1), *([50] * medium), *np.linspace(19, 1, few).round()], np.int64)
    counts = np.random.default_rng(0).permutation(counts)
    groups = shot_groups_by_count(counts.tolist())
    shown = shown_classes(counts, groups)
    assert len(shown) == len(set(shown)) == 10
    assert counts[shown].tolist() == sorted(counts[shown].tolist(), reverse=True)
    for group, number in (("many", many), ("medium", medium), ("few", few)):
        sizes = [int(counts[c]) for c in range(len(counts)) if groups[c] == group]
        mine = [int(counts[c]) for c in shown if groups[c] == group]
        assert len(mine) >= min(3, number), "rows are shared out evenly"
        if number > 1:
            assert (max(mine), min(mine)) == (max(sizes), min(sizes))


def test_many_attributes_are_the_most_frequent_by_id() -> None:
    counts_CA = np.arange(24).reshape(2, 12) % 7
    names, counts = [f"a{a}" for a in range(12)], SplitCounts("train", counts_CA.sum(1), counts_CA)
    columns, totals = grid_columns(counts, [counts], names, [0, 1]), counts_CA.sum(0)
    shown = columns.attributes_CK[0].tolist()
    assert shown == sorted(shown) and len(shown) == 10
    assert min(totals[shown]) >= max(totals[a] for a in range(12) if a not in shown)
    assert columns.titles == tuple(names[a] for a in shown) and not columns.by_rank
    assert columns.left_out == "the 10 most frequent of 12 attributes"
    assert columns.counts_of(counts_CA).tolist() == counts_CA[:, shown].tolist()
    nothing = SplitCounts("train", counts_CA.sum(1), None)
    assert grid_columns(nothing, [nothing], names, [0, 1]).titles == ()


def test_attributes_that_classes_have_alone_stand_by_their_rank_in_training() -> None:
    train_CA = np.array([[1, 5, 0, 0, 0, 0], [0, 0, 2, 0, 2, 0], [0, 0, 0, 0, 0, 4]])
    test_CA = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]])
    train, test = (SplitCounts(name, table.sum(1), table) for name, table in (("train", train_CA), ("test", test_CA)))
    columns = grid_columns(train, [train, test], "abcdef", [0, 1, 2])
    assert columns.by_rank and columns.titles == ("majority", "second", "third")
    assert columns.attributes_CK.tolist() == [[1, 0, -1], [2, 4, 3], [5, -1, -1]], "one is in the test alone"
    assert columns.counts_of(train_CA).tolist() == [[5, 1, 0], [2, 2, 0], [4, 0, 0]]
    many_CA = np.kron(np.eye(2, dtype=np.int64), np.arange(12, 0, -1)[None])
    many = SplitCounts("train", many_CA.sum(1), many_CA)
    ranks = grid_columns(many, [many], [str(a) for a in range(24)], [0, 1])
    assert ranks.titles[-1] == "10th" and ranks.left_out == "up to 10 attributes of a class"


def test_a_cell_has_its_count_and_an_image_of_its_class_and_attribute(tmp_path: Path) -> None:
    colored.write(tmp_path)
    store = ShardStore(str(tmp_path))
    for split, expected in colored.COUNTS.items():
        grid = sample_grid(store, count_split(store, split), [1, 0], BY_NAME)
        assert [row.label for row in grid.rows] == [1, 0]
        for row in grid.rows:
            assert [cell.count for cell in row.cells] == list(expected[row.label])
            for attribute, cell in enumerate(row.cells):
                assert (cell.index is None) == (cell.count == 0)
                if cell.index is not None:
                    assert store.labels(split)[cell.index] == row.label
                    assert store.attributes(split)[cell.index] == attribute
                    same = (store.labels(split) == row.label) & (store.attributes(split) == attribute)
                    assert cell.index == np.flatnonzero(same)[0], "the first one: few shards are opened"


def test_tints_rise_with_the_logarithm_and_are_equal_where_counts_are(tmp_path: Path) -> None:
    colored.write(tmp_path)
    store = ShardStore(str(tmp_path))
    train = sample_grid(store, count_split(store, "train"), [1, 0], BY_NAME)
    assert train.share(0) == 0 and train.share(20) == 1 and train.share(1) == pytest.approx(np.log(2) / np.log(21))
    assert sample_grid(store, count_split(store, "test_gbl"), [1, 0], BY_NAME).share(4) == 1


def test_without_attributes_a_row_is_some_images_of_its_class(tmp_path: Path) -> None:
    colored.write(tmp_path, attributes=False)
    store = ShardStore(str(tmp_path))
    grid = sample_grid(store, count_split(store, "train"), [1, 0], without_attributes(2))
    assert grid.titles == () and [(row.label, row.count, len(row.cells)) for row in grid.rows] == [
        (1, 25, EXAMPLES),
        (0, 3, 3),
    ]
    assert {int(store.labels("train")[i]) for i in grid.indexes[:EXAMPLES]} == {1}
    assert [grid.share(row.count) for row in grid.rows] == [1, 3 / 25]
