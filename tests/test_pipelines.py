"""Pipelines are a page each, work when copied alone, and say what to install where ltcore is missing."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.paths import ROOT

PIPELINES = sorted(file.name for file in (ROOT / "pipelines").glob("*.py"))


def run_alone(name, folder, *argv, path):
    """The script copied into an empty folder and started there, with ltcore importable only through ``path``."""
    shutil.copy(ROOT / "pipelines" / name, folder / name)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LTCORE_DATA", "LTCORE_STORAGE")}
    environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, name, *argv], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_scripts_are_there():
    assert {"evaluate.py", "make_shards.py", "report.py", "train.py", "tune_lpa.py"} <= set(PIPELINES)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_script_is_less_than_80_lines_with_a_docstring_that_shows_its_use(name):
    text = (ROOT / "pipelines" / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert f"python pipelines/{name}" in text.split('"""')[1]


@pytest.mark.parametrize("name", PIPELINES)
def test_help_works_when_copied_alone(name, tmp_path):
    done = run_alone(name, tmp_path, "--help", path=ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("name", PIPELINES)
def test_a_missing_package_is_named_with_what_to_install(name, tmp_path):
    """A package of this name that cannot be imported hides the installed one."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "ltcore.py").write_text("raise ModuleNotFoundError('no ltcore', name='ltcore')\n")
    done = run_alone(name, tmp_path, path=tmp_path / "hidden")
    assert done.returncode == 1
    assert done.stderr.startswith("ltcore is not installed") and "install" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["train.py", "tune_lpa.py"])
def test_show_prints_the_resolved_configuration(name, tmp_path):
    recipe = ["digits_glt_lpa_dro_ifl"] if name == "train.py" else []
    done = run_alone(name, tmp_path, *recipe, "--show", "train.epochs=2", path=ROOT)
    assert done.returncode == 0, done.stderr
    assert "epochs: 2" in done.stdout
    wrong = run_alone(name, tmp_path, *recipe, "--show", "lr=1", path=ROOT)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: lr: unknown key. Did you mean train.optim.lr? (ltcore keys)\n"
