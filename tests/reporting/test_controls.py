"""What a comparison says of a term beside its controls, and of methods with and without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ltcore.config.records import SweepRecord
from ltcore.reporting.controls import pair_lines, pairs
from tests.reporting.comparison import comparison

OFF: dict[str, Any] = {"objective.terms.ifl": None}


def sweep(rows: dict[str, tuple[dict[str, Any], tuple[float, ...]]]) -> SweepRecord:
    plain = comparison(3)
    made = tuple(
        replace(plain.variants[0], name=name, changes=changes, test={"test": {"top1": values}})
        for name, (changes, values) in rows.items()
    )
    return replace(plain, variants=made)


def found(rows: dict[str, tuple[dict[str, Any], tuple[float, ...]]]) -> list[tuple[str, str, str, str]]:
    return [(p.term, p.variant, p.other, p.without) for p in pairs(sweep(rows), "test", "top1")]


LOW, HIGH = (0.50, 0.51, 0.52), (0.60, 0.61, 0.63)


def test_a_method_with_and_without_a_term_also_through_stage_2() -> None:
    ce = {"objective.base": "cross_entropy"}
    rows = {
        "ce": ({**ce, **OFF}, LOW),
        "ce_ifl": (ce, HIGH),
        "crt": ({"stage2.from_run": "ce", "stage2.method": "crt"}, LOW),
        "crt_ifl": ({"stage2.from_run": "ce_ifl", "stage2.method": "crt"}, HIGH),
        "focal": ({"objective.base": "focal", **OFF}, LOW),
    }
    assert found(rows) == [("ifl", "ce_ifl", "ce", ""), ("ifl", "crt_ifl", "crt", "")]
    lines = pair_lines(pairs(sweep(rows), "test", "top1"), "test top-1")
    assert lines == ["With ifl, in test top-1: better: ce_ifl than ce (+10.3), crt_ifl than crt (+10.3)."]


def test_a_stage_that_switches_a_term_on_again_is_compared_with_the_same_stage_without_it() -> None:
    """It starts from a run without the term."""
    late = {"train.init_from": "ce", "train.freeze": "classifier"}
    rows = {
        "ce": (OFF, LOW),
        "stage": ({**late, "objective.terms.ifl.start": 0.0}, HIGH),
        "plain_stage": ({**late, **OFF}, LOW),
        "head": ({"stage2.from_run": "stage", "stage2.method": "crt"}, HIGH),
        "plain_head": ({"stage2.from_run": "plain_stage", "stage2.method": "crt"}, LOW),
    }
    assert found(rows) == [("ifl", "stage", "plain_stage", ""), ("ifl", "head", "plain_head", "")]


def test_a_term_beside_its_controls() -> None:
    envs, ratio = "objective.terms.ifl.num_envs", "objective.terms.ifl.tail_ratio"
    rows = {
        "none": (OFF, LOW),
        "ifl": ({envs: 2}, HIGH),
        "one": ({envs: 1}, LOW),
        "balanced": ({envs: 2, ratio: 1.0}, (0.63, 0.60, 0.61)),
        "other": ({envs: 1, "train.epochs": 3}, LOW),
    }
    assert found(rows) == [
        ("ifl", "ifl", "none", ""),
        ("ifl", "ifl", "one", "environments"),
        ("ifl", "ifl", "balanced", "scores"),
        ("ifl", "one", "none", ""),
        ("ifl", "balanced", "none", ""),
    ]
    over, first, second = pair_lines(pairs(sweep(rows), "test", "top1"), "GLT top-1")
    assert over == (
        "With ifl, in GLT top-1: better: ifl than none (+10.3), balanced than none (+10.3); no clear difference: "
        "one than none (0.0)."
    )
    assert first.startswith("ifl is better than its control one, which lacks environments, in GLT top-1 (+10.3, ")
    assert "ifl is not distinguishable from its control balanced, which lacks scores, in GLT top-1 (0.0, " in second
    assert second.endswith("what it gains over its base is not shown to come from that part.")


def test_one_seed_has_no_interval_and_missing_values_no_pair() -> None:
    rows = {"ce": (OFF, (0.5,)), "ifl": ({}, (0.6,))}
    assert pair_lines(pairs(sweep(rows), "test", "top1"), "top-1") == []
    assert pairs(sweep(rows), "test", "few") == []
