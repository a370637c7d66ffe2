"""Temporary files of a command go with it; those of one that was killed go when the next one begins."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ltcore.cli.entry import run_main
from ltcore.owned_folder import LOCK, TemporaryFolder, abandoned, enter, own_temporary_folder
from tests.paths import ROOT

HOLD = """
import sys, tempfile
from ltcore.owned_folder import own_temporary_folder
with own_temporary_folder():
    tempfile.mkdtemp(prefix="ltcore-")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_command_leaves_the_next_one_removes(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(root)}
    children = [
        subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == b"held\n"
        children[0].kill()
        children[0].wait()
        (root / "ltcore-of-another-program").mkdir()
        assert len(list(root.iterdir())) == 3
        with own_temporary_folder():
            assert len(list(root.iterdir())) == 3, "the killed one's is gone, and its own has come"
        assert len(list(root.iterdir())) == 2, "one that lives, and a stranger's"
        assert (root / "ltcore-of-another-program").exists()
    finally:
        for child in children:
            child.kill()
            child.wait()


HELD = """
import sys
from pathlib import Path
from ltcore.owned_folder import TemporaryFolder
held = TemporaryFolder(Path(sys.argv[1]), "zip-")
print(held.path, flush=True)
sys.stdin.read()
"""


def test_a_folder_goes_with_its_object_or_after_a_kill_with_the_next_one(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HELD, str(tmp_path / "downloads")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    try:
        assert child.stdout is not None
        of_child = Path(child.stdout.readline().strip())
        own = TemporaryFolder(tmp_path / "downloads", "zip-")
        assert of_child.is_dir() and own.path.parent == of_child.parent
    finally:
        child.kill()
        child.wait()
    again = TemporaryFolder(tmp_path / "downloads", "zip-")
    assert not of_child.exists() and own.path.is_dir()
    del own, again
    assert not list((tmp_path / "downloads").iterdir())


def test_every_command_has_its_own_and_leaves_nothing(root: Path) -> None:
    seen: list[Path] = []

    def main() -> int:
        seen.append(Path(tempfile.mkdtemp()))
        raise ValueError("as commands end at times")

    with pytest.raises(SystemExit):
        run_main(main)
    assert seen[0].parent.parent == root and tempfile.tempdir == str(root)
    assert not list(root.iterdir())


def test_a_command_that_needs_none_runs_where_none_can_be_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(root / "missing"))
    with own_temporary_folder():
        assert tempfile.tempdir == str(root / "missing")


def test_whoever_enters_has_a_whole_folder_also_where_it_is_moved_away_meanwhile(tmp_path: Path) -> None:
    place, turns = tmp_path / "work", itertools.count()

    def make() -> None:
        (place / "first").mkdir(parents=True, exist_ok=True)
        if next(turns) == 0:  # by the process that was in it
            place.rename(tmp_path / "gone")
        (place / "second").mkdir(parents=True, exist_ok=True)

    owned = enter(place, make, lambda: None)
    assert owned is not None and {path.name for path in place.iterdir()} == {"first", "second", LOCK}
    assert list(abandoned(tmp_path, "work")) == []
    owned.release(keep=True)
    assert list(abandoned(tmp_path, "work")) == [place]
