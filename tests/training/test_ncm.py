"""The nearest class mean as an evaluation: its numbers are those of stage 2, choose a checkpoint, and know no ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.config.load import base_run
from ltcore.config.sweep import read_sweep
from ltcore.data.loading.factory import make_loader
from ltcore.errors import ConfigError
from ltcore.evaluation.catalog import NCM_METRICS
from ltcore.training import checkpoint as ckpt
from ltcore.training import ncm
from ltcore.training.build import build
from ltcore.training.evaluate import Evaluator
from tests.ddp import run_ranks
from tests.training.runs import Rank, run, stage2_run, tiny_run

SELECTED = {"train.select": "val/ncm_top1", "train.epochs": 4}


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]


def test_it_chooses_the_checkpoint_and_equals_stage_2(tiny_shards: str, tmp_path: Path) -> None:
    record = run(tiny_run(**SELECTED), tiny_shards, tmp_path / "run")
    values = [row["val/ncm_top1"] for row in rows(tmp_path / "run")]
    assert len(values) == 4 and record["best"]["epoch"] == 1 + values.index(max(values))
    for tag, tests in (("best", "test_best"), ("last", "test")):
        found = ckpt.find(tmp_path / "run" / "checkpoints", tag)
        assert found is not None
        second = run(stage2_run(found.path, "ncm"), tiny_shards, tmp_path / tag)
        for name in NCM_METRICS:
            assert record[tests]["test"][name] == second["test"]["test"][name.removeprefix("ncm_")], name
    assert record["last"]["val/ncm_top1"] == second["last"]["val/top1"]


def test_a_balanced_classifier_is_shown_beside_it(tiny_shards: str, tmp_path: Path) -> None:
    keys = {"train.ncm": True, "train.epochs": 1, "objective.terms.dro.start": 0.0}
    first = run(tiny_run(**keys), tiny_shards, tmp_path / "first")
    second = run(stage2_run(tmp_path / "first", "crt"), tiny_shards, tmp_path / "crt")
    for name in NCM_METRICS:
        assert second["test"]["test"][name] == first["test"]["test"][name], "the features are the same"
    assert second["last"]["val/ncm_top1"] == first["last"]["val/ncm_top1"]
    assert "val/ncm_top1" in second["best"] and second["config"]["train.ncm"] is True


def test_dro_is_tested_by_it_without_being_asked_and_other_runs_are_not(tiny_shards: str, tmp_path: Path) -> None:
    dro = run(tiny_run(objective__terms__dro__weight=0.5, train__epochs=1), tiny_shards, tmp_path / "dro")
    assert set(NCM_METRICS) <= set(dro["test"]["test"]) and "val/ncm_top1" not in dro["last"]
    plain = run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "plain")
    assert not set(NCM_METRICS) & set(plain["test"]["test"])
    asked = run(tiny_run(train__epochs=1, train__ncm=True), tiny_shards, tmp_path / "asked")
    assert set(NCM_METRICS) <= set(asked["test"]["test"])
    assert {f"val/{name}" for name in NCM_METRICS} <= set(asked["last"])
    for name in plain["test"]["test"]:
        assert asked["test"]["test"][name] == plain["test"]["test"][name], "what is measured beside it does not change"


def means_and_metrics(uri: str, experts: bool) -> dict[str, Any]:
    keys = {"objective.base": "sade", "model.num_experts": 3} if experts else {}
    cfg, ctx = tiny_run(**keys), Rank()
    loader = make_loader(cfg.data, uri, batch_size=8, seed=0, rank=ctx.rank, world=ctx.world)
    parts = build(cfg, loader, ctx)
    evaluator = Evaluator(
        net=parts.eval_net, loader=loader, device=ctx.device, batch_size=5, normalize=parts.augment.evaluate
    )
    heads = ncm.nearest_means(cfg, evaluator)
    metrics = ncm.ncm_metrics(evaluator, heads, "val")
    loader.close()
    return {"means": torch.stack([head.weight for head in heads]).detach(), "metrics": metrics}


@pytest.mark.parametrize("experts", [False, True], ids=["one", "experts"])
def test_two_ranks_find_what_one_finds(tiny_shards: str, experts: bool) -> None:
    one = means_and_metrics(tiny_shards, experts)
    assert one["means"].shape[0] == (3 if experts else 1)
    for two in run_ranks(means_and_metrics, 2, tiny_shards, experts):
        torch.testing.assert_close(two["means"], one["means"], rtol=1e-6, atol=1e-7)
        assert two["metrics"] == one["metrics"]


def test_a_sweep_that_ranks_by_it_computes_it() -> None:
    sweep = read_sweep("tune_lpa", {"sweep.metric": "val/ncm_top1"})
    assert base_run(sweep).train.ncm and not base_run(read_sweep("tune_lpa")).train.ncm


def test_stage_2_cannot_choose_by_what_it_never_changes() -> None:
    with pytest.raises(
        ConfigError, match=r"train.select=val/ncm_few does not go with stage2, whose features never change"
    ):
        stage2_run("/run", "crt", train__select="val/ncm_few")
