"""Trials that fork from a shared start end in the same bits as trials that train from the beginning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.stats import ClassStats
from ltcore.training import checkpoint
from ltcore.tuning import shared_start as prefix
from tests.training.runs import TERMS, tiny_run
from tests.tuning.sweeps import runs, tune

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("one_ray")]

STATS = ClassStats(torch.tensor([23, 12, 7, 4]), ("many", "medium", "few", "few"))
LATE = {
    "objective.terms.lpa.start": 0.5,
    "objective.terms.dro.start": 0.5,
    "objective.terms.ifl.start": 0.75,
    "objective.terms.ifl.milestones": "0.9",
}
SEARCHED = {
    "sweep__space__train__optim__lr": "null",
    "sweep__space__objective__terms__lpa__weight": "grid:0.05,0.5",
    "sweep__space__objective__terms__dro__radius": "grid:0.5,2",
    "objective__terms__lpa__start": "0.5",
    "objective__terms__dro__start": "0.5",
    "objective__terms__ifl__start": "0.5",
    "sweep__grace_fraction": "1",
    "sweep__retrain_seeds": "0",
    "train__epochs": "6",
    "tracking__wandb": "false",
}


def test_what_is_shared_ends_before_the_first_term_of_any_trial_acts() -> None:
    base = tiny_run(train__epochs=10).replace({**TERMS, **LATE})
    trials = [
        base.replace({"objective.terms.lpa.weight": 0.7}),
        base.replace({"objective.terms.dro.radius": 3.0, "objective.terms.ifl.center_weight": 4.0}),
        base.replace({"objective.terms.dro.start": 0.31}),
    ]
    assert prefix.start_epochs(base, trials, STATS) == (3, [True, True, True])


@pytest.mark.parametrize(
    "change",
    [
        {"train.optim.lr": 0.01},
        {"model.ghost_batch": 4},
        {"objective.terms.lpa.num_attributes": 8},
        {"objective.terms.ifl.num_envs": 4},
        {"objective.terms.dro": None},
        {"objective.base": "cross_entropy"},
    ],
)
def test_a_trial_that_differs_from_the_first_step_on_does_not_share(change: dict[str, Any]) -> None:
    base = tiny_run(train__epochs=10, objective__base="balanced_softmax").replace({**TERMS, **LATE})
    assert prefix.start_epochs(base, [base.replace(change)], STATS)[1] == [False]


def parameters(storage: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for name in runs(storage, "trials"):
        last = checkpoint.find(storage / "small" / "trials" / name / "checkpoints")
        assert last is not None
        found[name] = {**last.model_state(), **{str(k): v for k, v in last.train_state()["step"].items()}}
    return found


@pytest.mark.slow
def test_forked_and_unforked_sweeps_are_bitwise_equal(
    color_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltcore.tuning.sweep.LEAST_IMAGES", 0)
    forked = tune(color_shards, tmp_path / "forked", **SEARCHED)
    whole = tune(color_shards, tmp_path / "whole", sweep__share_start="false", **SEARCHED)
    assert (forked["shared_start"]["epochs"], forked["shared_start"]["trials"]) == (3, 4)
    assert "shared_start" not in whole
    ours, theirs = parameters(tmp_path / "forked"), parameters(tmp_path / "whole")
    assert len(ours) == 5 and set(ours) == set(theirs)
    for name, tensors in ours.items():
        for key, value in tensors.items():
            assert torch.equal(value, theirs[name][key]), (name, key)
    for one, other in zip(forked["trials"], whole["trials"], strict=True):
        assert (one["params"], one["last"], one["best"]) == (other["params"], other["last"], other["best"])
    first = tmp_path / "forked" / "small" / "trials" / "00000" / "metrics.jsonl"
    assert [json.loads(line)["epoch"] for line in first.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert "trained once" in (tmp_path / "forked" / "small" / "report.html").read_text()
