"""Small sweeps, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ltcore.cli import parsers as cli
from ltcore.cli import tune as launch_sweep
from ltcore.cli.args import DEMO_RECIPE

SPACE = {
    "sweep.recipe": DEMO_RECIPE,  # colors are its task too
    "sweep.space.objective.terms.lpa.weight": "null",
    "sweep.space.objective.terms.dro.radius": "null",
    "sweep.space.objective.terms.ifl.num_envs": "null",
    "sweep.space.train.optim.lr": "grid:0.05,1e-9",
    "sweep.search": "grid",
    "sweep.reduction_factor": "2",
    "sweep.budget_s": "null",
}
RUN = {
    "train.epochs": "8",
    "train.eval_every": "1",
    "train.batch_size": "8",
    "train.threads": "1",  # two would wait for each other whenever another test has one of the cores
    "train.optim.warmup": "0",
    "train.checkpoint_every_s": "1",
    "model.ghost_batch": "4",
}


def arguments(uri: str, storage: Path, *flags: str, **changes: str) -> list[str]:
    words = {**SPACE, **RUN, **{k.replace("__", "."): v for k, v in changes.items()}}
    return [
        *(f"{k}={v}" for k, v in words.items()),
        "--data",
        uri,
        "--storage",
        str(storage),
        "--name",
        "small",
        *flags,
    ]


def tune(uri: str, storage: Path, *flags: str, **changes: str) -> dict[str, Any]:
    """Runs the sweep. Returns the content of sweep.json."""
    record = launch_sweep.tune(cli.read_tune("test", arguments(uri, storage, *flags, **changes)))
    assert record is not None
    return record.to_json()


def runs(storage: Path, place: str) -> dict[str, dict[str, Any]]:
    found = sorted((storage / "small" / place).glob("*/run.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}
