"""A finished run that was not tested is tested when that is asked for, and trains nothing again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import run, stage2_run, tiny_run

TRIAL: dict[str, Any] = {"kind": "trial", "test": False}


@pytest.mark.parametrize("stage", [1, 2])
def test_the_test_follows_later(stage: int, stage1: Path, tiny_shards: str, tmp_path: Path) -> None:
    cfg = tiny_run() if stage == 1 else stage2_run(stage1, "crt")
    trained = run(cfg, tiny_shards, tmp_path / "run", **TRIAL)
    assert (trained["status"], trained.get("test")) == ("finished", None)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    tested = run(cfg, tiny_shards, tmp_path / "run", **TRIAL | {"test": True})
    at_once = run(cfg, tiny_shards, tmp_path / "other", **TRIAL | {"test": True})
    assert tested["test"] == at_once["test"] and tested["test"]
    assert tested["per_class"] == at_once["per_class"]
    assert tested["last"]["val/top1"] == trained["last"]["val/top1"] and tested["best"].keys() == trained["best"].keys()
    assert (tested["status"], tested["epochs_done"]) == ("finished", trained["epochs_done"])
    if stage == 1:
        assert tested["last"] == trained["last"] and tested["seconds"] == trained["seconds"]
        assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() == rows, "no epoch was trained again"
    assert run(cfg, tiny_shards, tmp_path / "run", **TRIAL | {"test": True}) == tested, "and not once more"
