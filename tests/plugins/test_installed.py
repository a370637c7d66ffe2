"""The example as a package that was built and installed: what its own metadata says, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.plugins.state import EXAMPLE


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages, built without a network by the backend that the example names."""
    folder = tmp_path_factory.mktemp("package")
    source, site = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ("--offline", "--no-cache", "--no-deps", "--no-build-isolation", "--no-compile-bytecode")
    words = ("uv", "pip", "install", "--python", sys.executable, "--target", str(site), *offline, str(source))
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return site


def ltcore(site: Path, *words: str) -> str:
    path = f"{ROOT}{os.pathsep}{site}"
    command = [sys.executable, "-m", "ltcore", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_package_is_found_and_trains(site: Path, tiny_shards: str, tmp_path: Path) -> None:
    """Two steps with its loss; the run says which version that was."""
    (points,) = site.glob("*.dist-info/entry_points.txt")
    assert points.parent.name == "example_parts-0.3.dist-info"
    listed = ltcore(site, "methods")
    assert "\n  tempered " in listed and "\n  tiny_net " in listed and "\n  feature_norm " in listed
    assert "objective.base_options.tempered.temperature = " in ltcore(site, "keys", "tempered")
    keys = ["objective.base=tempered", "model.name=tiny_net", "train.epochs=1", "train.batch_size=20", "data.lanes=4"]
    where = ["--data", tiny_shards, "--storage", str(tmp_path), "--name", "mine", "--engine", "inline"]
    ltcore(site, "train", "cifar100_lt_ce", *where, *keys, "tracking.wandb=false", "train.precision=fp32")
    record = json.loads((tmp_path / "mine" / "run.json").read_text())
    assert record["status"] == "finished" and record["last"]["step"] == 2
    assert record["config"]["objective.base"] == "tempered" and record["config"]["model.name"] == "tiny_net"
    of_folder = r"==0\.3\+sha256:[0-9a-f]{12}"  # a version that may be installed anew, so that its files count
    assert re.fullmatch(
        rf"example_parts\.losses{of_folder},example_parts\.networks{of_folder}", record["config"]["plugins"]
    )
