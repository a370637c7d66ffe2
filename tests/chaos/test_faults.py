"""Faults of all kinds, drawn by a seed, against one small work after another until enough have struck.

pytest -m chaos tests/chaos/test_faults.py                     100 faults
LTCORE_FAULTS=5 LTCORE_FAULTS_SEED=1 pytest -m chaos ...       fewer, and other ones
LTCORE_FAULTS_AT=stored,logged pytest -m chaos ...             only at these kinds of places
LTCORE_FAULTS_HOURS=2 pytest -m chaos ...                      most hours for all (else half an hour and 3 minutes a fault)
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest

from tests.chaos import grounds
from tests.chaos.grounds import Ground, Site, Words
from tests.chaos.harness import Command, Place, differences, outcome, place
from tests.chaos.kinds import KINDS, Scene
from tests.chaos.sweeps import (
    EPOCHS,
    LONG,
    elastic_words,
    group_words,
    halving_words,
    impatient_words,
    run_words,
    sweep_words,
)
from tests.chaos.tally import Tally, TooLongError, hours_for

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Server

pytest_plugins = ["tests.s3"]


Card = TypeVar("Card")


@dataclass(frozen=True)
class Work:
    """A command that is struck."""

    script: str
    words: Words
    ground: Ground
    runs: tuple[str, ...]
    """Directories of its runs, in the order of the stages, so that each fault finds its moment still to come."""
    kinds: tuple[str, ...]
    undisturbed: str = "sweep"
    """What it must come to, of the results in ``conftest``."""
    epochs: int = EPOCHS
    compare: Callable[[dict[str, Any], dict[str, Any]], list[str]] = differences


def other_images(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Returns how two outcomes of the long run differ in what it trained on: epochs, and losses by more than rounding."""
    one, other = first["."], second["."]
    counts = [
        f"{key}: {one[key]} / {other[key]}"
        for key in ("status", "epochs_done", "images_seen")
        if one[key] != other[key]
    ]
    rows = zip(one["rows"], other["rows"], strict=True)
    losses = ((n, a["train/loss"], b["train/loss"]) for n, (a, b) in enumerate(rows, 1))
    return counts + [f"epoch {n}: {a} / {b}" for n, a, b in losses if not math.isclose(a, b, rel_tol=1e-5)]


SWEEP_RUNS = (
    *("trials/00000", "trials/00001", "trials/baseline"),
    *("retrain/winner-seed1", "retrain/baseline-seed1", "alt/winner-seed1", "alt/baseline-seed1"),
)
ANYWHERE = ("run", "upload", "driver", "SIGTERM", "SIGINT", "twice", "same", "raylet", "gcs")
ENDS = ("driver", "SIGTERM", "SIGINT", "twice")


def _sweep(ground: Ground, kinds: tuple[str, ...], words: Words = sweep_words) -> Work:
    return Work("tune_lpa.py", words, ground, SWEEP_RUNS, kinds)


