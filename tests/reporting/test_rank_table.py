"""Accuracy by attribute rank: its table, its figure, and where the reports show it."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from ltcore.evaluation.paired import paired_difference
from ltcore.reporting.rank_table import RANKS, RankTable, is_rank_metric, rank_groups, rank_metric, rank_table
from ltcore.reporting.report import make_report
from ltcore.reporting.svg import COLORS
from tests.reporting import own_run
from tests.reporting.fake_sweep import by_rank, make_sweep, write_json
from tests.reporting.page import Page

METHODS = {
    "baseline": {"attribute_rank/majority": (0.9, 0.8), "attribute_rank/rare/few": (0.25, None), "top1": (0.5, 0.5)},
    "winner": {"attribute_rank/majority": (0.9, 0.84), "attribute_rank/rare/few": (0.75, 0.5)},
}


def test_rows_are_groups_and_methods_with_mean_and_deviation() -> None:
    groups = rank_groups(METHODS)
    assert [group.title for group in groups] == ["all classes", "few-shot"], "without numbers there is no row"
    cells = {(g.title, row.label): [cell.text for cell in row.cells] for g in groups for row in g.rows}
    assert cells == {
        ("all classes", "baseline"): ["85.0 ± 7.1", "—", "—"],
        ("all classes", "winner"): ["87.0 ± 4.2", "—", "—"],
        ("few-shot", "baseline"): ["—", "—", "25.0"],
        ("few-shot", "winner"): ["—", "—", "62.5 ± 17.7"],
    }


def test_a_difference_says_whether_it_can_be_told_from_zero() -> None:
    difference = {
        "attribute_rank/majority": paired_difference([0.9, 0.84], [0.9, 0.8]),
        "attribute_rank/rare/few": paired_difference([0.75, 0.5], [0.25, 0.0]),
    }
    everyone, few = rank_groups(METHODS, difference)
    assert [(c.text, c.kind) for c in everyone.rows[-1].cells] == [("+2.0", "same"), ("—", ""), ("—", "")]
    assert [(c.text, c.kind) for c in few.rows[-1].cells] == [("—", ""), ("—", ""), ("+50.0", "better")]


def test_without_these_metrics_there_is_no_table() -> None:
    assert rank_groups({"winner": {"top1": (0.5,)}}) == ()
    assert rank_table("test", "test", {"winner": {"attribute/red": (0.5,)}}, COLORS) is None
    others = ("attribute/red", "attribute_gap", "attribute_rank/rare/macro_precision")
    assert not any(map(is_rank_metric, others)), "these stand in other tables"


@pytest.mark.parametrize("equal", [0.0, 0.5, 1.0])
def test_equal_methods_have_both_their_numbers_in_the_figure(equal: float) -> None:
    values = {rank_metric(rank): (equal,) for rank in RANKS}
    table = rank_table("test", "test", {"baseline": values, "winner": values}, COLORS)
    assert isinstance(table, RankTable) and table.figures.keys() == {"wide", "narrow"}
    for svg in table.figures.values():
        assert svg.count(f">{100 * equal:.0f}<") == 6


def test_a_sweep_shows_winner_baseline_and_difference_of_every_test(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep")
    page = Page(make_report([tmp_path / "sweep"]))
    for split, cells in sweep["comparison"].items():
        ranked = {metric: cell for metric, cell in cells.items() if is_rank_metric(metric)}
        assert len(ranked) == 11, "medium classes have no second attribute"
        for metric, cell in ranked.items():
            key = f"{split}/{metric}"
            assert page.values(stat="difference", metric=key) == [cell["difference"]], "once: in no other table"
            for role in ("winner", "baseline"):
                assert page.values(role=role, stat="mean", metric=key) == [fmean(cell[role])]
    assert page.words.count("Accuracy by attribute rank") == 1


def test_a_run_shows_its_values_once(tmp_path: Path) -> None:
    own_run.write(tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "attribute rank" not in Page(make_report([tmp_path / "run"])).words
    values = by_rank(0.6, "a")
    info["test"]["test"] |= values
    write_json(tmp_path / "run" / "run.json", info)
    page = Page(make_report([tmp_path / "run"]))
    shown = {d["metric"]: d.get("value") for d in page.data if "attribute_rank" in d.get("metric", "")}
    assert shown == {f"test/{name}": None if value is None else str(value) for name, value in values.items()}
