"""A draw of faults ends in time, wherever it waits, and says what it has survived."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter

import pytest

from tests.chaos.tally import FAULT_S, Tally, TooLongError, alarm, hours_for


def test_the_time_of_a_draw_follows_from_its_faults() -> None:
    assert hours_for(100) == pytest.approx(5.5)
    assert hours_for(100) / 3 > 94 / 60, "a hundred took 94 minutes"
    assert hours_for(1) * 3600 > FAULT_S


def test_faults_count_once_their_computation_is_over() -> None:
    tally = Tally(5, hours=1.0)
    tally.begin("run")
    tally.struck.update(["driver", "driver", "SIGINT"])
    assert (tally.missing, tally.survived.total()) == (2, 0)
    tally.end()
    tally.begin("sweep")
    assert (tally.missing, tally.survived, tally.struck) == (2, Counter(driver=2, SIGINT=1), Counter())
    assert tally.number == 2


def test_one_fault_has_a_bound_wherever_it_waits() -> None:
    tally = Tally(5, hours=1.0, fault_s=0.2)
    began = time.monotonic()
    said = r"^twice in alt: not over after 0\.2 s, the bound of one fault$"
    with pytest.raises(TooLongError, match=said), tally.within("twice in alt"):
        subprocess.run(["sleep", "60"], check=True)
    assert time.monotonic() - began < 30


def test_all_faults_have_a_bound_together() -> None:
    tally = Tally(5, hours=0.5)
    tally.began -= 1800
    said = r"^the end: the 0\.5 hours for all faults are over \(LTCORE_FAULTS_HOURS\)$"
    with pytest.raises(TooLongError, match=said), tally.within("the end"):
        time.sleep(60)


def test_an_alarm_leaves_the_one_around_it() -> None:
    with pytest.raises(TooLongError, match="outer"), alarm(0.3, "outer"):
        with alarm(60, "inner"):
            pass
        time.sleep(60)
    before = signal.getsignal(signal.SIGALRM)
    with alarm(60, "inner"):
        assert signal.getsignal(signal.SIGALRM) is not before
    assert signal.getsignal(signal.SIGALRM) is before