RUN = Work("train.py", run_words, grounds.plain, (".",) * 3, ("driver", "SIGTERM", "SIGINT"), "run")
WORKS = {
    "plain": _sweep(grounds.plain, (*ANYWHERE, "damage", "torn", "stopped"), impatient_words),
    # what only such a place has comes as often as all the rest
    "stored": _sweep(grounds.stored, (*ANYWHERE, *("storage",) * len(ANYWHERE))),
    "full": _sweep(grounds.small_disks, (*ANYWHERE, *("disk",) * len(ANYWHERE))),
    "logged": _sweep(grounds.logged, (*ANYWHERE, *("wandb", "wandb stopped") * (len(ANYWHERE) // 2))),
    "rungs": Work(
        "tune_lpa.py",
        halving_words,
        grounds.plain,
        ("trials/00000", "trials/00003", "trials/baseline", "retrain/winner-seed1"),
        ANYWHERE,
        "halving",
        6,
    ),
    "nodes": _sweep(grounds.two_nodes, ("run", *ENDS, "same", *("node", "spot") * 3)),
    "group": Work(
        "train.py",
        group_words,
        grounds.plain,
        (".",) * 4,
        ("rank 0", "rank 1", "controller", "train driver", *ENDS),
        "group",
    ),
    "elastic": Work(
        "train.py",
        elastic_words,
        grounds.one_or_two_nodes,
        (".",) * 4,
        ("resize",) * 3 + ("rank 0", "driver", "SIGINT"),
        "long",
        LONG,
        other_images,
    ),
}
"""Kind of place -> what is struck there."""


def strike(work: Work, where: Place, command: Command, kind: str, run: str, epochs: int, draw: random.Random) -> bool:
    """Strikes while ``run`` trains. Returns False where that run, or the command, has ended before."""
    scene = Scene(where, command, run, draw)
    try:
        return scene.until(lambda: where.trains(run, epochs) and scene.begun()) and KINDS[kind].strike(scene)
    except ProcessLookupError:
        return False


class Deck(Generic[Card]):
    """Draws like cards, so that each comes before one comes again."""

    def __init__(self, cards: Sequence[Card], draw: random.Random) -> None:
        self._cards, self._draw = cards, draw
        self._left: list[Card] = []

    def take(self) -> Card:
        if not self._left:
            self._left = self._draw.sample(self._cards, len(self._cards))
        return self._left.pop()

    def put_back(self, card: Card) -> None:
        """Takes back one that could not be played; it comes again when the others have."""
        self._left.insert(0, card)


def survive(
    work: Work, kinds: Deck[str], site: Site, draw: random.Random, tally: Tally, same: Callable[[str], dict[str, Any]]
) -> None:
    """Computes the work once under at most as many faults as are missing, and counts those that it survived."""
    with tally.within(f"the undisturbed {work.undisturbed}"):
        wanted = same(work.undisturbed)
    with contextlib.ExitStack() as ends:
        with tally.within("the start"):
            where = ends.enter_context(work.ground(site, work.script, work.words))
            command = where.start()
        for n, run in enumerate(work.runs):
            if not tally.missing or command.process.poll() is not None:
                break
            kind = kinds.take()
            epochs = draw.randrange(1, work.epochs - 1) if run != "." else work.epochs * n // len(work.runs) + 1
            with tally.within(f"{kind} in {run}"):
                if not strike(work, where, command, kind, run, epochs, draw):
                    kinds.put_back(kind)
                    continue
                tally.struck[kind] += 1
                if KINDS[kind].code is not None:
                    code, said = command.end()
                    # 0: the fault came when all was done
                    assert code in (KINDS[kind].code, 0) and "Traceback" not in said, f"{kind} in {run}: {code}\n{said}"
                    command = where.start()
        with tally.within("the end"):
            code, said = command.end()
            assert code == 0 and "Traceback" not in said, f"{code}\n{said}"
            where.finish()
            assert work.compare(wanted, outcome(where)) == []
            where.assert_clean()
    tally.end()


def survive_all(
    works: Sequence[Work], site: Site, same: Callable[[str], dict[str, Any]], draw: random.Random, tally: Tally
) -> None:
    """Strikes until no fault is missing, in as many computations of the works as that takes."""
    places, kinds = Deck(range(len(works)), draw), [Deck(work.kinds, draw) for work in works]
    while tally.missing:
        place = places.take()
        work = works[place]
        here = dataclasses.replace(site, folder=site.folder / str(tally.number))
        began = time.monotonic()
        tally.begin(f"{work.ground.__name__} {work.undisturbed}")
        with tally.told():
            survive(work, kinds[place], here, draw, tally, same)
        print(
            f"{tally.number}: {tally.work}, {time.monotonic() - began:.0f} s; {tally.survived.total()} of {tally.faults} "
            f"faults survived: {dict(tally.survived)}",
            flush=True,
        )


def test_a_draw_that_hangs_says_what_it_survived_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second computation never comes to the moment of its fault."""
    places = list[Place]()

    @contextlib.contextmanager
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

    def never(*_: Any) -> bool:
        if len(places) == 2:
            time.sleep(60)
        return True

    monkeypatch.setattr(Place, "start", lambda where: Sleeps(where))
    monkeypatch.setattr(Place, "finish", lambda where: "")
    monkeypatch.setattr(Place, "assert_clean", lambda where: None)
    monkeypatch.setattr(sys.modules[__name__], "outcome", lambda where: {})
    monkeypatch.setattr(sys.modules[__name__], "strike", never)
    work = Work("train.py", lambda *_: [], ground, (".", "."), ("run",), "run")
    site = Site("", tmp_path)
    with pytest.raises(TooLongError) as failed:
        survive_all([work], site, lambda _: {}, random.Random(0), Tally(4, hours=1.0, fault_s=2.0))
    assert str(failed.value) == "run in .: not over after 2 s, the bound of one fault"
    assert failed.value.__notes__ == [
        "2 of 4 faults survived in 0 min: {'run': 2}; computation 2 (ground run) was struck by {}"
    ]
    assert len(places) == 2 and not places[1].processes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_faults_change_no_bit_of_a_run(
    struck_shards: str, undisturbed: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    tally = Tally(3, hours_for(3))
    survive_all([RUN], Site(struck_shards, tmp_path), undisturbed, random.Random(0), tally)
    assert tally.survived.total() == 3


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(600)  # of what is outside of the draw, which keeps its own time
def test_a_hundred_faults_change_no_bit(
    struck_shards: str, undisturbed: Callable[[str], dict[str, Any]], s3_server: Server, tmp_path: Path
) -> None:
    faults, seed = int(os.environ.get("LTCORE_FAULTS", "100")), int(os.environ.get("LTCORE_FAULTS_SEED", "0"))
    names = os.environ.get("LTCORE_FAULTS_AT", ",".join(WORKS)).split(",")
    if not grounds.can_mount() and "full" in names:
        print("not root, so no disk can be made to be filled: no fault of the kind 'disk'", flush=True)
        names.remove("full")
    site = Site(struck_shards, tmp_path, s3_server)
    tally = Tally(faults, float(os.environ.get("LTCORE_FAULTS_HOURS", hours_for(faults))))
    survive_all([WORKS[name] for name in names], site, undisturbed, random.Random(seed), tally)
    assert tally.survived.total() == faults
