"""Runs that start from the checkpoint and log of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ltcore.retry import retrying
from ltcore.tracking.jsonl_sink import read_metrics, write_metrics
from ltcore.training import checkpoint as ckpt


def fork(source: Path, run_dir: Path, config: dict[str, Any]) -> None:
    """Copies the newest checkpoint of the run in ``source`` into ``run_dir``, and what was logged up to there.

    The copy gets the flat ``config`` as its configuration. This is correct only where both configurations give the same
    run up to that point, for which the caller is responsible. Without a checkpoint, because the disk was full or
    somebody removed it, nothing is copied: the run begins at its beginning, and comes to the same bits.
    """
    found = ckpt.find(source / "checkpoints")
    if found is None:
        return
    folder = run_dir / "checkpoints"
    aside = folder / f".fork-{found.path.name}"

    def copy() -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for file in found.path.iterdir():
            shutil.copyfile(file, aside / file.name)
        (aside / "meta.json").write_text(json.dumps({**found.meta, "config": config}, indent=1))

    retrying(str(run_dir), copy)
    rows = [row for row in read_metrics(source / "metrics.jsonl") if row.get("epoch", 0) <= found.meta["epoch"]]
    write_metrics(run_dir / "metrics.jsonl", rows)
    aside.rename(folder / found.path.name)  # last: with a checkpoint, no start copies again
