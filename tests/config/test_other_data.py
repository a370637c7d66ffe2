"""What a recipe selects out of its own source does not cut down other people's photos, whichever way they are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ltcore.config.load import base_run, load_run
from ltcore.config.show import left_out, run_tree, show_run
from ltcore.config.sweep import read_sweep
from ltcore.tuning.identity import identity

NOTE = "Images are used as they are: data.imbalance_factor={} of the recipe is for {}. Give it to select."
FACTOR, URI = "data.imbalance_factor", "data.uri"
LEGACY = "data: {uri: cifar10, imbalance_factor: 50, subset: legacy}\n"
MINE = "base: cifar100_lt_ce\ndata: {uri: photos}\n"
BOTH = "base: cifar100_lt_ce\ndata: {uri: photos, imbalance_factor: 10}\n"
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, float | None, str], str]] = {
    "as it is": ("cifar100_lt_ce", {}, ("cifar100", 100, "auto"), ""),
    "photos": ("cifar100_lt_ce", {URI: "photos"}, ("photos", None, "auto"), NOTE.format(100, "cifar100")),
    "a child": ("cifar100_lt_paco", {URI: "a.zip"}, ("a.zip", None, "auto"), NOTE.format(100, "cifar100")),
    "a store": ("cifar100_lt_ce", {URI: "s3://b/d"}, ("s3://b/d", None, "auto"), NOTE.format(100, "cifar100")),
    "as a section": ("cifar100_lt_ce", {"data": {"uri": "p"}}, ("p", None, "auto"), NOTE.format(100, "cifar100")),
    "a benchmark": ("cifar100_lt_ce", {URI: "cifar10"}, ("cifar10", 100, "auto"), ""),
    "its own": ("cifar100_lt_ce", {URI: "cifar100"}, ("cifar100", 100, "auto"), ""),
    "typed": ("cifar100_lt_ce", {URI: "photos", FACTOR: "20"}, ("photos", 20, "auto"), ""),
    "typed first": ("cifar100_lt_ce", {FACTOR: 100, URI: "photos"}, ("photos", 100, "auto"), ""),
    "typed away": ("cifar100_lt_ce", {FACTOR: "null"}, ("cifar100", None, "auto"), ""),
    "nothing to lose": ("inat18_dro", {URI: "photos"}, ("photos", None, "auto"), ""),
    "its subset": (LEGACY, {URI: "photos"}, ("photos", None, "auto"), NOTE.format(50, "cifar10")),
    "its subset, typed": (LEGACY, {URI: "photos", FACTOR: 9}, ("photos", 9, "auto"), ""),
    "own recipe": (MINE, {}, ("photos", None, "auto"), NOTE.format(100, "cifar100")),
    "own recipe, typed": (MINE, {FACTOR: 5}, ("photos", 5, "auto"), ""),
    "own recipe with both": (BOTH, {}, ("photos", 10, "auto"), ""),
    "own recipe, others": (BOTH, {URI: "more"}, ("more", None, "auto"), NOTE.format(10, "photos")),
}


def recipe(text: str, folder: Path) -> str:
    if ":" not in text:
        return text
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


@pytest.mark.parametrize("case", CASES)
def test_a_selection_goes_with_the_data_that_it_is_for(tmp_path: Path, case: str) -> None:
    text, overrides, expected, note = CASES[case]
    name = recipe(text, tmp_path)
    run = load_run(name, overrides)
    assert (run.data.uri, run.data.imbalance_factor, run.data.subset) == expected
    assert left_out(name, overrides) == note
    assert run_tree(name, overrides) == run.to_dict()
    shown = show_run(name, overrides)
    assert (f"# {note}" in shown) if note else ("used as they are" not in shown)


def test_a_sweep_and_its_identity_follow_the_same_rule() -> None:
    for overrides, factor in (({URI: "photos"}, None), ({URI: "photos", FACTOR: 20}, 20.0), ({}, 100.0)):
        sweep = read_sweep("tune_lpa", {"sweep.recipe": "cifar100_lt_lpa_dro_ifl", **overrides})
        assert base_run(sweep).data.imbalance_factor == factor
        assert identity(sweep).get(FACTOR) == factor
