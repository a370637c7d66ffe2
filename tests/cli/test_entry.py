"""How a command ends: SIGTERM unwinds it as Ctrl-C does, with an exit code of its own, and nothing left open keeps it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

COMMAND = """
import os, sys, time
from ltcore.cli.entry import run_main

def wait():
    for _ in range(600):
        time.sleep(0.1)  # which a signal just before it does not shorten

def main():
    try:
        if sys.argv[1] == "forks" and os.fork() == 0:
            os.write(1, f"child {os.getpid()}\\n".encode())  # at once: print writes the end of the line apart
            wait()
        os.write(1, b"begun\\n")
        wait()
    finally:
        print("put away", flush=True)

run_main(main)
"""


def begin(how: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(
    ("sig", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_unwinds_the_command(sig: signal.Signals, code: int, word: str) -> None:
    child = begin()
    assert child.stdout is not None and child.stdout.readline() == "begun\n"
    child.send_signal(sig)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (code, "put away\n")
    assert err == f"\n{word}; the same command continues where it stopped\n"


def test_a_forked_child_ends_without_unwinding_what_is_its_parents(tmp_path: Path) -> None:
    child = begin("forks")
    assert child.stdout is not None
    said = sorted([child.stdout.readline(), child.stdout.readline()])
    assert said[0] == "begun\n"
    os.kill(int(said[1].split()[1]), signal.SIGTERM)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out) == (143, "put away\n")


LEFT_OPEN = """
import time
from concurrent.futures import ThreadPoolExecutor
from ltcore.cli.entry import run_main

def main():
    pool = ThreadPoolExecutor(2)  # as torch's compiler keeps one
    main.pool = pool
    list(pool.map(time.sleep, [0.1, 0.1]))
    pool.submit(lambda: (time.sleep(0.5), print("work is done", flush=True)))

run_main(main)
"""


def test_an_executor_that_is_left_open_does_not_keep_the_command() -> None:
    """Its work is waited for, its idle threads are not."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "work is done\n", "")
