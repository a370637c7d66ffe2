"""Default names: the same for the same command, others for what gives other results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ltcore.config.load import load_run
from ltcore.config.naming import MAX_CHARS, name_run, name_sweep
from ltcore.config.sweep import read_sweep


def run_name(recipe: str, **overrides: Any) -> str:
    name = name_run(recipe, {key.replace("__", "."): value for key, value in overrides.items()})["name"]
    assert isinstance(name, str)
    return name


def sweep_name(**overrides: Any) -> str:
    name = name_sweep("tune_lpa", {key.replace("__", "."): value for key, value in overrides.items()})["sweep.name"]
    assert isinstance(name, str)
    return name


def test_a_recipe_as_it_is_has_its_own_name_and_a_given_name_stays() -> None:
    assert run_name("cifar100_lt_ce") == "cifar100_lt_ce"
    assert run_name("cifar100_lt_ce", name="mine", seed="7") == "mine"
    assert sweep_name() == "tune_lpa"
    assert sweep_name(**{"sweep.name": "mine", "seed": "7"}) == "mine"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"seed": "7"}, "cifar100_lt_ce-seed7"),
        ({"train.optim.lr": "1e-2", "seed": "7"}, "cifar100_lt_ce-lr0.01-seed7"),
        ({"objective.base": "focal"}, "cifar100_lt_ce-base_focal"),
        ({"data.uri": "cifar10"}, "cifar100_lt_ce-cifar10"),
        ({"model.name": "resnet8"}, "cifar100_lt_ce-model_name_resnet8"),
        ({"stage2.from_run": "/x/cifar100_lt_ce-seed3/"}, "cifar100_lt_ce-from_run_cifar100_lt_ce-seed3"),
        ({"objective.terms.dro": "on"}, "cifar100_lt_ce-dro_on"),
        (
            {"objective.terms.lpa.weight": "0.5", "objective.terms.dro.weight": "1"},
            "cifar100_lt_ce-dro_weight1-lpa_weight0.5",
        ),
        ({"train.optim.milestones": "0.5,0.75"}, "cifar100_lt_ce-optim_milestones0.5_0.75"),
    ],
)
def test_what_was_changed_stands_in_the_name(overrides: dict[str, str], name: str) -> None:
    assert name_run("cifar100_lt_ce", overrides)["name"] == name


@pytest.mark.parametrize(
    "key", ["train.threads=1", "tracking.wandb=false", "data.loader=threads", "data.images=x.zip", "train.epochs=200"]
)
def test_what_changes_no_result_and_what_is_typed_as_it_was_do_not(key: str) -> None:
    assert name_run("cifar100_lt_ce", dict([key.split("=")]))["name"] == "cifar100_lt_ce"


def test_folders_of_one_name_in_two_places_are_told_apart_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here, there = run_name("cifar100_lt_ce", data__uri="./images"), run_name("cifar100_lt_ce", data__uri="/x/images")
    assert here == run_name("cifar100_lt_ce", data__uri=str(tmp_path / "images")) != there
    assert here.startswith("cifar100_lt_ce-images-")
    assert run_name("cifar100_lt_ce", data__uri="s3://b/x/images.zip").startswith("cifar100_lt_ce-images-")


def test_names_of_many_changes_stay_short_legal_and_apart() -> None:
    many = {"train.optim.lr": "0.3", "train.optim.momentum": "0.8", "train.optim.warmup": "0", "train.epochs": "17"}
    many |= {"data.uri": "/photos/Ünïcode [x] & co, 2024", "train.batch_size": "64", "train.optim.nesterov": "true"}
    names = {name_run("cifar100_lt_ce", {**many, "train.optim.gamma": f"0.{n}"})["name"] for n in range(1, 9)}
    assert len(names) == 8
    for name in names:
        assert len(name) <= MAX_CHARS
        assert load_run("cifar100_lt_ce", {"name": name}).name == name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"seed": "3"}, "tune_lpa-seed3"),
        ({"train.epochs": "6"}, "tune_lpa-epochs6"),
        ({"sweep.recipe": "cifar100_lt_ifl", "sweep.space.train.optim.lr": "log:0.01,1"}, None),
        ({"sweep.space.objective.terms.lpa.weight": "null"}, "tune_lpa-lpa_weight_off"),
        ({"sweep.num_trials": "24"}, "tune_lpa"),  # trials are added to the sweep that is there
        ({"sweep.stall_s": "60", "sweep.budget_s": "null"}, "tune_lpa"),
        ({"sweep.metric": "val/macro_precision"}, "tune_lpa-metric_macro_precision"),
    ],
)
def test_sweeps_likewise(overrides: dict[str, str], name: str | None) -> None:
    named = name_sweep("tune_lpa", overrides)
    assert read_sweep("tune_lpa", named).name == named["sweep.name"]
    assert named["sweep.name"] == (name or "tune_lpa-cifar100_lt_ifl-lr_log_0.01_1")
