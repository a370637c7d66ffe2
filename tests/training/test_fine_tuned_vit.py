"""LIFT on a small transformer of timm, from a file of weights: all of it together, under our terms, cut and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.config.schema import RunConfig
from ltcore.errors import CheckpointError
from ltcore.training import checkpoint as ckpt
from ltcore.training.context import StopRequested
from ltcore.training.export import export
from ltcore.training.predict import evaluate, load
from tests.training.runs import TERMS, StopAfter, assert_equal_runs, run, tiny_run

timm = pytest.importorskip("timm")
NAME = "test_vit"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file as timm publishes them, of numbers that are not what a seed of ours draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net = timm.create_model(NAME)
    file = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(net.state_dict(), file)
    return str(file)


def lift(weights: str, **changes: Any) -> RunConfig:
    """As ``cifar100_lift``, at 32 px."""
    return tiny_run(
        model__name=f"timm:{NAME}",
        model__weights=weights,
        model__tune="adaptformer",
        model__adaptformer__bottleneck=4,
        model__adaptformer__norm="own",
        model__head="cosine",
        model__cosine_scale=25.0,
        model__head_init="class_means",
        objective__base="logit_adjust",
        augment__view1="rrc_flip",
        data__image_size=32,
        **changes,
    )


@pytest.mark.parametrize("terms", [{}, TERMS], ids=["plain", "terms"])
def test_a_cut_run_ends_as_the_whole_one(tiny_shards: str, tmp_path: Path, weights: str, terms: dict[str, Any]) -> None:
    cfg = lift(weights, **terms, train__grad_checkpointing=True, train__optim__layer_decay=0.8)
    run(cfg, tiny_shards, tmp_path / "whole")
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(1))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_adapters_of_another_norm_are_not_completed_by_drawn_ones(
    tiny_shards: str, tmp_path: Path, weights: str
) -> None:
    cfg = lift(weights, train__epochs=1)
    run(cfg.replace({"model.adaptformer.norm": "block"}), tiny_shards, tmp_path / "block")
    with pytest.raises(CheckpointError, match=r"mlp\.adapter\.norm\.bias"):
        run(
            cfg.replace({"model.weights": None, "train.init_from": str(tmp_path / "block")}),
            tiny_shards,
            tmp_path / "own",
        )


@pytest.mark.slow
def test_it_is_evaluated_by_five_crops_and_exported(tiny_shards: str, tmp_path: Path, weights: str) -> None:
    record = run(lift(weights), tiny_shards, tmp_path / "run")
    assert len(record["weights_sha256"]) == 64
    assert 0 < record["trained_parameters"] < record["parameters"] / 10
    found = ckpt.find(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert (found.path / "model.pt").stat().st_size < Path(weights).stat().st_size / 5
    predictor = load(tmp_path / "run")
    plain = evaluate(predictor, tiny_shards, ["test"], [])
    five = evaluate(load(tmp_path / "run", tta="five_crop"), tiny_shards, ["test"], [])
    assert (plain["tta"], five["tta"]) == ("none", "five_crop") and plain["splits"] != five["splits"]
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert export(predictor, str(tmp_path / "net.pt2"), images) < 1e-4
    meta = json.loads((found.path / "meta.json").read_text())
    assert len(meta["base"]) == 64, "what the checkpoint leaves out"
