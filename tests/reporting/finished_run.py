"""A finished run of a packaged recipe, as the results table reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ltcore.config.load import load_run
from tests.records import DATA, ENDED, run_record

RECIPE = "cifar100_lt_balanced_softmax"


HERE = {"data.uri": "/images.zip", "data.imbalance_factor": "100", "train.threads": "1", "tracking.wandb": "false"}


def write(folder: Path, top1: float, best: float, **changes: Any) -> Path:
    overrides = {
        key.replace("__", "."): value for key, value in changes.items() if key not in ("status", "hash", "tested")
    }
    cfg = load_run(RECIPE, {**HERE, "name": folder.name, "train.epochs": "30", **overrides})
    metrics = {"balanced_accuracy": top1, "top1": top1, "many": top1 + 0.2, "medium": top1, "few": None}
    run_record(
        status=changes.get("status", "finished"),
        seed=cfg.seed,
        config=cfg.to_flat(),
        epochs_done=cfg.train.epochs,
        seconds=3600 + 120 * cfg.seed,
        finished_at=ENDED,
        data=replace(DATA, name="images", hash=changes.get("hash", "a")),
        test={"test": metrics} if changes.get("tested", True) else {},
        test_best={"test": {**metrics, "balanced_accuracy": best, "top1": best}},
    ).write(folder)
    return folder
