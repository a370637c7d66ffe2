"""Runs targets over mutated inputs in a process of its own, with little memory and under watch.

A target tells how an input is made and how it is read. What becomes of an input is one of ``OUTCOMES``; all but the first two
are faults. An input is known by the name of its target, the seed and its number, and can be made again from these:

    python -m tests.fuzz.child MODULE SEED TARGET:NUMBER:COUNT ...
"""

from __future__ import annotations

import json
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.paths import ROOT

OUTCOMES = ("accepted", "refused", "traceback", "hang", "memory", "silent", "died")
FAULTS = OUTCOMES[2:]
HANG_S, WAIT_S = 15.0, 300.0
"""Processor time, and time of any kind, that an input may take."""
STARTING = 8
"""Times as long may the first line take, before which all targets are made."""


class SilentError(Exception):
    """Something else than the original was taken for it."""


class Target(Protocol):
    """One kind of input; made once, with an empty folder of its own."""

    def originals(self) -> Sequence[Any]:
        """Returns inputs that have to be accepted."""
        ...

    def mutated(self, rng: random.Random) -> Any:
        """Makes an input."""
        ...

    def run(self, case: Any) -> None:
        """Reads it. Raises LtcoreError where it is refused, SilentError for what must not be taken."""
        ...


@dataclass
class Tally:
    """What became of the inputs of a target."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """Target, seed and number of each, with what happened."""
    slowest_s: float = 0.0
    slowest: str = ""


def fuzz(module: str, jobs: Mapping[str, int], seed: int, first: int = 0) -> dict[str, Tally]:
    """Runs as many inputs of each target of a module; goes on behind one that hangs or ends the process."""
    tallies = {name: Tally() for name in jobs}
    left = [(name, first, count) for name, count in jobs.items() if count]
    while left:
        done = _one_process(module, left, seed, tallies)
        left = [(name, at + done.get(name, 0), count - done.get(name, 0)) for name, at, count in left]
        left = [job for job in left if job[2] > 0]
    return tallies


def _one_process(
    module: str, jobs: Sequence[tuple[str, int, int]], seed: int, tallies: Mapping[str, Tally]
) -> Counter[str]:
    words = [f"{name}:{first}:{count}" for name, first, count in jobs]
    done = Counter[str]()
    with (
        tempfile.TemporaryFile() as said,  # a pipe that nobody empties would stop who says much
        subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.child", module, str(seed), *words],
            cwd=ROOT,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("LTCORE_FUZZ_STDERR") else said,
            bufsize=0,
        ) as child,
    ):
        running, why = "", "died"
        for line in _lines(child):
            if line is None:
                why = "hang"
                child.kill()
                break
            told = json.loads(line)
            if "start" in told:
                running = told["start"]
                continue
            name = running.partition(":")[0]
            done[name] += 1
            _note(tallies[name], running, seed, told["outcome"], told["text"], told["seconds"])
            running = ""
        if running:
            name = running.partition(":")[0]
            done[name] += 1
            _note(tallies[name], running, seed, why, f"exit {child.wait()}", 0.0)
        elif done.total() == sum(count for _, _, count in jobs):
            child.kill()
        elif child.wait() != 0 or not done:
            said.seek(0)
            error = said.read().decode(errors="replace")
            raise AssertionError(f"the process for {words} ended with {child.returncode}: {error[-2000:]}")
    return done


def _lines(child: subprocess.Popen[bytes]) -> Iterator[bytes | None]:
    """Yields lines of the process; None where it takes too long for one, and nothing more at its end.

    It is its own time that counts, as others may need the machine; waiting for nothing is given many times as long.
    """
    assert child.stdout is not None
    held, factor = b"", STARTING
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            since, used_s = time.monotonic(), _used_s(child.pid)
            while not selector.select(0.1):
                worked_s, waited_s = _used_s(child.pid) - used_s, time.monotonic() - since
                if worked_s > HANG_S * factor or waited_s > WAIT_S * factor:
                    yield None
                    return
            chunk = os.read(child.stdout.fileno(), 2**16)
            if not chunk:
                return
            factor = 1
            *whole, held = (held + chunk).split(b"\n")
            yield from whole


def _used_s(pid: int) -> float:
    """Returns the processor time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _note(tally: Tally, running: str, seed: int, outcome: str, text: str, seconds: float) -> None:
    tally.counts[outcome] += 1
    if seconds > tally.slowest_s:
        tally.slowest_s, tally.slowest = seconds, running
    if outcome in FAULTS:
        name, _, number = running.partition(":")
        tally.faults.append(f"{name}, seed {seed}, number {number}: {outcome}: {text}")


_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",  # each arena of a thread reserves 64 MiB of addresses
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # others reserve addresses that they never use
    "OMP_NUM_THREADS": "1",
}
