"""CLT, ALT and GLT as a table."""

from __future__ import annotations

import statistics

import pytest

from ltcore.evaluation.protocol_table import COLUMNS, Measured, ProtocolColumn, ProtocolTable, SeedResult
from ltcore.evaluation.protocols import protocol_of


def seed_result(
    seed: int, intervals: dict[str, tuple[float, float]] | None = None, **metrics: float | None
) -> SeedResult:
    return SeedResult(f"/runs/{seed}", f"/runs/{seed}/checkpoints/best", seed, metrics, intervals or {})


def column(train: str, test: str, *runs: SeedResult) -> ProtocolColumn:
    return ProtocolColumn(train, test, runs)


def test_columns_are_the_protocols_from_the_easiest_on() -> None:
    assert [protocol_of(test, train)[0] for train, test in COLUMNS] == ["CLT", "ALT", "GLT", "Test-GLT"]


def test_one_seed_has_the_interval_of_its_test_and_no_deviation() -> None:
    cell = Measured.of([seed_result(1, {"top1": (0.4, 0.6)}, top1=0.5, ece=0.1)], "top1")
    assert (cell.mean, cell.sd, cell.interval) == (0.5, None, (0.4, 0.6))
    assert Measured.of([seed_result(1, top1=0.5)], "top1").interval is None


def test_a_test_that_repeats_its_pictures_has_none_and_the_table_says_so() -> None:
    with_interval = column("train", "test_cbl", seed_result(1, {"top1": (0.4, 0.6)}, top1=0.5))
    without = ProtocolColumn("train", "test_gbl", (seed_result(1, top1=0.5),), repeats=10)
    said = "nor on test_gbl, whose images show the same pictures several times;"
    assert said in ProtocolTable((with_interval, without)).method
    assert "nor on" not in ProtocolTable((with_interval,)).method


def test_seeds_have_mean_deviation_and_the_interval_of_student() -> None:
    values = (0.5, 0.52, 0.57)
    cell = Measured.of([seed_result(seed, {"top1": (0, 1)}, top1=value) for seed, value in enumerate(values)], "top1")
    half = 4.302653 * statistics.stdev(values) / 3**0.5
    assert cell.mean == pytest.approx(0.53) and cell.sd == pytest.approx(statistics.stdev(values))
    assert cell.interval == pytest.approx((0.53 - half, 0.53 + half), abs=1e-6)


def test_an_interval_over_seeds_ends_where_the_metric_ends() -> None:
    runs = [seed_result(1, top1=0.1, attribute_gap=0.1), seed_result(2, top1=0.9, attribute_gap=0.9)]
    assert Measured.of(runs, "top1").interval == (0.0, 1.0)
    assert Measured.of(runs, "attribute_gap").interval == (-1.0, 1.0)


def test_a_metric_without_a_value_for_some_seed_has_no_mean() -> None:
    cell = Measured.of([seed_result(1, few=None), seed_result(2, few=0.5)], "few")
    assert (cell.mean, cell.sd, cell.interval) == (None, None, None)


def test_the_table_leaves_out_what_says_nothing() -> None:
    common = {"few": None, "geometric_mean": 0.3, "attribute/red": 0.2}
    even = column("train", "test_cbl", seed_result(1, balanced_accuracy=0.5, top1=0.5, **common))
    odd = column("train", "test_gbl", seed_result(1, balanced_accuracy=0.25, top1=0.5, **common))
    assert ProtocolTable((even,)).shown() == ["top1"]
    assert ProtocolTable((even, odd)).shown() == ["balanced_accuracy", "top1"]
    assert [row["metric"] for row in ProtocolTable((even,)).rows()] == [
        "balanced_accuracy",
        "top1",
        "geometric_mean",
        "few",
        "attribute/red",
    ]


def test_json_holds_every_seed_and_where_it_comes_from() -> None:
    found = column("train_cbl", "test_gbl", seed_result(1, top1=0.25), seed_result(2, top1=0.75)).to_json()
    assert (found["protocol"], found["seeds"], found["runs"]) == ("ALT", [1, 2], ["/runs/1", "/runs/2"])
    assert found["metrics"]["top1"]["mean"] == 0.5 and found["metrics"]["top1"]["values"] == [0.25, 0.75]
