"""The harness tells faults apart, goes on behind them, and names each input so that it can be made again."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import harness
from tests.fuzz.faulty import TARGETS
from tests.fuzz.harness import FAULTS, fuzz

MODULE = "tests.fuzz.faulty"


def test_each_fault_is_told_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "WAIT_S", 8.0)
    names = [name for name in TARGETS if name not in ("seldom", "busy", "loud")]
    found = fuzz(MODULE, dict.fromkeys(names, 1), seed=0)
    assert {name: dict(tally.counts) for name, tally in found.items()} == {name: {name: 1} for name in names}
    assert {name for name, tally in found.items() if tally.faults} == set(FAULTS)


def test_who_works_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "HANG_S", 0.5)
    assert fuzz(MODULE, {"busy": 1}, seed=0)["busy"].counts == {"hang": 1}


def test_who_says_much_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "WAIT_S", 2.0)
    assert fuzz(MODULE, {"loud": 2}, seed=0)["loud"].counts == {"accepted": 2}


def test_a_fault_is_named_by_seed_and_number_and_the_others_still_run() -> None:
    tally = fuzz(MODULE, {"seldom": 12}, seed=8)["seldom"]
    bad = [n for n in range(12) if random.Random(f"8 seldom {n}").random() < 0.1]
    assert len(bad) == 2  # of this seed
    assert tally.counts == {"accepted": 10, "died": 2}
    assert [fault.partition(": ")[0] for fault in tally.faults] == [f"seldom, seed 8, number {n}" for n in bad]
