"""Faults of all kinds, drawn by a seed, against one small sweep after another until enough have struck.

pytest -m chaos tests/chaos/test_faults.py                     100 faults
LTCORE_FAULTS=5 LTCORE_FAULTS_SEED=1 pytest -m chaos ...       fewer, and other ones
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import Command, Place, differences, outcome, place
from tests.chaos.sweeps import EPOCHS, run_words, sweep_words


@dataclass(frozen=True)
class Work:
    """A command that is struck."""

    script: str
    words: Callable[[str, Path], list[str]]
    runs: tuple[str, ...]
    """Directories of its runs, in the order of the stages, so that each fault finds its moment still to come."""
    kinds: tuple[str, ...]


SWEEP_RUNS = (
    *("trials/00000", "trials/00001", "trials/baseline"),
    *("retrain/winner-seed1", "retrain/baseline-seed1", "alt/winner-seed1", "alt/baseline-seed1"),
)
SWEEP_KINDS = ("run", "driver", "SIGTERM", "SIGINT", "raylet", "gcs")
CODES = {"driver": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130, "raylet": 1, "gcs": 1}
"""Fault -> how it ends the command; a process that trains is replaced without an end."""


SWEEP = Work("tune_lpa.py", sweep_words, SWEEP_RUNS, SWEEP_KINDS)
RUN = Work("train.py", run_words, (".",) * 3, ("driver", "SIGTERM", "SIGINT"))


def strike(sweep: Place, command: Command, kind: str, where: str, epochs: int) -> bool:
    """Strikes while ``where`` trains. Returns False where that run, or the command, has ended before."""

    def over() -> bool:
        return command.process.poll() is not None or sweep.record(where).get("status") == "finished"

    while not sweep.trains(where, epochs):
        if over():
            return False
        time.sleep(0.02)
    targets: dict[str, Callable[[], int]] = {
        "run": lambda: int(sweep.record(where)["pid"]),
        "raylet": lambda: command.server("raylet"),
        "gcs": lambda: command.server("gcs"),
    }
    sig = signal.Signals[kind] if kind.startswith("SIG") else signal.SIGKILL
    try:
        os.kill(targets.get(kind, lambda: command.process.pid)(), sig)
    except ProcessLookupError:
        return False
    return True


def survive(
    work: Work, shards: str, folder: Path, draw: random.Random, budget: int, same: dict[str, Any]
) -> Counter[str]:
    """Computes the work once under at most ``budget`` faults. Returns how many it survived, by kind."""
    struck: Counter[str] = Counter()
    with place(work.script, work.words(shards, folder), "small", folder) as where:
        for n, run in enumerate(work.runs):
            if struck.total() == budget:
                break
            kind = draw.choice(work.kinds)
            epochs = draw.randrange(1, EPOCHS - 1) if run != "." else (EPOCHS - 1) * (n + 1) // len(work.runs)
            command = where.start()
            hit = strike(where, command, kind, run, epochs)
            code, said = command.end()
            if not hit:
                assert code == 0, said
                break
            # 0: the fault needs nobody, or came when all was done
            assert code in (CODES.get(kind, 0), 0) and "Traceback" not in said, f"{kind} in {run}: {code}\n{said}"
            struck[kind] += 1
            if code == 0:
                break
        where.finish()
        assert differences(same, outcome(where)) == [], f"after {dict(struck)}"
        where.assert_clean()
    return struck


def survive_all(work: Work, shards: str, folder: Path, same: dict[str, Any], faults: int, seed: int) -> Counter[str]:
    """Strikes ``faults`` times, in as many computations of the work as that takes."""
    draw, survived = random.Random(seed), Counter[str]()
    number = 0
    while survived.total() < faults:
        survived += survive(work, shards, folder / str(number), draw, faults - survived.total(), same)
        number += 1
        print(f"{number}: {survived.total()} of {faults} faults survived: {dict(survived)}", flush=True)
    return survived


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_faults_change_no_bit_of_a_run(
    struck_shards: str, undisturbed_run: dict[str, Any], tmp_path: Path
) -> None:
    assert survive_all(RUN, struck_shards, tmp_path, undisturbed_run, 3, seed=0).total() == 3


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(6 * 3600)
def test_a_hundred_faults_change_no_bit_of_a_sweep(
    struck_shards: str, undisturbed_sweep: dict[str, Any], tmp_path: Path
) -> None:
    faults, seed = int(os.environ.get("LTCORE_FAULTS", "100")), int(os.environ.get("LTCORE_FAULTS_SEED", "0"))
    assert survive_all(SWEEP, struck_shards, tmp_path, undisturbed_sweep, faults, seed).total() == faults
