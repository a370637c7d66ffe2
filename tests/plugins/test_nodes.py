"""Plugins on other nodes: sent along or expected, and compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltcore.plugins import loading
from ltcore.plugins.source import SEARCH_PATH
from ltcore.runtime.doctor import doctor, probe
from ltcore.runtime.plugin_modules import sent_along, share_search_path
from tests.paths import ROOT
from tests.plugins.state import SOURCES


def test_sources_are_sent_along_and_distributions_expected(beside: Path) -> None:
    assert sent_along() == {}
    loading.use(["example_parts.losses", "example_parts.terms"])
    assert sent_along() == {"py_modules": [str(beside / "example_parts")]}


def test_helpers_are_sent_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(SOURCES, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "own_helper.py").write_text("x = 1\n")
    with (tmp_path / "src" / "example_parts" / "losses.py").open("a") as file:
        file.write("\nimport own_helper\n")
    for folder in ("src", "lib"):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    loading.use(["example_parts.losses"])
    assert sent_along() == {
        "py_modules": [str(tmp_path / "src" / "example_parts"), str(tmp_path / "lib" / "own_helper.py")]
    }
    monkeypatch.setenv(SEARCH_PATH, "")
    share_search_path()
    assert os.environ[SEARCH_PATH].split(os.pathsep) == [str(tmp_path / "src"), str(tmp_path / "lib")]


def test_distributions_are_not_sent(installed: Path) -> None:
    assert len(loading.known()) == 9
    assert sent_along() == {}


def test_processes_of_one_machine_find_what_this_one_finds(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After everything else on their path: a module of the same name in that folder hides none of Python's."""
    monkeypatch.setenv(SEARCH_PATH, "")
    share_search_path()
    assert os.environ[SEARCH_PATH] == ""
    loading.use(["example_parts.losses"])
    share_search_path()
    share_search_path()
    assert os.environ[SEARCH_PATH] == str(beside)
    (beside / "queue.py").write_text("raise SystemExit('the wrong one')")
    code = "from ltcore.plugins.loading import use; print(use(['example_parts.losses'])); import queue, sys; print(sys.path[-1])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["('example_parts.losses',)", str(beside)]


def test_the_doctor_compares_versions_of_plugins(installed: Path, tmp_path: Path) -> None:
    assert set(doctor._plugins()) == {plugin.name for plugin in loading.known()}
    lead = probe.examine(str(tmp_path), "", "x", shared=False, plugins=("example_parts.losses",))
    assert lead["versions"]["plugin example_parts.losses"] == "0.3"
    node = {**lead, "versions": {**lead["versions"], "plugin example_parts.losses": "missing"}}
    (line,) = (c for c in doctor.checks(node, "node 2", lead, {}) if c.what == "plugin example_parts.losses")
    assert line.state == "red" and line.found == "missing" and "0.3 on the node that drives" in line.fix


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_in_a_process_of_a_local_ray_trains_a_loss_of_a_plugin(
    beside: Path, tiny_shards: str, tmp_path: Path
) -> None:
    """The command of a user, in a folder without the plugin, whose search path has it."""
    command = ["train", "cifar100_lt_ce", "--plugin", "example_parts.losses", "--engine", "trial", "--name", "mine"]
    command += [
        "--data",
        tiny_shards,
        "--storage",
        str(tmp_path / "runs"),
        "objective.base=tempered",
        "model.name=resnet8",
    ]
    command += [
        "train.epochs=1",
        "train.batch_size=8",
        "train.threads=1",
        "tracking.wandb=false",
        "train.optim.warmup=0",
    ]
    code = f"import sys; sys.path.append({str(beside)!r}); from ltcore.cli.main import console_script; console_script()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LTCORE_CACHE": str(tmp_path / "cache")}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())
    assert record["status"] == "finished" and record["engine"] == "trial"
    assert record["config"]["plugins"].startswith("example_parts.losses==sha256:")
