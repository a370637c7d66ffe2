"""IFL from images to metrics: with the augmentations, losses and heads that its paper plugs it into, and at equal budgets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore import dist
from ltcore.batch import Batch
from ltcore.data.loading.loader import Loader
from ltcore.data.loading.sampler import drawn_copies
from ltcore.training import copies
from ltcore.training import trainer as fit
from ltcore.training.context import StopRequested
from ltcore.training.cost import dry_run_text
from tests.training.runs import StopAfter, assert_equal_runs, run, tiny_run

IFL = {"objective.terms.ifl.start": 0.0, "objective.terms.ifl.milestones": "0.5"}
COSINE = {"model.head": "cosine", "model.cosine_scale": 30.0}
METHODS: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "cross_entropy-mixup": {"augment.mixup_alpha": 1.0},
    "balanced_softmax-randaugment": {"objective.base": "balanced_softmax", "augment.view1": "randaugment"},
    "ldam-cosine": {"objective.base": "ldam", "objective.terms.ifl.center": "cosine"} | COSINE,
    "ride-mixup": {"objective.base": "ride", "model.num_experts": 3, "augment.mixup_alpha": 1.0} | COSINE,
    "sade-triplet": {"objective.base": "sade", "model.num_experts": 3, "objective.terms.ifl.center": "triplet"},
    "cross_entropy-cutmix-remix": {"augment.cutmix_alpha": 1.0, "augment.remix_kappa": 3.0},
    "cross_entropy-repeat-mixup": {"objective.terms.ifl.env_mode": "repeat", "augment.mixup_alpha": 1.0},
    "sade-mixup": {"objective.base": "sade", "model.num_experts": 3, "augment.mixup_alpha": 1.0},
}


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_with_what_the_paper_plugs_it_into(tiny_shards: str, tmp_path: Path, method: str) -> None:
    cfg = tiny_run(**{"train__epochs": 2, **IFL, **METHODS[method]})
    record = run(cfg, tiny_shards, tmp_path / "run")
    assert record["status"] == "finished"
    assert record["last"]["train/ifl"] > 0, "the pull to the centers of the first epoch"


def test_every_number_of_environments_sees_the_same_images(tiny_shards: str, tmp_path: Path) -> None:
    said = set()
    for num_envs in (1, 2, 3, 4):
        cfg = tiny_run(**{"train__epochs": 2, **IFL, "objective.terms.ifl.num_envs": num_envs})
        record = run(cfg, tiny_shards, tmp_path / str(num_envs))
        rows = [json.loads(line) for line in (tmp_path / str(num_envs) / "metrics.jsonl").open()]
        assert [(row["step"], row["images_seen"]) for row in rows] == [(5, 40), (10, 80)]
        assert record["images_seen"] == 80
        text = dry_run_text(cfg, tiny_shards)
        assert f"num_envs={num_envs}) weight these images and repeat none" in text and " 80 images in all." in text
        said.add(text.replace(f"num_envs={num_envs}", ""))
    assert len(said) == 1
    assert "nvironment" not in dry_run_text(tiny_run(), tiny_shards)


REPEAT = {"train__epochs": 4, **IFL, "objective.terms.ifl.env_mode": "repeat", "model.ghost_batch": 4}


def test_repeated_samples_fill_epochs_of_the_same_length(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def note(*arguments: Any) -> Any:
        drawn.append(drawn_copies(*arguments))
        return drawn[-1]

    monkeypatch.setattr(copies, "drawn_copies", note)
    record = run(tiny_run(**REPEAT), tiny_shards, tmp_path / "run")
    assert record["images_seen"] == 4 * 40
    assert [copies_N.sum() for copies_N in drawn] == [46] * 4
    assert (drawn[0] == 1).all(), "nothing was scored yet"
    assert all(copies_N.max() > 1 and copies_N.min() == 0 for copies_N in drawn[1:])
    assert "repeat some of these images and leave out others" in dry_run_text(tiny_run(**REPEAT), tiny_shards)


def test_a_stopped_run_draws_the_same_copies_again(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "DECIDE_EVERY", 3)
    cfg = tiny_run(**REPEAT)
    run(cfg, tiny_shards, tmp_path / "whole")
    with pytest.raises(StopRequested, match="epoch 2 of 4"):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(2))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_all_ranks_take_the_copies_that_the_first_one_drew(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums on GPUs may differ in their last bit from rank to rank, and a plan is one for all."""
    given, rows, train_batches = torch.arange(46) % 2 * 2, [], Loader.train_batches

    def broadcast_(tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        return tensor.copy_(given) if tensor.shape == given.shape and source == 0 else tensor

    def noted(loader: Loader, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        batches = list(train_batches(loader, epoch, start_step))
        rows.append(torch.cat([batch.index_B for batch in batches]))
        return iter(batches)

    monkeypatch.setattr(dist, "broadcast_", broadcast_)
    monkeypatch.setattr(Loader, "train_batches", noted)
    run(tiny_run(**REPEAT), tiny_shards, tmp_path / "run")
    assert len(rows) == 4
    for rows_of_epoch in rows:
        times_N = rows_of_epoch.bincount(minlength=46)
        assert times_N.sum() == 40 and (times_N <= given).all(), "all but the six that fill no batch"
