"""The folders and servers of a local Ray: what is abandoned goes, what is in use stays, and a dead server ends the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ltcore.errors import RayLostError
from ltcore.owned_folder import LOCK, remove_abandoned
from ltcore.runtime import session
from ltcore.runtime.session import LocalSession
from tests.paths import ROOT

HOLD = """
import sys
from pathlib import Path
from types import SimpleNamespace
from ltcore.runtime.session import LocalSession
node = SimpleNamespace(get_session_dir_path=lambda: sys.argv[1], dead_processes=list)
own = LocalSession(node, keep=False)
print("held", flush=True)
sys.stdin.read()
"""


def make_session(root: Path, name: str) -> Path:
    folder = root / f"session_{name}"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "raylet.out").write_text("x")
    return folder


def node_at(folder: Path, dead: list[tuple[str, Any]], killed: list[str]) -> Any:
    return SimpleNamespace(
        get_session_dir_path=lambda: str(folder),
        dead_processes=lambda: dead,
        kill_all_processes=lambda **how: killed.append("all"),
    )


def test_a_killed_drivers_folder_goes_and_a_living_ones_and_a_strangers_stay(tmp_path: Path) -> None:
    killed, living, stranger = (make_session(tmp_path, name) for name in ("killed", "living", "stranger"))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for folder in (killed, living)
    ]
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == b"held\n"
        children[0].kill()
        children[0].wait()
        remove_abandoned(tmp_path, "session_*")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["session_living", "session_stranger"]
        assert (living / "logs" / "raylet.out").exists() and not (stranger / LOCK).exists()
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.parametrize("keep", [False, True])
def test_a_session_ends_with_its_folder(tmp_path: Path, keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(ray, "shutdown", lambda **how: ended.append("ray"))
    folder, killed = make_session(tmp_path, "own"), list[str]()
    LocalSession(node_at(folder, [], killed), keep=keep).end()
    assert (folder.exists(), ended, killed) == (keep, ["ray"], [])


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [("gcs_server", -9, r"Ray's GCS, .*died \(SIGKILL\)"), ("raylet", 1, r"Ray's raylet, .*died \(exit code 1\)")],
)
def test_a_dead_server_interrupts_and_the_end_says_which(
    tmp_path: Path, kind: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(session.atexit, "unregister", lambda hook: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    dead: list[tuple[str, Any]] = [("monitor", SimpleNamespace(returncode=0))]  # of no importance
    folder, killed = make_session(tmp_path, "own"), list[str]()
    own = LocalSession(node_at(folder, dead, killed), keep=False)
    try:
        with pytest.raises(RayLostError, match=f"{said}.*same command continues"):
            try:
                dead.append((kind, SimpleNamespace(returncode=code)))
                signal.sigtimedwait([], 10)  # what waits inside of Ray
                pytest.fail("nothing interrupted it")
            except KeyboardInterrupt:
                own.end()
        assert killed == ["all"] and not folder.exists()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_servers_that_end_with_ray_interrupt_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that uses Ray itself ends it: the raylet is gone while the GCS is still waited for."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda **how: None)
    before = signal.getsignal(signal.SIGUSR1)
    dead: list[tuple[str, Any]] = [("raylet", SimpleNamespace(returncode=-15))]
    own = LocalSession(node_at(make_session(tmp_path, "own"), dead, killed := []), keep=False)
    try:
        assert own._guard.poll()
        own.end()
        assert killed == []
    finally:
        signal.signal(signal.SIGUSR1, before)
