"""SIGKILL at random moments, also while a checkpoint is written: the same command ends with the same bits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.training.kill_runs import CONFIG
from tests.training.runs import assert_equal_runs, run


@pytest.mark.slow
def test_a_killed_run_ends_where_the_undisturbed_one_does(tiny_shards: str, tmp_path: Path) -> None:
    run(CONFIG, tiny_shards, tmp_path / "whole")
    command = [sys.executable, "-m", "tests.training.kill_runs", tiny_shards, str(tmp_path / "killed"), "7", "4"]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    ends = re.findall(r"exit (-?\d+) at step (\d+)", done.stdout)
    assert [code for code, _ in ends] == ["-9"] * 4 + ["0"], done.stdout
    reached = [int(step) for _, step in ends]
    assert 0 < reached[0] <= reached[-2] < reached[-1] == 30
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
