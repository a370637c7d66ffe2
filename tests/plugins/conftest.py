"""Plugins that one test installs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.state import SOURCES, forgotten_after, install


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with forgotten_after():
        yield


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example in a folder of installed packages, with its entry points."""
    site = install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site))
    return site


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example as a folder of sources, without entry points."""
    folder = tmp_path / "beside"
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(folder))
    return folder
