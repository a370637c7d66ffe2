"""``python -m ltcore`` in a folder of the user's, whose files are none of its modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltcore.cli.parsers import absolute
from ltcore.cli.prepare import prepare_data
from ltcore.data.config import DataConfig
from tests.paths import ROOT

HIDING = ("argparse", "json", "logging", "queue", "random", "yaml")
PLUGIN = """\
from dataclasses import dataclass
from ltcore import Base, plugins
@plugins.loss("mine", summary="a loss of this folder")
class Mine(Base):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        own_size: float = 1.0
        \"\"\"A number.\"\"\"
"""


def ltcore(
    cwd: Path, *words: str, path: str = str(ROOT), options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if path:
        environment["PYTHONPATH"] = path
    command = [sys.executable, *options, "-m", "ltcore", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in HIDING:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    (tmp_path / "my_parts.py").write_text(PLUGIN)
    return tmp_path


def test_files_there_hide_no_module(folder: Path) -> None:
    done = ltcore(folder, "methods")
    assert done.returncode == 0 and "focal" in done.stdout, done.stderr
    assert "a loss of this folder" not in done.stdout


def test_a_plugin_there_is_found_where_it_is_named_and_hides_nothing(folder: Path) -> None:
    done = ltcore(folder, "keys", "own_size", "--plugin", "my_parts")
    assert done.returncode == 0 and "objective.base_options.mine.own_size = 1.0" in done.stdout, done.stderr


def test_a_search_path_that_someone_set_stays(folder: Path) -> None:
    """Whoever puts the folder there wants it there; and Python's own option leaves nothing to take away."""
    assert "the wrong one" in ltcore(folder, "methods", path=f"{folder}{os.pathsep}{ROOT}").stderr
    assert ltcore(folder, "methods", options=("-P",)).returncode == 0


def test_a_checkout_that_is_not_installed_runs(tmp_path: Path) -> None:
    """The package is found there alone: where processes are started, they find it too."""
    code = "raise SystemExit('found: ' + __import__('sys').path[-1])"
    shutil.copytree(ROOT / "ltcore", tmp_path / "ltcore", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ltcore" / "cli" / "main.py").write_text(code)
    assert ltcore(tmp_path, path="").stderr == f"found: {tmp_path}\n"


def test_data_and_files_there_are_named_as_every_worker_finds_them(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of Ray Train change directory."""
    (tmp_path / "shards").symlink_to(tiny_shards)
    (tmp_path / "w.pth").touch()
    monkeypatch.chdir(tmp_path)
    assert prepare_data(DataConfig(uri="shards"), str(tmp_path), print) == str(tmp_path / "shards")
    assert absolute("model.weights", "w.pth") == str(tmp_path / "w.pth")
    assert absolute("model.weights", "none.pth") == "none.pth" and absolute("name", "w.pth") == "w.pth"
