"""Whole runs with the keys of fine-tuning: what they change, and that they continue exactly in the middle of an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ltcore.config.schema import RunConfig
from ltcore.errors import ConfigError
from ltcore.models import net
from ltcore.models.norm import running_stats
from ltcore.training import build as building
from ltcore.training import checkpoint as ckpt
from ltcore.training import descent
from ltcore.training import trainer as fit
from ltcore.training.hardware import Precision
from tests.ddp import run_ranks
from tests.training.runs import TERMS, Rank, StopAfter, assert_equal_runs, run, tiny_run, weights

RATES = {
    "train.optim.layer_decay": 0.6,
    "train.optim.backbone_lr_factor": 0.5,
    "train.optim.decay_norm_and_bias": False,
    "train.optim.schedule": "cosine",
    "train.optim.schedule_per_step": True,
    "train.optim.warmup": 0.2,
    "train.optim.clip_norm": 0.5,
}


def two_epochs(**changes: Any) -> RunConfig:
    return tiny_run(train__epochs=2, **changes)


def stop_within_the_second_epoch(cfg: RunConfig, uri: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(fit.StopRequested, match="in epoch 2"):
        patch.setattr(fit, "DECIDE_EVERY", 2)
        run(cfg, uri, run_dir, StopAfter(4))


def state(run_dir: Path) -> dict[str, Any]:
    found = ckpt.find(run_dir / "checkpoints")
    assert found is not None
    return found.train_state()


def differ(a: Path, b: Path) -> list[str]:
    other = weights(b)
    return [name for name, value in weights(a).items() if not torch.equal(value, other[name])]


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes in float16, whose scale begins so high that the first steps overflow."""
    monkeypatch.setattr(building, "choose_precision", lambda wish, device: Precision(torch.float16, "as on a GPU"))
    real = torch.amp.GradScaler
    monkeypatch.setattr(
        descent.torch.amp, "GradScaler", lambda device: real(device, init_scale=2.0**20, growth_interval=4)
    )


@pytest.mark.parametrize("key", RATES)
def test_every_key_of_the_rates_changes_the_weights(tiny_shards: str, tmp_path: Path, key: str) -> None:
    plain = {"train.optim.schedule": "cosine"} if key == "train.optim.schedule_per_step" else {}
    run(two_epochs(**plain), tiny_shards, tmp_path / "plain")
    run(two_epochs(**plain | {key: RATES[key]}), tiny_shards, tmp_path / "other")
    assert "backbone.trunk.conv1.weight" in differ(tmp_path / "plain", tmp_path / "other")


def test_rates_by_depth_and_step_continue_in_the_middle_of_an_epoch(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = two_epochs(**RATES)
    run(cfg, tiny_shards, tmp_path / "whole")
    stop_within_the_second_epoch(cfg, tiny_shards, tmp_path / "cut", monkeypatch)
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    groups = state(tmp_path / "whole")["optimizer"]["param_groups"]
    assert len({group["lr"] for group in groups}) == 5, "stem, three blocks, and what lies above"


def test_rates_by_step_are_logged_as_that_of_the_last_step(tiny_shards: str, tmp_path: Path) -> None:
    run(two_epochs(**RATES), tiny_shards, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    groups = state(tmp_path / "run")["optimizer"]["param_groups"]
    assert rows[1]["lr"] == max(group["lr"] for group in groups) < rows[0]["lr"]


PAIRS = {"model.bilateral": True, "objective.base": "bbn"}


@pytest.mark.parametrize("changes", [TERMS, PAIRS, {"objective.base": "lff"}], ids=["terms", "pairs", "twin"])
def test_recomputed_activations_change_nothing(tiny_shards: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    for name, recompute in (("kept", False), ("again", True)):
        cfg = two_epochs(**changes, train__grad_checkpointing=recompute)
        run(cfg, tiny_shards, tmp_path / name)
    assert_equal_runs(tmp_path / "kept", tmp_path / "again")


def test_float16_is_refused_on_a_cpu(tiny_shards: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.precision=fp16 is for GPUs"):
        run(two_epochs(train__precision="fp16"), tiny_shards, tmp_path / "run")


def test_steps_that_overflow_in_float16_are_left_out_and_counted(tiny_shards: str, tmp_path: Path, half: None) -> None:
    record = run(two_epochs(**TERMS, train__ema_decay=0.5), tiny_shards, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[0]["train/skipped_steps"] > 0 and record["status"] == "finished"
    assert all(torch.isfinite(torch.tensor(row["train/loss"])) for row in rows)
    assert state(tmp_path / "run")["scaler"]["scale"] < 2.0**20


@pytest.mark.slow
def test_a_step_that_is_left_out_leaves_no_statistics_behind(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: None
) -> None:
    """Those of the key encoder neither: a checkpoint with values that are not finite would be refused."""
    descend, left_out = descent.Descent.descend, []

    def watched(self: descent.Descent, *given: Any) -> Any:
        step: Any = self.module
        nets = (step.net, step.key.net)
        before = [value.clone() for net in nets for value in running_stats(net)]
        found = descend(self, *given)
        same = [
            torch.equal(*pair) for pair in zip(before, (v for net in nets for v in running_stats(net)), strict=True)
        ]
        assert all(same) if not found[2] else not any(same)
        assert len(before) > 10
        left_out.append(not found[2])
        return found

    monkeypatch.setattr(descent.Descent, "descend", watched)
    run(two_epochs(**TERMS), tiny_shards, tmp_path / "run")
    assert any(left_out) and not all(left_out)


@pytest.mark.slow
def test_float16_continues_in_the_middle_of_an_epoch(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: None
) -> None:
    cfg = two_epochs(train__accumulate=2, train__optim__clip_norm=1.0)
    run(cfg, tiny_shards, tmp_path / "whole")
    stop_within_the_second_epoch(cfg, tiny_shards, tmp_path / "cut", monkeypatch)
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    assert state(tmp_path / "whole")["scaler"] == state(tmp_path / "cut")["scaler"]


def test_without_float16_there_is_neither_scaler_nor_count(tiny_shards: str, tmp_path: Path) -> None:
    record = run(two_epochs(), tiny_shards, tmp_path / "run")
    assert state(tmp_path / "run")["scaler"] is None and "train/skipped_steps" not in record["last"]


def test_a_network_without_batch_norm_is_saved_and_goes_on(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers are."""
    monkeypatch.setattr(net, "norm2d", lambda group: lambda channels: nn.Identity())
    cfg = two_epochs(train__optim__lr=0.001)
    run(cfg, tiny_shards, tmp_path / "whole")
    stop_within_the_second_epoch(cfg, tiny_shards, tmp_path / "cut", monkeypatch)
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    assert not any("running_mean" in name for name in weights(tmp_path / "whole"))


# ---- ranks


def _on_two_ranks(tree: dict[str, Any], uri: str, folder: str) -> None:
    run(RunConfig.from_dict(tree), uri, Path(folder), Rank())


@pytest.mark.parametrize("recompute", [False, True])
def test_two_ranks_train_like_one(tiny_shards: str, tmp_path: Path, recompute: bool) -> None:
    cfg = two_epochs(**RATES, model__ghost_batch=4, train__optim__lr=0.01, train__grad_checkpointing=recompute)
    run(cfg, tiny_shards, tmp_path / "one")
    run_ranks(_on_two_ranks, 2, cfg.to_dict(), tiny_shards, str(tmp_path / "two"))
    two = weights(tmp_path / "two")
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)
