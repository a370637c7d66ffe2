"""What an ablation trains follows from the winner and from the registry of terms, and nothing is trained twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ltcore.config.load import load_run
from ltcore.config.sweep import read_sweep
from ltcore.errors import ConfigError
from ltcore.objective.controls import CONTROLS, Control
from ltcore.objective.registry import TERMS
from ltcore.tuning.ablation import MAX_SETTINGS, ablated, ablated_runs, candidates, terms_off

BASE = load_run("digits_glt_lpa_dro_ifl")
LPA, IFL = "objective.terms.lpa", "objective.terms.ifl"
ALL = ["lpa", "lpa-neighbor_mass0", "dro", "ifl", "ifl-tail_ratio1", "ifl-num_envs1"]


def names(**winner: Any) -> list[str]:
    keys = {f"objective.terms.{key.replace('__', '.')}": value for key, value in winner.items()}
    return [row.name for row in ablated(BASE, keys)]


def test_each_term_stands_alone_at_the_winners_values() -> None:
    winner = {"objective.terms.lpa.weight": 0.7, "objective.terms.ifl.num_envs": 3, "train.optim.lr": 0.02}
    rows = {row.name: BASE.replace(row.changes) for row in ablated(BASE, winner)}
    assert list(rows) == ALL
    for name, run in rows.items():
        assert list(run.objective.active_terms()) == [name.partition("-")[0]]
        assert run.train.optim.lr == 0.02
    assert rows["lpa"].objective.terms.lpa.weight == rows["lpa-neighbor_mass0"].objective.terms.lpa.weight == 0.7
    assert rows["lpa"].objective.terms.lpa.neighbor_mass > rows["lpa-neighbor_mass0"].objective.terms.lpa.neighbor_mass
    assert rows["ifl-tail_ratio1"].objective.terms.ifl.num_envs == 3
    assert rows["ifl-num_envs1"].objective.terms.ifl.num_envs == 1


@pytest.mark.parametrize(
    ("winner", "expected"),
    [
        ({}, ALL),
        ({"ifl__num_envs": 1}, ALL[:4]),  # its scores have nothing to act on either
        ({"ifl__env_type": "uniform"}, [*ALL[:4], ALL[5]]),
        ({"lpa__neighbors": 0}, [ALL[0], *ALL[2:]]),
        ({"lpa__neighbor_mass": 0.0}, [ALL[0], *ALL[2:]]),
        ({"ifl__center_weight": 0.0}, ALL[:5]),  # with one environment, nothing would be left of it
        ({"lpa": None, "dro": None}, ALL[3:]),
        ({"lpa": None, "dro__weight": 0.0, "ifl": None}, []),
    ],
)
def test_a_control_that_is_the_term_itself_or_the_baseline_is_left_out(
    winner: dict[str, Any], expected: list[str]
) -> None:
    assert names(**winner) == expected


def test_a_term_alone_may_have_another_setting_than_beside_others() -> None:
    winner = {f"{LPA}.weight": 0.7, f"{IFL}.num_envs": 3, "train.optim.lr": 0.02}
    rows = {row.name: BASE.replace(row.changes) for row in ablated(BASE, winner, {"ifl": {f"{IFL}.num_envs": 2}})}
    assert list(rows) == ALL
    assert [rows[name].objective.terms.ifl.num_envs for name in ALL[3:]] == [2, 2, 1]
    assert rows["lpa"].objective.terms.lpa.weight == 0.7 and rows["ifl"].train.optim.lr == 0.02


@pytest.mark.parametrize(
    ("term", "values", "expected"),
    [
        ("lpa", [{f"{LPA}.weight": weight} for weight in (0.5, 0.1, 0.5, 2.0, 1.0, 0.3)], [0, 1, 3, 4]),
        ("ifl", [{f"{IFL}.num_envs": number} for number in (3, 1, 2, 3)], [0, 2]),
        (
            "ifl",
            [{f"{IFL}.num_envs": number} for number in (1, 4, 2)],
            [1, 2],
        ),  # also where the winner is its own control
        (
            "ifl",
            [{f"{IFL}.num_envs": 1, f"{IFL}.weight": weight} for weight in (1.0, 2.0)],
            [0, 1],
        ),  # and cannot help it
        ("ifl", [{f"{IFL}.env_type": "uniform", f"{IFL}.num_envs": number} for number in (2, 3, 1)], [0, 1]),
        ("lpa", [{f"{LPA}.weight": 0.5}, {f"{LPA}.weight": 0.0}, {LPA: None}, {f"{LPA}.weight": -1}], [0]),
        ("lpa", [{"train.optim.lr": 0.1, f"{IFL}.num_envs": 2}, {"train.optim.lr": 0.2, f"{IFL}.num_envs": 3}], [0]),
    ],
)
def test_settings_of_a_term_alone_come_from_the_trials(
    term: str, values: list[dict[str, Any]], expected: list[int]
) -> None:
    assert MAX_SETTINGS == 4
    trials = {f"{number:05d}": params for number, params in enumerate(values)}
    found = candidates(BASE, values[0], term, trials)
    own = [
        {key: value for key, value in params.items() if key.startswith(f"objective.terms.{term}")} for params in values
    ]
    assert found == {f"{number:05d}": own[number] for number in expected}


def test_controls_are_options_of_their_term() -> None:
    for name, row in TERMS.items():
        for control in row.controls:
            known = set(row.build.Config.__dataclass_fields__)
            assert control.changes.keys() <= known and control.moot.keys() <= known, name
            assert control.changes.items() - vars(row.build.Config()).items(), f"{name} is its own control"
            assert control.without


def test_every_term_has_its_row_of_controls() -> None:
    assert list(CONTROLS) == list(TERMS) and all(TERMS[name].controls is CONTROLS[name] for name in TERMS)


def test_the_baseline_has_no_term() -> None:
    assert BASE.replace(terms_off()).objective.active_terms() == {}


def test_an_ablation_is_tried_on_the_recipe_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = read_sweep("tune_lpa", {"sweep.ablation": "true"})
    runs = list(ablated_runs(sweep, BASE))
    ends = {"lpa": "weight", "dro": "radius", "ifl": "num_envs"}
    for term, key in ends.items():
        tried = {
            getattr(getattr(run.objective.terms, term), key)
            for run in runs
            if run.objective.active_terms().keys() == {term}
        }
        assert tried >= set(sweep.space[f"objective.terms.{term}.{key}"].probes()), "what may win"
    assert list(ablated_runs(read_sweep("tune_lpa", {"sweep.ablation": "false"}), BASE)) == []
    only_lpa = read_sweep(
        "tune_lpa",
        {
            "sweep.ablation": "true",
            **{f"sweep.space.objective.terms.{key}": "null" for key in ("dro.radius", "ifl.num_envs")},
        },
    )
    spared = load_run(
        "cifar100_lt_paco_lpa",
        {"objective.terms.lpa.spare_neighbors": "true"},
    )
    assert all(list(run.objective.active_terms()) == ["lpa"] for run in ablated_runs(only_lpa, spared))
    with pytest.raises(ConfigError, match=r"^objective.terms.lpa"):
        list(ablated(BASE, {"objective.terms.lpa.weight": -1}))
    wrong = replace(TERMS["dro"], controls=(Control({"radius": -1.0}, "a radius"),))
    monkeypatch.setitem(TERMS, "dro", wrong)
    with pytest.raises(ConfigError, match=r"^sweep.ablation=true trains dro-radius-1 alone: objective.terms.dro"):
        list(ablated_runs(sweep, BASE))
