"""IFL from images to metrics: with the augmentations, losses and heads that its paper plugs it into, and at equal budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ltcore.runtime.launch import dry_run_text
from tests.training.runs import run, tiny_run

IFL = {"objective.terms.ifl.start": 0.0, "objective.terms.ifl.milestones": "0.5"}
COSINE = {"model.head": "cosine", "model.cosine_scale": 30.0}
METHODS: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "cross_entropy-mixup": {"augment.mixup_alpha": 1.0},
    "balanced_softmax-randaugment": {"objective.base": "balanced_softmax", "augment.view1": "randaugment"},
    "ldam-cosine": {"objective.base": "ldam", "objective.terms.ifl.center": "cosine"} | COSINE,
    "ride-mixup": {"objective.base": "ride", "model.num_experts": 3, "augment.mixup_alpha": 1.0} | COSINE,
    "sade-triplet": {"objective.base": "sade", "model.num_experts": 3, "objective.terms.ifl.center": "triplet"},
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
