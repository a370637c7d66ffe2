"""A group of workers that grows and shrinks while it trains sees the images that one worker alone sees, in every epoch."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig
from ltcore.storage import read_jsonl
from tests.paths import ROOT
from tests.runtime.elastic_nodes import settings
from tests.training.runs import run

pytestmark = pytest.mark.ray


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_one_two_one_workers_see_what_one_sees(tiny_shards: str, tmp_path: Path) -> None:
    elastic = tmp_path / "elastic"
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.elastic_nodes", tiny_shards, str(elastic)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    record = RunRecord.read(elastic)
    assert record is not None and record.starts is not None
    grown, killed, _ = record.starts
    assert grown.notice == "resize" and killed.images_seen == grown.left_at, "growing repeats no image"
    epochs = read_jsonl(elastic / "metrics.jsonl")
    assert [line["epoch"] for line in epochs] == list(range(1, len(epochs) + 1))

    alone = RunConfig.from_dict(settings()).replace({"train.epochs": len(epochs)})
    run(alone, tiny_shards, tmp_path / "alone")
    expected = [line["train/loss"] for line in read_jsonl(tmp_path / "alone" / "metrics.jsonl")]
    assert [line["train/loss"] for line in epochs] == pytest.approx(expected, rel=1e-5)
    by_chance = [abs(a - b) / a for a, b in itertools.pairwise(expected)]
    assert sorted(by_chance)[len(by_chance) // 10] > 1e-4, "other images would give another loss"
