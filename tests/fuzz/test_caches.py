"""Of damaged files that may be made anew, none changes what comes out: pixels of caches, benchmarks of interrupted builds."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.harness import fuzz

MODULE = "tests.fuzz.own"
TARGETS = ("canvases", "whole images", "glt workspace")
SHORT = 20
LONG = int(os.environ.get("LTCORE_FUZZ_INPUTS", "2000"))
SEED = int(os.environ.get("LTCORE_FUZZ_SEED", "0"))


def test_damaged_files_change_nothing() -> None:
    for name, tally in fuzz(MODULE, dict.fromkeys(TARGETS, SHORT), seed=0).items():
        assert tally.counts == {"accepted": SHORT}, f"{name}: {tally.faults}"


@pytest.mark.fuzz
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", TARGETS)
def test_very_many_damaged_files_change_nothing(name: str) -> None:
    tally = fuzz(MODULE, {name: LONG}, SEED)[name]
    print(f"{name}: {dict(tally.counts)}, the slowest {tally.slowest_s} s")
    assert tally.counts == {"accepted": LONG}, "\n".join(tally.faults)
