"""Samplers of plugins: named, planned alike on all ranks and after a resume, and told to the losses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltcore.cli.complete import candidates
from ltcore.config import keys
from ltcore.config.load import load_run
from ltcore.config.schema import RunConfig
from ltcore.contracts.check import check_plugin
from ltcore.data.loading.class_sampling import SamplingOptions
from ltcore.data.loading.plugged_sampling import epoch_samples, plan_of
from ltcore.errors import ConfigError, PluginError
from ltcore.training import checkpoint as ckpt
from ltcore.training import trainer as fit
from ltcore.training.context import StopRequested
from ltcore.training.cost import dry_run_text
from tests.ddp import run_ranks
from tests.plugins.state import forgotten_after
from tests.training.runs import StopAfter, assert_equal_runs, plain_steps, run, tiny_run

KEY = {"train.sampling": "tail_first"}
LABELS_N = np.repeat(np.arange(4), (23, 12, 7, 4))


def test_they_are_listed_and_completed_without_an_import(installed: Path) -> None:
    rows = {(row.kind, row.name) for row in keys.methods()}
    assert {("sampler", "tail_first"), ("sampler", "natural")} <= rows
    assert candidates(["train", "train.sampling="], [])[-2:] == ["train.sampling=tail_first", "train.sampling=pairs"]
    assert not [name for name in sys.modules if name.startswith("example_parts")]


def test_a_sampler_is_pinned_and_others_leave_no_trace(installed: Path) -> None:
    cfg = RunConfig(name="x").replace(KEY)
    assert cfg.plugins == ("example_parts.streams==0.3",) and RunConfig.from_flat(cfg.to_flat()) == cfg
    assert "plugins" not in RunConfig(name="x").to_dict()
    with pytest.raises(
        ConfigError, match=r"train.sampling must be one of natural, .*, tail_first, pairs, got 'tail_firs'"
    ):
        cfg.replace({"train.sampling": "tail_firs"})
    with pytest.raises(
        ConfigError, match=r"train.sampling=tail_first does not go with objective.base=balanced_softmax"
    ):
        cfg.replace({"objective.base": "balanced_softmax", "objective.prior": "dataset"})


@pytest.mark.parametrize("sampling", ["tail_first", "pairs"])
def test_a_resumed_run_reads_the_same_images_and_knows_their_shares(
    sampling: str, installed: Path, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "DECIDE_EVERY", 3)
    cfg = tiny_run().replace({"train.sampling": sampling, "objective.base": "balanced_softmax"})
    done = run(cfg, tiny_shards, tmp_path / "whole")
    assert done["images_seen"] == 3 * 40 and done["config"]["plugins"] == "example_parts.streams==0.3"
    assert f"train.sampling={sampling}, of a plugin, says which" in dry_run_text(cfg, tiny_shards)
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(5))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    found = ckpt.find(tmp_path / "whole" / "checkpoints")
    assert found is not None
    shares_C = np.array(found.meta["class_prior"])
    assert shares_C.sum() == pytest.approx(1) and abs(shares_C - 1 / 4).max() < 0.08, (
        "nearly balanced in the last epoch"
    )


def sampled_steps(folder: str, uri: str, sampling: str) -> dict[str, Any]:
    """Seven steps of a sampled run, also in a process that knows no plugin yet."""
    with forgotten_after():
        sys.path.insert(0, folder)
        cfg = tiny_run().replace(
            {"train.sampling": sampling, "plugins": "example_parts.streams", "model.ghost_batch": 4}
        )
        return plain_steps(cfg.to_dict(), uri, 7)


@pytest.mark.parametrize("sampling", ["tail_first", "pairs"])
def test_two_ranks_read_what_one_reads(beside: Path, tiny_shards: str, sampling: str) -> None:
    one = sampled_steps(str(beside), tiny_shards, sampling)
    for several in run_ranks(sampled_steps, 2, str(beside), tiny_shards, sampling):
        torch.testing.assert_close(several["losses"], one["losses"], rtol=1e-9, atol=1e-9)


SAMPLER = """
import random
import numpy as np
from ltcore import dist, plugins
seen = []
@plugins.sampler({name!r}, summary="an odd one"{more})
def odd(samples):
    n = len(samples.labels_N)
    {body}
"""
BROKEN = {
    "draws": ("return np.random.rand(n) + 1", "generator of numpy.random"),
    "draws too": ("return np.ones(n) * (random.random() + 1)", "generator of random"),
    "seeds itself": ("return np.random.default_rng().random(n) + 1", "a second call gives another plan"),
    "gives shares of classes": ("return np.ones(len(samples.counts_C))", "expected one number for each"),
    "gives words": ("return np.array(['a'] * n)", "expected one number for each"),
    "is negative": ("return np.arange(n) - 1.0", "negative or not finite"),
    "divides by zero": ("return np.ones(n) * (1 / samples.epoch)", "ZeroDivisionError"),
    "leaves out a class": ("return samples.labels_N != 3", "expected one number for each"),
    "leaves out a class in numbers": ("return (samples.labels_N != 1) * 1.0", "shows no image of class 1"),
    "writes": ("samples.labels_N[:] = 0; return np.ones(n)", "read-only"),
    "remembers": ("seen.append(samples.epoch); return np.arange(n) + 1.0 + sum(seen)", "another plan"),
    "has too few rows": ("order = 1; return np.arange(n - 1)", "expected 72 rows, as many as there are"),
    "has rows that are none": ("order = 1; return np.arange(n) + 1", "a row outside of 0..71"),
    "orders one class": ("order = 1; return np.zeros(n, int)", "shows no image of class"),
    "orders by weights": ("order = 1; return np.ones(n)", "gives float64 [72]"),
    "shuffles by itself": ("order = 1; return np.random.permutation(n)", "generator of numpy.random"),
    "asks for the rank": ("return np.arange(n) + 1.0 + dist.rank()", "another rank gets another plan"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_sampler_is_found(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, reason = BROKEN[what]
    more = ", order=True" if body.startswith("order = 1") else ""
    (tmp_path / "odd_sampler.py").write_text(SAMPLER.format(name="odd_one", body=body, more=more))
    monkeypatch.syspath_prepend(str(tmp_path))
    problems = [outcome.problem for outcome in check_plugin("odd_sampler") if outcome.problem]
    assert any(reason in problem for problem in problems), problems


def test_a_plan_that_is_none_is_refused_by_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_sampler.py").write_text(SAMPLER.format(name="odd_one", body="return np.full(n, np.nan)", more=""))
    monkeypatch.syspath_prepend(str(tmp_path))
    load_run("cifar100_lt_ce", {"plugins": "odd_sampler", "train.sampling": "odd_one"})
    with pytest.raises(PluginError, match="sampler 'odd_one' gives a weight that is negative or not finite in epoch 2"):
        plan_of("odd_one", epoch_samples("odd_one", LABELS_N, np.full(46, -1), 4, 0, 2, 3), SamplingOptions())


def test_taken_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_sampler.py").write_text(SAMPLER.format(name="natural", body="return np.ones(n)", more=""))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match="plugin odd_sampler: the sampler 'natural' exists already in ltcore"):
        load_run("cifar100_lt_ce", {"plugins": "odd_sampler"})
