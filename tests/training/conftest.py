"""Finished runs that several tests start from, or compare theirs with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltcore.config.schema import RunConfig
from tests.training.runs import WholeRun, run, tiny_run


@pytest.fixture(scope="session")
def stage1(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of four epochs of cross-entropy on the tiny data set; do not change it."""
    folder = tmp_path_factory.mktemp("stage1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCORE_CACHE", str(folder / "cache"))
        run(tiny_run(train__epochs=4, data__uri=tiny_shards), tiny_shards, folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="session")
def whole_run(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """Directory of a run on the tiny data set that nothing stopped, trained when a configuration is first asked for; do not
    change it. Where a test has changed what such a run does, ``under`` names the change."""
    found: dict[str, Path] = {}

    def of(cfg: RunConfig, under: str = "") -> Path:
        key = json.dumps([cfg.to_dict(), under], sort_keys=True)
        if key not in found:
            found[key] = tmp_path_factory.mktemp("whole") / "run"
            run(cfg, tiny_shards, found[key])
        return found[key]

    return of
