"""Sampling by class from images to metrics: budgets, priors, resume, and what it does not go with."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltcore.data.loading.class_sampling import class_copies
from ltcore.errors import ConfigError
from ltcore.training import checkpoint as ckpt
from ltcore.training import copies
from ltcore.training import trainer as fit
from ltcore.training.context import StopRequested
from ltcore.training.cost import dry_run_text
from tests.training.runs import TERMS, StopAfter, assert_equal_runs, run, tiny_run, weights

NATURAL = np.array([23, 12, 7, 4]) / 46
SHARES = {"class_balanced": np.full(4, 1 / 4), "square_root": NATURAL**0.5 / (NATURAL**0.5).sum()}


def prior(run_dir: Path) -> Any:
    found = ckpt.find(run_dir / "checkpoints")
    assert found is not None
    return found.meta["class_prior"]


@pytest.mark.parametrize("sampling", SHARES)
def test_epochs_are_as_long_and_the_prior_is_that_of_the_stream(
    tiny_shards: str, tmp_path: Path, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []

    def note(*arguments: Any) -> Any:
        planned.append(class_copies(*arguments))
        return planned[-1]

    monkeypatch.setattr(copies, "class_copies", note)
    cfg = tiny_run(train__sampling=sampling)
    record = run(cfg, tiny_shards, tmp_path / "run")
    assert record["images_seen"] == 3 * 40
    assert [copies_N.sum() for copies_N in planned] == [46] * 3
    assert any((one != other).any() for one, other in itertools.pairwise(planned))
    assert prior(tmp_path / "run") == pytest.approx(SHARES[sampling])
    assert f"train.sampling={sampling} repeats images of small classes" in dry_run_text(cfg, tiny_shards)


def test_progressive_goes_from_the_natural_stream_to_a_balanced_one(tiny_shards: str, tmp_path: Path) -> None:
    for until in (1, 2):
        with pytest.raises(StopRequested):
            run(tiny_run(train__sampling="progressive"), tiny_shards, tmp_path / "run", until=until)
        assert prior(tmp_path / "run") == pytest.approx(NATURAL if until == 1 else (NATURAL + 1 / 4) / 2)
    run(tiny_run(train__sampling="progressive"), tiny_shards, tmp_path / "run")
    assert prior(tmp_path / "run") == pytest.approx([1 / 4] * 4)


def test_the_first_epoch_of_progressive_is_bitwise_the_natural_one(tiny_shards: str, tmp_path: Path) -> None:
    for sampling in ("natural", "progressive"):
        with pytest.raises(StopRequested):
            run(tiny_run(train__sampling=sampling), tiny_shards, tmp_path / sampling, until=1)
    assert_equal_runs(tmp_path / "natural", tmp_path / "progressive")


@pytest.mark.parametrize("base", ["cross_entropy", "balanced_softmax"])
def test_a_stopped_run_goes_on_with_the_same_stream(
    tiny_shards: str, tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "DECIDE_EVERY", 3)
    cfg = tiny_run(train__sampling="progressive", objective__base=base)
    run(cfg, tiny_shards, tmp_path / "whole")
    with pytest.raises(StopRequested, match=r"in epoch 3 of 3"):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(5))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_natural_is_bitwise_what_no_key_gives(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(), tiny_shards, tmp_path / "base")
    run(tiny_run(train__sampling="natural"), tiny_shards, tmp_path / "natural")
    for name, value in weights(tmp_path / "base").items():
        assert torch.equal(value, weights(tmp_path / "natural")[name]), name


def test_terms_but_environments_go_with_it(tiny_shards: str, tmp_path: Path) -> None:
    one = TERMS | {"objective.terms.ifl.num_envs": 1, "train.epochs": 2, "train.sampling": "class_balanced"}
    assert run(tiny_run(**one), tiny_shards, tmp_path / "run")["status"] == "finished"


def test_what_it_does_not_go_with_is_said() -> None:
    for mode in ("repeat", "weight"):
        with pytest.raises(
            ConfigError, match=r"train\.sampling=square_root does not go with objective\.terms\.ifl: its envir"
        ):
            tiny_run(train__sampling="square_root", **{"objective.terms.ifl.env_mode": mode})
    with pytest.raises(ConfigError, match=r"balanced twice. Set objective.prior=stream"):
        tiny_run(train__sampling="square_root", objective__base="balanced_softmax", objective__prior="dataset")
    with pytest.raises(
        ConfigError, match=r"nothing is left to balance. Set train.sampling=natural or objective.base=cross_en"
    ):
        tiny_run(train__sampling="class_balanced", objective__base="ldam", model__head="cosine", model__cosine_scale=30)
    with pytest.raises(
        ConfigError, match=r"train.sampling must be one of natural, class_balanced, square_root, progressive"
    ):
        tiny_run(train__sampling="balanced")
