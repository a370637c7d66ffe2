"""The benchmark of ``shards glt``: its peer is not handicapped."""

from __future__ import annotations

from multiprocessing import active_children
from pathlib import Path

import pytest

from ltcore.benchmarks import glt


@pytest.mark.slow
def test_the_processes_of_the_peer_are_there_before_it_is_timed(tmp_path: Path) -> None:
    folder = glt.generated(glt.SMALL_PX, 600)
    plan = glt._planned(folder)
    before = set(active_children())
    with glt.copiers(2, next(folder.rglob("*.jpg"))) as processes:
        started = set(active_children()) - before
        assert len(started) == 2
        assert glt._limit(plan, tmp_path / "out", processes) == plan.total
        assert set(active_children()) - before == started
    assert not (tmp_path / "out").exists()
