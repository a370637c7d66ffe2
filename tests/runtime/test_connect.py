"""Starting a local Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONNECT = """
import ray  # as a program does that uses Ray itself
from ltcore.runtime.cluster import connect

connect()
print("environment of workers:", dict(ray.get_runtime_context().runtime_env))
ray.shutdown()
"""


@pytest.mark.ray
def test_uv_run_does_not_make_workers_rebuild_the_environment(tmp_path: Path) -> None:
    """Ray looks for an ancestor that was started as `uv run ...`. A shell stands in for it: uv may not be here."""
    program = tmp_path / "connect.py"
    program.write_text(CONNECT)
    (tmp_path / "run").write_text('"$@"\nexit $?\n')
    done = subprocess.run(
        ["uv", "run", sys.executable, str(program)], executable="/bin/sh", cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "environment of workers: {}" in done.stdout
