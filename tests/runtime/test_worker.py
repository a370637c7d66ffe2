"""The temporary files of Ray's workers lie where they are removed with Ray."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from ltcore.runtime import worker


@pytest.mark.parametrize("short", [True, False])
def test_temporary_files_lie_in_the_folder_of_rays_session(
    short: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / worker.TEMPORARY
    monkeypatch.setenv("TMPDIR", "/before")
    monkeypatch.setattr(worker, "MOST_CHARS", len(str(folder)) - (not short))
    node = SimpleNamespace(get_session_dir_path=lambda: str(tmp_path))
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    monkeypatch.setattr(tempfile, "tempdir", None)
    for _ in range(2):  # a process may work on several jobs
        worker.begin("", "")
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).parent == folder
    assert os.environ["TMPDIR"] == (str(folder) if short else "/before"), "a socket's name has a limit"
