"""Nobody's data bring ltcore down: mutated inputs end in a sentence, in time and memory, and none passes for another."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from tests.fuzz.foreign import TARGETS
from tests.fuzz.harness import Tally, fuzz

MODULE = "tests.fuzz.foreign"
SHORT = 15
"""Inputs of each target in the run of every day."""
LONG = int(os.environ.get("LTCORE_FUZZ_INPUTS", "2000"))
SEED = int(os.environ.get("LTCORE_FUZZ_SEED", "0"))


@pytest.fixture(scope="module")
def tallies() -> Mapping[str, Tally]:
    """All targets in one process, which takes seconds to start."""
    return fuzz(MODULE, dict.fromkeys(TARGETS, SHORT), seed=0)


@pytest.mark.timeout(900)  # of a machine that others use; ten seconds of its own
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_are_read_or_refused(tallies: Mapping[str, Tally], name: str) -> None:
    assert not tallies[name].faults, "\n".join(tallies[name].faults)
    assert tallies[name].counts.total() == SHORT


@pytest.mark.fuzz
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", TARGETS)
def test_very_many_mutated_inputs_are_read_or_refused(name: str) -> None:
    """As many as ``LTCORE_FUZZ_INPUTS`` of each target, by ``LTCORE_FUZZ_SEED``."""
    tally = fuzz(MODULE, {name: LONG}, SEED)[name]
    print(f"{name}: {dict(tally.counts)}, the slowest {tally.slowest_s} s")
    assert not tally.faults, "\n".join(tally.faults)
