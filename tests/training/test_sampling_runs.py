"""Sampling by class from images to metrics: budgets, priors, resume, and what it does not go with."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltcore.data.loading.class_sampling import class_copies
from ltcore.data.loading.factory import make_loader
from ltcore.errors import ConfigError
from ltcore.training import checkpoint as ckpt
from ltcore.training import copies
from ltcore.training import trainer as fit
from ltcore.training.build import build_modules
from ltcore.training.context import StopRequested
from ltcore.training.copies import plan_epoch
from ltcore.training.cost import dry_run_text
from tests.ddp import run_ranks
from tests.training.runs import (
    TERMS,
    StopAfter,
    assert_equal_runs,
    assert_equal_weights,
    plain_steps,
    run,
    tiny_run,
)

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


def test_natural_weights_undo_what_the_stream_balances(tiny_shards: str, tmp_path: Path) -> None:
    """So the classifier learns the shares of the data, by which it is adjusted afterwards."""
    weights = {"objective.base_options.cross_entropy.class_weights": "natural"}
    run(tiny_run(train__sampling="class_balanced", train__epochs=1, **weights), tiny_shards, tmp_path / "run")
    assert prior(tmp_path / "run") == pytest.approx(NATURAL)


AWARE = {"train.sampling": "class_aware", "train.images_per_class": 2}


@pytest.mark.parametrize("loader", ["cache", "threads"])
def test_class_aware_batches_have_several_images_of_each_of_their_classes(
    tiny_shards: str, tmp_path: Path, loader: str
) -> None:
    cfg = tiny_run(**AWARE, data__loader=loader)
    opened = make_loader(cfg.data, tiny_shards, batch_size=8, seed=0)
    objective = build_modules(cfg, 4, opened.store.manifest.stats("train"), 46)[1]
    drawn = []
    for epoch in range(2):
        plan_epoch(cfg, opened, objective, epoch, torch.device("cpu"))
        batches = list(opened.train_batches(epoch))
        assert len(batches) == opened.num_batches == 5, "an epoch is as long as a natural one"
        for batch in batches:
            runs = batch.labels_B.view(4, 2)
            assert (runs[:, 0] == runs[:, 1]).all() and runs[:, 0].sort().values.tolist() == [0, 1, 2, 3]
        seen = torch.stack([torch.cat([b.index_B for b in batches]), torch.cat([b.copy_B for b in batches])], 1)
        assert len(seen.unique(dim=0)) == 40, "a repeated image is augmented anew"
        drawn.append(seen)
    assert not torch.equal(*drawn)
    opened.close()
    record = run(cfg, tiny_shards, tmp_path / "run")
    assert record["images_seen"] == 3 * 40 and prior(tmp_path / "run") == pytest.approx([1 / 4] * 4)
    assert "A batch has 4 times 2 images of one class." in dry_run_text(cfg, tiny_shards)


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


@pytest.mark.parametrize(
    "changes",
    [
        {"train.sampling": "progressive"},
        {"train.sampling": "progressive", "objective.base": "balanced_softmax"},
        {**AWARE, "objective.terms.dro.start": 0.0},
    ],
)
def test_a_stopped_run_goes_on_with_the_same_stream(
    tiny_shards: str, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "DECIDE_EVERY", 3)
    cfg = tiny_run(**changes)
    run(cfg, tiny_shards, tmp_path / "whole")
    with pytest.raises(StopRequested, match=r"in epoch 3 of 3"):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(5))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def class_aware_steps(uri: str) -> dict[str, Any]:
    weighted = {"class_weights": "natural", "weight_norm": "batch_sum"}
    keys = {f"objective.base_options.cross_entropy.{name}": value for name, value in weighted.items()}
    cfg = tiny_run(**AWARE, **keys, objective__terms__dro__start=0.0, model__ghost_batch=4, train__optim__lr=0.002)
    return plain_steps(cfg.to_dict(), uri, 12)


def test_two_ranks_see_the_classes_that_one_sees(tiny_shards: str) -> None:
    one = class_aware_steps(tiny_shards)
    for two in run_ranks(class_aware_steps, 2, tiny_shards):
        for section in ("gradients", "state", "memories"):
            for name, value in one[section].items():
                torch.testing.assert_close(two[section][name], value, rtol=1e-9, atol=1e-9, msg=name)
        torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-9, atol=1e-9)


def test_natural_is_bitwise_what_no_key_gives(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(), tiny_shards, tmp_path / "base")
    run(tiny_run(train__sampling="natural"), tiny_shards, tmp_path / "natural")
    assert_equal_weights(tmp_path / "base", tmp_path / "natural")


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
    with pytest.raises(ConfigError, match=r"nothing is left to balance"):
        tiny_run(train__sampling="class_aware", objective__base="balanced_softmax")
    with pytest.raises(ConfigError, match=r"train.images_per_class=3 must divide batch_size=8"):
        tiny_run(train__sampling="class_aware", train__images_per_class=3)
    for sampling in ("natural", "square_root"):
        with pytest.raises(ConfigError, match=rf"train.sampling={sampling} does not go with .*class_weights=natural"):
            tiny_run(train__sampling=sampling, objective__base_options__cross_entropy__class_weights="natural")
    with pytest.raises(
        ConfigError, match=r"train.sampling must be one of natural, class_balanced, class_aware, square_root"
    ):
        tiny_run(train__sampling="balanced")
