"""A draw of faults ends in time, wherever it waits, and says what it has survived."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import test_faults
from tests.chaos.grounds import Site
from tests.chaos.harness import Place, place
from tests.chaos.tally import FAULT_S, Tally, TooLongError, alarm, hours_for
from tests.chaos.test_faults import Work, survive_all


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


def test_a_draw_that_hangs_says_what_it_survived_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second computation never comes to the moment of its fault."""
    places = list[Place]()

    @contextmanager
    def ground(site: Site, script: str, words: Any) -> Iterator[Place]:
        with place(script, [], "small", site.folder) as where:
            places.append(where)
            yield where

    class Sleeps:
        def __init__(self, where: Place) -> None:
            self.process = subprocess.Popen(["sleep", "60"], env={"LTCORE_TESTED_BY": where.mark})

        def end(self) -> tuple[int, str]:
            self.process.kill()
            self.process.wait()
            return 0, ""

    def strike(*_: Any) -> bool:
        if len(places) == 2:
            time.sleep(60)
        return True

    monkeypatch.setattr(Place, "start", lambda where: Sleeps(where))
    monkeypatch.setattr(Place, "finish", lambda where: "")
    monkeypatch.setattr(Place, "assert_clean", lambda where: None)
    monkeypatch.setattr(test_faults, "outcome", lambda where: {})
    monkeypatch.setattr(test_faults, "strike", strike)
    work = Work("train.py", lambda *_: [], ground, (".", "."), ("run",), "run")
    site = Site("", tmp_path)
    with pytest.raises(TooLongError) as failed:
        survive_all([work], site, lambda _: {}, random.Random(0), Tally(4, hours=1.0, fault_s=2.0))
    assert str(failed.value) == "run in .: not over after 2 s, the bound of one fault"
    assert failed.value.__notes__ == [
        "2 of 4 faults survived in 0 min: {'run': 2}; computation 2 (ground run) was struck by {}"
    ]
    assert len(places) == 2 and not places[1].processes()
