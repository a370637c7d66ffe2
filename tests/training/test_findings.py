"""What a run logs of attributes that it was never shown."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import torch

from ltcore.reporting.records import read_run
from ltcore.training.context import StopRequested
from tests.conftest import TINY_COUNTS, tiny_samples
from tests.shards import write_dataset
from tests.training.runs import run, tiny_run, weights

AUC = "ifl/attribute_auc"
IFL = {"objective.terms.ifl.start": 0.5, "objective.terms.ifl.milestones": "0.75", "train.epochs": 4}


def aucs(run_dir: Path) -> dict[int, float]:
    return {row["epoch"]: row[AUC] for row in read_run(run_dir).rows if AUC in row}


def test_the_auc_of_the_environments_is_logged_and_changes_no_weight(tiny_shards: str, tmp_path: Path) -> None:
    """From the epoch on that builds environments; the same after a stop; nothing where attributes are unknown."""
    cfg = tiny_run().replace(IFL)
    record = run(cfg, tiny_shards, tmp_path / "known")
    logged = aucs(tmp_path / "known")
    assert list(logged) == [2, 3, 4] and all(0 <= value <= 1 for value in logged.values())
    assert logged[2] != logged[3] == logged[4] == record["last"][AUC]  # a milestone rebuilds them
    for until in (2, 0):
        with contextlib.suppress(StopRequested):
            run(cfg, tiny_shards, tmp_path / "stopped", until=until)
    assert aucs(tmp_path / "stopped") == logged

    unknown = tmp_path / "shards"
    write_dataset(
        unknown,
        name="tiny",
        classes=["ant", "bee", "cat", "dog"],
        splits={split: (replace(sample, attribute=-1) for sample in tiny_samples(split)) for split in TINY_COUNTS},
        image_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        shot_rule="rank",
        shard_size=10,
    )
    run(cfg, str(unknown), tmp_path / "unknown")
    assert not aucs(tmp_path / "unknown")
    plain = weights(tmp_path / "unknown")
    assert all(torch.equal(value, plain[name]) for name, value in weights(tmp_path / "known").items())
