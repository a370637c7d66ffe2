"""Damaged records, checkpoints and logins end in a sentence, and nothing damaged passes for whole."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from tests.fuzz.harness import Tally, fuzz

MODULE = "tests.fuzz.own"
LIGHT = (
    "stored sweep",
    "stored comparison",
    "table",
    "checkpoint meta",
    "checkpoint weights",
    "login",
    "claims",
    "bootstrap",
)
"""Targets whose inputs take milliseconds."""
HEAVY = ("sweep page", "unfinished sweep page", "variants page", "run page", "resume", "stage 2 source")
SHORT = 8
"""Inputs of each light target in the run of every day."""
FEW = 3
"""Inputs of each heavy target, whose inputs take up to a second, in the slow run."""
LONG = int(os.environ.get("LTCORE_FUZZ_INPUTS", "2000"))
SEED = int(os.environ.get("LTCORE_FUZZ_SEED", "0"))


@pytest.fixture(scope="module")
def tallies() -> Mapping[str, Tally]:
    """All light targets in one process, which takes seconds to start."""
    return fuzz(MODULE, dict.fromkeys(LIGHT, SHORT), seed=0)


@pytest.mark.parametrize("name", LIGHT)
def test_mutated_records_are_read_or_refused(tallies: Mapping[str, Tally], name: str) -> None:
    assert not tallies[name].faults, "\n".join(tallies[name].faults)
    assert tallies[name].counts.total() == SHORT


@pytest.mark.slow
def test_some_mutated_records_make_a_page_or_a_run_or_a_sentence() -> None:
    """All heavy targets in one process."""
    for name, tally in fuzz(MODULE, dict.fromkeys(HEAVY, FEW), seed=0).items():
        assert not tally.faults, "\n".join([name, *tally.faults])
        assert tally.counts.total() == FEW


@pytest.mark.fuzz
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", [*LIGHT, *HEAVY])
def test_very_many_mutated_records_are_read_or_refused(name: str) -> None:
    """As many as ``LTCORE_FUZZ_INPUTS`` of each target, by ``LTCORE_FUZZ_SEED``."""
    tally = fuzz(MODULE, {name: LONG}, SEED)[name]
    print(f"{name}: {dict(tally.counts)}, the slowest {tally.slowest_s} s")
    assert not tally.faults, "\n".join(tally.faults)
