"""A sweep whose folder somebody removes while its trials train."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from ltcore.errors import RemovedError
from tests.tuning.sweeps import tune


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_removed_sweep_ends_and_brings_nothing_back(
    color_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "storage"

    def remove() -> None:
        while not (rows := [file for file in place.glob("*/trials/*/metrics.jsonl") if file.stat().st_size]):
            time.sleep(0.02)
        while (sweep := rows[0].parents[2]).exists():
            shutil.rmtree(sweep, ignore_errors=True)  # a file that is written meanwhile is in the way once

    somebody = threading.Thread(target=remove)
    somebody.start()
    with pytest.raises(RemovedError, match=r"small, or \.lease in it, was removed while this process worked there"):
        tune(
            color_shards,
            place,
            *("--cpus-per-worker", "1"),
            sweep__space__train__optim__lr="grid:0.05,0.04,0.03,0.02",
            sweep__retrain_seeds="0",
            train__epochs="60",
        )
    somebody.join()
    assert not list(place.rglob("*.json*"))
