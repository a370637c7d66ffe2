"""Mixed images from shards to weights: repeatable, resumable, the same from every loader, and nothing where they are off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.training import trainer as fit
from ltcore.training.context import StopRequested
from tests.training.runs import StopAfter, assert_equal_runs, assert_equal_weights, run, tiny_run, weights

MIXED: dict[str, dict[str, Any]] = {
    "cutmix": {"augment.cutmix_alpha": 1.0},
    "remix": {"augment.mixup_alpha": 1.0, "augment.remix_kappa": 2.0},
    "both": {"augment.mixup_alpha": 0.4, "augment.cutmix_alpha": 1.0, "augment.mix_probability": 0.7},
}


@pytest.mark.parametrize("name", MIXED)
def test_a_stopped_run_mixes_the_same_pairs_again(
    tiny_shards: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "DECIDE_EVERY", 3)
    cfg = tiny_run(**MIXED[name], train__sampling="square_root")
    run(cfg, tiny_shards, tmp_path / "whole")
    with pytest.raises(StopRequested, match="in epoch 2 of 3"):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(2))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_loaders_and_accumulation_give_the_same_images(tiny_shards: str, tmp_path: Path) -> None:
    for loader in ("cache", "threads"):
        run(tiny_run(**MIXED["both"], data__loader=loader, train__epochs=2), tiny_shards, tmp_path / loader)
    assert_equal_runs(tmp_path / "cache", tmp_path / "threads")


def test_without_an_alpha_nothing_is_mixed_to_the_bit(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(), tiny_shards, tmp_path / "base")
    off = {"augment.cutmix_alpha": 0.0, "augment.mixup_alpha": 0.0, "augment.mix_probability": 0.5}
    run(tiny_run(**off), tiny_shards, tmp_path / "off")
    assert_equal_weights(tmp_path / "base", tmp_path / "off")


def test_remix_changes_labels_by_the_sizes_of_the_training_classes(tiny_shards: str, tmp_path: Path) -> None:
    """No class has 10 times the images of another, so that nothing is relabeled; some have twice as many."""
    mixup = {"augment.mixup_alpha": 1.0, "train.epochs": 2}
    for name, kappa in (("mixup", None), ("far", 10.0), ("near", 2.0)):
        run(tiny_run(**mixup, **{"augment.remix_kappa": kappa}), tiny_shards, tmp_path / name)
    assert_equal_runs(tmp_path / "mixup", tmp_path / "far")
    plain, remixed = weights(tmp_path / "mixup"), weights(tmp_path / "near")
    assert any(not torch.equal(value, remixed[name]) for name, value in plain.items())
