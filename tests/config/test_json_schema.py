"""The JSON Schema takes what the loader takes, and refuses what it refuses, as far as one key shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from ltcore.config import keys
from ltcore.config.json_schema import recipe_schema, sweep_schema
from ltcore.config.load import load_run
from ltcore.config.recipes import packaged
from ltcore.errors import ConfigError
from tests.commands import command

__all__ = ["command"]
RECIPE, SWEEP = Draft202012Validator(recipe_schema()), Draft202012Validator(sweep_schema())
LIMITED = {key: leaf for key, leaf in keys.leaves(keys.run_keys()) if leaf.allowed != keys.Allowed()}


def tree(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def outside(leaf: keys.Leaf) -> Any:
    """A value of the right type that the key does not take."""
    if leaf.allowed.choices:
        return 99 if isinstance(leaf.allowed.choices[0], int) else "no-such-word"
    low = float(leaf.allowed.interval[1:].split(",")[0])
    return int(low) - 1 if "int" in leaf.type else low - 1


def test_they_are_schemas() -> None:
    for schema in (recipe_schema(), sweep_schema()):
        Draft202012Validator.check_schema(schema)
        assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize(("kind", "validator"), [("recipe", RECIPE), ("sweep", SWEEP)])
def test_what_is_packaged_is_valid(kind: str, validator: Draft202012Validator) -> None:
    for name, file in packaged(kind).items():
        problems = [error.message for error in validator.iter_errors(yaml.safe_load(file.read_text()))]
        assert not problems, f"{name}: {problems}"


def test_the_defaults_are_valid_and_described() -> None:
    for key, leaf in keys.leaves(keys.run_keys()):
        if leaf.default is not keys.REQUIRED:
            value = list(leaf.default) if isinstance(leaf.default, tuple) else leaf.default
            assert RECIPE.is_valid(tree(key, value)), key
    lr = recipe_schema()["properties"]["train"]["properties"]["optim"]["properties"]["lr"]
    doc = dict(keys.leaves(keys.run_keys()))["train.optim.lr"].doc
    assert lr == {"type": "number", "exclusiveMinimum": 0, "default": 0.1, "description": doc}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochz", 3),
        ("train.epochs", "many"),
        ("train.epochs", True),
        ("train.epochs", None),
        ("objective.terms.lpaa", {}),
        ("objective.terms.lpa", "off"),
        ("train", None),
        ("train.optim.milestones", [0.1, "x"]),
    ],
)
def test_mistakes_are_refused(key: str, value: Any) -> None:
    assert not RECIPE.is_valid(tree(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base", "cifar100_lt_ce"),
        ("objective.terms.lpa", None),
        ("objective.terms.lpa", "on"),
        ("objective.terms.lpa", {"weight": 0.5}),
        ("train.optim.milestones", 0.5),
        ("train.optim.lr", 1),
        ("data.image_size", None),
        ("stage2", {"method": "crt"}),
    ],
)
def test_every_spelling_is_valid(key: str, value: Any) -> None:
    assert RECIPE.is_valid(tree(key, value))


@pytest.mark.parametrize("key", LIMITED)
def test_ranges_and_lists_are_those_of_the_loader(key: str) -> None:
    wrong = outside(LIMITED[key])
    assert not RECIPE.is_valid(tree(key, wrong))
    with pytest.raises(ConfigError, match=rf"{key.rpartition('.')[2]} must be"):
        load_run("cifar100_lt_ce", {key: wrong})


def test_most_listed_values_are_found() -> None:
    listed = {key for key, leaf in LIMITED.items() if leaf.allowed.choices}
    assert {"model.name", "objective.base", "stage2.method", "train.optim.schedule", "data.loader"} <= listed
    terms = ("lpa", "dro", "ifl")
    assert all(LIMITED[f"objective.terms.{term}.start"].allowed.interval == "[0, 1)" for term in terms), "inherited"


def test_sweeps_vary_and_set_keys_that_exist() -> None:
    def valid(**fields: Any) -> bool:
        return SWEEP.is_valid({"recipe": "cifar100_lt_ce", "space": {"train.optim.lr": {"log": [0.01, 1]}}, **fields})

    assert valid() and valid(space={"train.optim.lr": "log:0.01,1"}, overrides={"objective.terms.lpa": None})
    assert valid(space={"objective.base": {"choice": ["focal", "ldam"]}}, overrides={"train.epochs": 3})
    assert not valid(space={"train.optim.lrr": {"log": [0.01, 1]}})
    assert not valid(space={"train.optim.lr": {"logg": [0.01, 1]}}) and not valid(space={"train.optim.lr": "0.1"})
    assert not valid(overrides={"train.epochs": 0}) and not valid(search="annealing") and not valid(num_trial=3)


def test_it_is_printed_at_once(command: Any) -> None:
    assert json.loads(command("schema").out) == recipe_schema()
    assert json.loads(command("schema", "--sweep").out) == sweep_schema()
    code = "import sys; from ltcore.config.json_schema import recipe_schema; recipe_schema();"
    code += "print([m for m in ('torch', 'numpy', 'ray', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
