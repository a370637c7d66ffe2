"""Whole runs on two gloo ranks: what they save, and how they go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.config.schema import RunConfig
from ltcore.errors import ConfigError
from ltcore.training import checkpoint as ckpt
from ltcore.training import trainer as fit
from tests.ddp import run_ranks
from tests.training.runs import TERMS, Rank, run, tiny_run


class StopAfter(Rank):
    """Asks to stop after a number of questions."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self._left = questions

    def stop_requested(self) -> bool:
        self._left -= 1
        return self._left < 0


def begin(cfg: RunConfig, uri: str, run_dir: Path) -> None:
    """Up to the middle of the second epoch."""
    often, fit.DECIDE_EVERY = fit.DECIDE_EVERY, 2
    try:
        with pytest.raises(fit.StopRequested):
            run(cfg, uri, run_dir, StopAfter(4))
    finally:
        fit.DECIDE_EVERY = often


def _on_two_ranks(tree: dict[str, Any], uri: str, folder: str) -> None:
    cfg, runs = RunConfig.from_dict(tree), Path(folder)
    run(cfg, uri, runs / "whole", Rank())
    begin(cfg, uri, runs / "cut")
    run(cfg, uri, runs / "cut", Rank())
    run(cfg, uri, runs / "grown", Rank())
    begin(cfg, uri, runs / "shrunk")


def model(run_dir: Path) -> dict[str, torch.Tensor]:
    found = ckpt.find(run_dir / "checkpoints")
    assert found is not None
    return found.model_state()


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def runs(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """'whole' and 'cut' of two ranks, 'alone' of one, 'grown' from one to two and 'shrunk' from two to one; all but the first
    of each kind were stopped in the middle of the second epoch. Evaluated by a moving average of the weights."""
    folder = tmp_path_factory.mktemp("runs")
    cfg = tiny_run(**TERMS, train__ema_decay=0.5, train__optim__lr=0.002, model__ghost_batch=4)
    run(cfg, tiny_shards, folder / "alone")
    begin(cfg, tiny_shards, folder / "grown")
    run_ranks(_on_two_ranks, 2, cfg.to_dict(), tiny_shards, str(folder))
    run(cfg, tiny_shards, folder / "shrunk")
    return folder


def test_a_run_of_two_ranks_continues_in_the_middle_of_an_epoch_as_if_nothing_had_happened(runs: Path) -> None:
    whole, cut = model(runs / "whole"), model(runs / "cut")
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    for one, two in zip(rows(runs / "whole"), rows(runs / "cut"), strict=True):
        assert {k: v for k, v in one.items() if k.startswith("val/")} == {
            k: v for k, v in two.items() if k.startswith("val/")
        }
        losses = {k: v for k, v in one.items() if k.startswith("train/")}
        assert losses == pytest.approx({k: two[k] for k in losses}, rel=1e-12)


@pytest.mark.parametrize("other", ["whole", "grown", "shrunk"])
def test_the_number_of_ranks_changes_rounding_alone(runs: Path, other: str) -> None:
    """Weights, the statistics that evaluation uses, and what is logged."""
    alone, found = model(runs / "alone"), model(runs / other)
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)
    for one, two in zip(rows(runs / "alone"), rows(runs / other), strict=True):
        losses = {k: v for k, v in one.items() if k.startswith("train/")}
        assert losses == pytest.approx({k: two[k] for k in losses}, rel=1e-3)


def _refused(tree: dict[str, Any], uri: str, folder: str) -> None:
    with pytest.raises(ConfigError, match="accumulate=8 does not divide the 4 images that each of 2 workers takes"):
        run(RunConfig.from_dict(tree), uri, Path(folder), Rank())


def test_accumulation_that_does_not_divide_the_share_of_a_worker_is_refused(tiny_shards: str, tmp_path: Path) -> None:
    run_ranks(_refused, 2, tiny_run(train__accumulate=8).to_dict(), tiny_shards, str(tmp_path))
