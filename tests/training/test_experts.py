"""Bases for several experts, from images to evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import ltcore
from tests.training.runs import TERMS, run, tiny_run

BASES = {
    "ride": {"objective.base": "ride", "model.num_experts": 2, "model.head": "cosine", "model.cosine_scale": 30.0},
    "sade": {"objective.base": "sade", "model.num_experts": 3},
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("terms", [{}, TERMS], ids=["base", "all-terms"])
def test_a_run_trains_evaluates_and_predicts(
    tiny_shards: str, tmp_path: Path, base: str, terms: dict[str, Any]
) -> None:
    record = run(tiny_run(**BASES[base], **terms, train__epochs=2), tiny_shards, tmp_path / "run")
    assert record["status"] == "finished"
    assert math.isfinite(record["last"]["train/loss"])
    assert 0 <= record["test"]["test"]["top1"] <= 1
    predictor = ltcore.load(tmp_path / "run")  # judged by the mean of the experts' logits
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert predictor(images).sum(1).tolist() == pytest.approx([1.0] * 3)
