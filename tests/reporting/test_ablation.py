"""Words of an ablation follow from the intervals: a term whose control does as well is said to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ltcore.config.records import SweepRecord
from ltcore.config.retrained import AblationRecord, BalancedRecord, SettingRecord
from ltcore.evaluation.paired import compare
from ltcore.reporting.ablation import ablation_lines, ablation_rows, ablation_table
from ltcore.reporting.report import write_report
from ltcore.reporting.summary import next_steps, summary_lines, verdict
from tests.records import sweep_record, trial_record
from tests.reporting.fake_sweep import make_sweep
from tests.reporting.page import Page

BASELINE = (0.70, 0.72, 0.68, 0.71)
LPA = (0.76, 0.77, 0.75, 0.78)


def measured(values: Sequence[float]) -> dict[int, Any]:
    """Seed -> tests, as runs store them."""
    return {seed: {"test_gbl": {"top1": value}, "test_cbl": {"top1": value + 0.1}} for seed, value in enumerate(values)}


def row(term: str, values: Sequence[float], control: str = "", of: Sequence[float] = ()) -> AblationRecord:
    place = f"ablation/{term}{control and '-' + control.replace('=', '')}"
    return AblationRecord(
        term=term,
        control=control,
        without="pseudo-attributes" if control else "",
        changes={},
        seeds=tuple(range(len(values))),
        run_dirs=tuple(f"{place}-seed{seed}" for seed in range(len(values))),
        over_baseline=compare(measured(values), measured(BASELINE[: len(values)])),
        term_over_control=compare(measured(of), measured(values)) if control else None,
    )


def sweep_with(*rows: AblationRecord, seeds: int = 4, **fields: Any) -> SweepRecord:
    winner = tuple(value + 0.1 for value in BASELINE[:seeds])
    common: dict[str, Any] = {"trials": (trial_record("00000", last=0.5),), "winner": "00000", "baseline": "baseline"}
    comparison = compare(measured(winner), measured(BASELINE[:seeds]))
    return sweep_record(**{**common, "comparison": comparison, "ablation": rows, **fields})


@pytest.mark.parametrize(
    ("control", "words"),
    [
        ((0.765, 0.765, 0.76, 0.77), "LPA's pseudo-attributes make no difference that can be told from chance: "),
        ((0.70, 0.71, 0.70, 0.72), "LPA's pseudo-attributes help: "),
        ((0.86, 0.87, 0.85, 0.88), "LPA's pseudo-attributes do harm: "),
    ],
)
def test_what_a_control_says_of_its_term(control: tuple[float, ...], words: str) -> None:
    alone, said = ablation_lines(sweep_with(row("lpa", LPA), row("lpa", control, "neighbor_mass=0", LPA)))
    assert alone.startswith("LPA alone, top-1 in GLT: better than the baseline by 6.3 points (95% CI +")
    assert said.startswith(words)
    mean = 100 * sum(control) / 4
    assert f"without them (neighbor_mass=0) {mean:.1f}%, with them 76.5% in GLT: difference " in said
    assert said.endswith(", 4 seeds).")


def test_one_seed_says_nothing_of_chance() -> None:
    lines = ablation_lines(sweep_with(row("lpa", LPA[:1]), row("lpa", (0.7,), "neighbor_mass=0", LPA[:1]), seeds=1))
    assert lines[0].startswith("LPA alone, top-1 in GLT: not distinguishable from the baseline (difference +6.0 points")
    assert lines[1].endswith("difference +6.0 points, from one seed, which tells nothing of chance.")


def test_which_setting_a_term_has_alone_is_said_and_how_it_was_chosen() -> None:
    weight, other = "objective.terms.lpa.weight", "objective.terms.ifl.num_envs"
    tried = tuple(
        SettingRecord(
            trial=trial, params={weight: value}, run_dir=f"ablation/lpa-trial{trial}-seed0", value=0.8 - value
        )
        for trial, value in (("00003", 0.25), ("00000", 0.75))
    )
    changes = {weight: 0.25, "objective.terms.dro": None, "objective.terms.ifl": None}
    alone = replace(row("lpa", LPA), changes=changes, settings=tried)
    control = replace(
        row("lpa", BASELINE, "neighbor_mass=0", LPA), changes={**changes, f"{weight[:-6]}neighbor_mass": 0}
    )
    space = {weight: "log:0.02,1", other: "choice:1,2"}
    winner = trial_record("00000", last=0.5, params={weight: 0.75, other: 2})
    sweep = sweep_with(alone, control, space=space, trials=(winner,))
    assert [line[""] for line in ablation_table(sweep)][2:] == ["LPA alone (weight=0.25)", "LPA with neighbor_mass=0"]
    first, chosen, _ = ablation_lines(sweep)
    assert first.startswith("LPA alone (weight=0.25), top-1 in GLT: better than the baseline")
    assert chosen == (
        "LPA's setting alone is the best of 2 that trials had, by validation top-1 with the search's seed; in the winner it is "
        "weight=0.75."
    )
    assert chosen in summary_lines(sweep)
    same = sweep_with(replace(alone, changes={weight: 0.75}), space=space, trials=(winner,))
    assert ablation_lines(same)[1].endswith(" with the search's seed; in the winner it is the same.")
    assert len(ablation_lines(sweep_with(replace(alone, settings=None), space=space, trials=(winner,)))) == 1


def test_the_table_has_baseline_winner_terms_and_controls() -> None:
    sweep = sweep_with(row("lpa", LPA), row("lpa", BASELINE, "neighbor_mass=0", LPA))
    table = ablation_table(sweep)
    assert [line[""] for line in table] == [
        "baseline",
        "winner (all its terms)",
        "LPA alone",
        "LPA with neighbor_mass=0",
    ]
    assert all(list(line) == ["", "GLT", "CLT", "GLT over baseline"] for line in table)
    assert [line["GLT"] for line in table] == ["70.2 ± 1.7", "80.2 ± 1.7", "76.5 ± 1.3", "70.2 ± 1.7"]
    assert table[0]["GLT over baseline"] == "" and table[1]["GLT over baseline"] == "+10.0 (+10.0..+10.0)"
    assert table[3]["GLT over baseline"] == "0.0 (0.0..0.0)"
    assert [line["CLT"] for line in table][2] == "86.5 ± 1.3"
    assert ablation_table(replace(sweep, ablation=None)) == ablation_rows(replace(sweep, ablation=())) == []


def test_alt_is_named_beside_glt_and_clt() -> None:
    balanced = BalancedRecord(runs=(), comparison=compare(measured(BASELINE), measured(LPA)))
    found = verdict(sweep_with(balanced=balanced))
    assert found.kind == "mixed"
    assert found.text == (
        "In top-1 the winner is 10.0 points better than the baseline in GLT and 10.0 in CLT, but 6.3 points worse than the "
        "baseline in ALT."
    )
    assert [line.partition(" (")[0] for line in found.details] == ["GLT", "CLT", "ALT"]
    assert any(
        line.startswith("ALT (test_gbl) top-1: winner 70.2") for line in summary_lines(sweep_with(balanced=balanced))
    )


def test_trials_that_a_budget_left_out_are_named_until_they_are_there() -> None:
    cut = sweep_with(num_trials=5, sizes=(5,), cut_from=8)
    assert next_steps(cut)[0].startswith("Of 8 trials the first 5 were run, as many as sweep.budget_s allows")
    assert not any("budget_s" in step for step in next_steps(replace(cut, num_trials=8, sizes=(5, 8))))


def test_the_page_shows_every_row_with_its_exact_values(tmp_path: Path) -> None:
    make_sweep(tmp_path, ablation=True)
    page = Page(write_report(tmp_path))
    assert "What each term contributes" in page.words and "LPA with neighbor_mass=0" in page.words
    assert "LPA alone (weight=0.1)" in page.words and "is the best of 2 that trials had" in page.words
    assert "ALT" in page.words
    for name in ("baseline", "winner", "lpa", "lpa-neighbor_mass0"):
        (value,) = page.values(row=name, stat="mean", metric="test_gbl/balanced_accuracy")
        assert value is not None and 0 < value < 1
    assert len(page.values(stat="difference", role="", row="lpa")) <= 1
    assert len({d["run"] for d in page.data if d.get("run", "").startswith("lpa")}) == 6, "every seed is in the table"
