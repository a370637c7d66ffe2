"""What becomes of output that nobody can take."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltcore.reporting.terminal import Terminal, styled

FULL = Path("/dev/full")
PIPED = """
from ltcore.reporting.terminal import Terminal, styled
import os, sys
terminal = Terminal()
for line in range(3):
    terminal.progress(styled("epoch"))
    terminal.print("result")
print("done", file=sys.stderr)
"""


def test_progress_is_lost_on_a_full_disk_and_results_are_not_lost_silently() -> None:
    with FULL.open("w", buffering=1) as full:
        terminal = Terminal(file=full, width=80)
        terminal.progress(styled("epoch 1"))
        with pytest.raises(OSError, match="No space left"):
            terminal.print("result")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # closing writes what is left


class Recovering(io.StringIO):
    """A file on a disk that is full for a while."""

    left = 3

    def write(self, text: str) -> int:
        if self.left:
            self.left -= 1
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_lines_that_were_lost_do_not_come_later() -> None:
    terminal = Terminal(file=Recovering(), width=80)
    for line in range(5):
        terminal.progress(styled(f"epoch {line}"))
    assert isinstance(terminal.file, Recovering)
    assert terminal.file.getvalue() == "epoch 3\nepoch 4\n"


def test_work_goes_on_when_nobody_reads_any_more() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PIPED], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "done\n")
