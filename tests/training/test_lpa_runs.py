"""LPA's options from images to predictions: every reading trains, is saved and predicts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import ltcore
from ltcore.errors import ConfigError
from ltcore.training import checkpoint as ckpt
from tests.training.runs import run, tiny_run

LPA = {
    "objective.terms.lpa.start": 0.0,
    "objective.terms.lpa.num_attributes": 4,
    "objective.terms.lpa.queue_size": 16,
    "objective.terms.lpa.neighbors": 2,
    "objective.terms.lpa.threshold": -0.9,
}
READINGS: dict[str, dict[str, Any]] = {
    "stages-and-scales": {"layers": "stage2,final", "scales": "1,2", "score": "soft"},
    "stage1-online": {"layers": "stage1", "online_rate": 0.5, "refresh_fraction": 0.0},
    "own-embedding": {"embedding": "own", "positives": "sample", "similarity": "jaccard"},
    "pooled-whitened": {"embedding": "pooled", "metric": "whitened", "score": "presence"},
    "spared-by-paco": {"spare_neighbors": True},
    "one-view": {"views": 1, "embedding": "query"},
}
BASES: dict[str, dict[str, Any]] = {
    "spared-by-paco": {"objective.base": "paco", "objective.base_options.paco.queue_size": 16},
    "stages-and-scales": {"objective.base": "sade", "model.num_experts": 3},
}
IMAGES = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("reading", READINGS)
def test_it_trains_and_predicts(tiny_shards: str, tmp_path: Path, reading: str) -> None:
    options = {f"objective.terms.lpa.{key}": value for key, value in READINGS[reading].items()}
    record = run(tiny_run(train__epochs=2, **LPA, **options, **BASES.get(reading, {})), tiny_shards, tmp_path / "run")
    assert record["status"] == "finished"
    assert record["last"]["train/lpa"] > 0 and math.isfinite(record["last"]["train/loss"])
    assert ltcore.load(tmp_path / "run")(IMAGES).sum(1).tolist() == pytest.approx([1.0] * 3)
    names = ckpt.read(tmp_path / "run").model_state()
    assert any(name.startswith("own_projection.") for name in names) == (reading == "own-embedding")
    queries = reading in ("spared-by-paco", "one-view")
    assert any(name.startswith("projection.") for name in names) == queries


def test_a_layer_that_the_network_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective.terms.lpa.layers=stage3 does not go with model.name=resnet8"):
        tiny_run(**LPA, objective__terms__lpa__layers="stage3")
