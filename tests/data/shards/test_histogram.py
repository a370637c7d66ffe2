"""What a person is told of the class sizes before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from ltcore.data.shards.histogram import class_histogram
from ltcore.data.shards.manifest import LabelTable, Manifest, Shard, Split
from ltcore.shots import SHOT_GROUPS, shot_groups_by_count, shot_groups_by_rank, shot_groups_glt

NO_LABELS = LabelTable(path="labels.npy", bytes=0, sha256="0" * 64)


def manifest(
    names: Sequence[str], train: Sequence[int], provenance: dict[str, Any] | None = None, **splits: Sequence[int]
) -> Manifest:
    counts = {"train": tuple(train), **{name: tuple(row) for name, row in splits.items()}}
    shard = {
        "path": "a.tar",
        "first_index": 0,
        "bytes": 1,
        "sha256": "0" * 64,
        "index_path": "a.parquet",
        "index_sha256": "0" * 64,
    }
    return Manifest(
        name="photos",
        classes=tuple(names),
        attributes=(),
        splits={
            name: Split((Shard(count=sum(row), **shard),) if sum(row) else (), NO_LABELS)  # type: ignore[arg-type]
            for name, row in counts.items()
        },
        class_counts=counts,
        shot_groups=shot_groups_by_count(train),
        shot_rule="count",
        image_size=32,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        seed=0,
        provenance=provenance or {},
    )


def test_few_classes_have_a_bar_each_from_the_largest_on() -> None:
    lines = class_histogram(manifest(["owl", "cat", "dog"], [10, 320, 80]))
    assert lines[0] == (
        "photos, train: 3 classes, 410 images; largest cat (320), smallest owl (10), imbalance factor 32"
    )
    assert [line.split()[0] for line in lines[1:4]] == ["cat", "dog", "owl"]
    bars = [line.split()[1] for line in lines[1:4]]
    assert (bars[0], bars[1], bars[2]) == ("█" * 40, "█" * 10, "█▎")  # proportional: 1, 1/4 and 1/32 of 40 cells
    assert [line.split()[2:] for line in lines[1:4]] == [["320", "many"], ["80", "medium"], ["10", "few"]]
    assert lines[4] == (
        "  shot groups by number of images (many: above 100, few: below 20): 1 many (320 images), 1 medium (80 images), "
        "1 few (10 images)"
    )


def test_many_classes_share_rows_that_hold_every_class_once() -> None:
    train = [int(500 * 0.01 ** (i / 99)) for i in range(100)]
    lines = class_histogram(manifest([f"c{i}" for i in range(100)], train))
    rows = [line for line in lines if "by size" in line]
    edges = [tuple(int(n) for n in row.split()[1].split("-")) for row in rows]
    assert len(rows) == 12 and edges[0][0] == 1 and edges[-1][1] == 100
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(edges))
    assert rows[0].endswith("500 to 361") and rows[-1].endswith("6 to 5")


def test_empty_and_tiny_classes_are_named() -> None:
    lines = class_histogram(manifest(["a", "b", "c", "d"], [50, 4, 0, 1]))
    assert "some classes empty" in lines[0]
    assert "  1 of 4 with no training image: c" in lines
    assert "  2 of 4 with fewer than 5 training images: d, b" in lines


def test_what_measures_is_said_with_sizes_and_origin() -> None:
    origin = {"val": "carved", "test": "as given"}
    lines = class_histogram(manifest(["a", "b"], [9, 9], origin, val=[3, 3], test=[7, 0], test_gbl=[0, 0]))
    assert lines[-3:] == [
        "  val: 6 images of all 2 classes, 3 per class (carved)",
        "  test: 7 images of 1 of 2 classes, 7 per class (as given)",
        "  test_gbl: no image",
    ]


def test_a_rule_by_rank_is_named() -> None:
    by_rank = manifest(["a", "b", "c"], [3, 2, 1])
    by_rank = Manifest(**{**by_rank.__dict__, "shot_rule": "rank", "shot_groups": shot_groups_by_rank([3, 2, 1])})
    assert any("shot groups by rank (a third of the classes each): 1 many" in line for line in class_histogram(by_rank))


@pytest.mark.parametrize("name", ["cat\x1b[2J", "owl\n", "x" * 60])
def test_names_cannot_break_the_lines(name: str) -> None:
    lines = class_histogram(manifest([name, "b"], [4, 8]))
    assert all(line.isprintable() and len(line) < 160 for line in lines)


def test_data_for_evaluation_alone_have_no_histogram() -> None:
    assert class_histogram(manifest(["a", "b"], [0, 0], test=[1, 1])) == []


@pytest.mark.parametrize(
    ("classes", "sizes"), [(1000, (400, 450, 150)), (29, (11, 12, 6)), (20, (8, 9, 3)), (3, (1, 1, 1)), (2, (1, 0, 1))]
)
def test_the_groups_of_glt_are_its_authors(classes: int, sizes: tuple[int, ...]) -> None:
    groups = shot_groups_glt(range(classes, 0, -1))
    assert tuple(groups.count(group) for group in SHOT_GROUPS) == sizes
    assert list(groups) == sorted(groups, key=SHOT_GROUPS.index)


def test_ranks_are_rounded_and_ties_go_by_class() -> None:
    assert shot_groups_glt([1] * 7) == ("many",) * 3 + ("medium",) * 3 + ("few",)  # 2.8 and 5.95
    assert shot_groups_glt([3, 2, 1]) == ("many", "medium", "few")  # 2.55, and one is few at least
    assert shot_groups_by_rank([5, 5, 5]) == ("many", "medium", "few")
