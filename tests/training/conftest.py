"""A finished run that several test files start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import run, tiny_run


@pytest.fixture(scope="session")
def stage1(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of four epochs of cross-entropy on the tiny data set; do not change it."""
    folder = tmp_path_factory.mktemp("stage1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCORE_CACHE", str(folder / "cache"))
        run(tiny_run(train__epochs=4, data__uri=tiny_shards), tiny_shards, folder / "tiny")
    return folder / "tiny"
