"""A data set of one small shard, on disk and as if in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from ltcore import stores
from tests.data.small import write_small


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A data set of one shard, small enough to try something at each of its bytes; a test may damage it."""
    write_small(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def remote(small: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same data as if they were in an object store."""
    bucket = pafs.SubTreeFileSystem(str(small.parent), pafs.LocalFileSystem())
    monkeypatch.setattr(stores, "_remote_fs", lambda *_: bucket)
    return f"s3://{small.name}"
