"""A sweep is struck at every stage and in every process: by itself or by the same command it ends with the same bits."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos import grounds, kinds
from tests.chaos.harness import Command, Place, differences, outcome, place
from tests.chaos.kinds import Scene
from tests.chaos.sweeps import COUNTS, EPOCHS, driven_words, impatient_words, sweep_words
from tests.tuning.sweeps import RUN

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Server

pytest_plugins = ["tests.s3"]
pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(1800)]

SAVE_S = 45.0
"""What runs get to save a checkpoint, and the command to end."""
BATCH = int(RUN["train.batch_size"])
STEPS = sum(COUNTS["train"]) // BATCH
"""Of an epoch."""


@pytest.fixture
def site(struck_shards: str, s3_server: Server, tmp_path: Path) -> grounds.Site:
    return grounds.Site(struck_shards, tmp_path / "site", s3_server)


@pytest.fixture
def sweep(struck_shards: str, tmp_path: Path) -> Iterator[Place]:
    with place("tune_lpa.py", sweep_words(struck_shards, tmp_path), "small", tmp_path) as where:
        yield where


def assert_same(sweep: Place, undisturbed: dict[str, Any]) -> None:
    assert differences(undisturbed, outcome(sweep)) == []
    assert sweep.read("report.html")
    sweep.assert_clean()


def assert_went_on(sweep: Place, where: str) -> None:
    """The second start of a run that was struck after three logged epochs began at its checkpoint."""
    first, second = sweep.record(where)["starts"]
    assert first["images_seen"] == 0
    assert 2 * STEPS * BATCH <= second["images_seen"] < EPOCHS * STEPS * BATCH, "from a checkpoint in the middle"


def in_stage(name: str) -> Callable[[Place, Command], bool]:
    return lambda sweep, command: command.stage() == name


def between_search_and_retrain(sweep: Place, command: Command) -> bool:
    return bool(sweep.record(file="sweep.json").get("winner")) and not list(sweep.results.glob("retrain/*/run.json"))


def in_run(where: str) -> Callable[[Place, Command], bool]:
    return lambda sweep, command: sweep.trains(where, 3)


def in_report(sweep: Place, command: Command) -> bool:
    return command.stage() == "report" and not (sweep.results / "report.html").exists()


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(in_stage("data"), id="data"),
        pytest.param(in_stage("warm-up"), id="warm-up"),
        pytest.param(in_run("trials/00000"), id="search"),
        pytest.param(between_search_and_retrain, id="before-retrain"),
        pytest.param(in_run("retrain/winner-seed1"), id="retrain"),
        pytest.param(in_run("alt/baseline-seed1"), id="alt"),
        pytest.param(in_report, id="report"),
    ],
)
def test_the_driver_is_killed_at_a_stage(
    sweep: Place, undisturbed_sweep: dict[str, Any], moment: Callable[[Place, Command], bool]
) -> None:
    command = sweep.start()
    command.strike(lambda: moment(sweep, command), lambda: command.process.pid)
    assert command.end()[0] == -signal.SIGKILL
    sweep.finish()
    assert_same(sweep, undisturbed_sweep)


@pytest.mark.parametrize("where", ["trials/00000", "trials/baseline", "retrain/winner-seed1"])
def test_a_process_that_trains_is_killed_and_nobody_has_to_do_anything(
    sweep: Place, undisturbed_sweep: dict[str, Any], where: str
) -> None:
    command = sweep.start()
    struck = command.strike(lambda: sweep.trains(where, 3), lambda: int(sweep.record(where)["pid"]))
    code, said = command.end()
    assert code == 0, said
    assert sweep.record(where)["pid"] != struck, "another process has gone on"
    assert_went_on(sweep, where)
    assert_same(sweep, undisturbed_sweep)


def test_a_trial_that_hangs_is_ended_and_goes_on(
    struck_shards: str, tmp_path: Path, undisturbed_sweep: dict[str, Any]
) -> None:
    trial, words = "trials/00000", impatient_words(struck_shards, tmp_path)
    with place("tune_lpa.py", words, "small", tmp_path) as sweep:
        command = sweep.start()
        command.until(lambda: sweep.trains(trial, 3))
        assert kinds.stopped(Scene(sweep, command, trial, random.Random(0)))
        code, said = command.end()
        assert code == 0 and "Traceback" not in said, said
        assert said.count("trial 00000 has said nothing for ") == 1 == said.count("has said nothing for "), said
        assert_went_on(sweep, trial)
        assert_same(sweep, undisturbed_sweep)


@pytest.mark.parametrize(("server", "name"), [("raylet", "raylet"), ("gcs", "GCS")])
def test_a_server_of_ray_is_killed(sweep: Place, undisturbed_sweep: dict[str, Any], server: str, name: str) -> None:
    """The object store lives in the raylet, so it dies with it."""
    command = sweep.start()
    command.strike(lambda: sweep.trains("trials/00000", 3), lambda: command.server(server))
    code, said = command.end(SAVE_S)
    assert code == 1 and f"error: Ray's {name}, " in said and "has died (SIGKILL)" in said, said
    assert "[state-dump]" not in said and "Traceback" not in said, said
    sweep.finish()
    assert_same(sweep, undisturbed_sweep)


@pytest.mark.parametrize(
    ("sig", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_saves_first(
    sweep: Place, undisturbed_sweep: dict[str, Any], sig: signal.Signals, code: int, word: str
) -> None:
    command = sweep.start()
    command.strike(lambda: sweep.trains("trials/00000", 3), lambda: command.process.pid, sig)
    ended, said = command.end(SAVE_S)
    assert ended == code, said
    assert f"{sig.name}: running trainings save a checkpoint first" in said
    assert said.endswith(f"{word}; the same command continues where it stopped\n"), said
    assert "Traceback" not in said and "***" not in said, said
    record = sweep.record("trials/00000")
    assert (record["status"], record["reason"][:8]) == ("stopped", "stopped "), "it has saved by itself"
    assert sweep.record(file="sweep.json")["status"] == "stopped"
    sweep.assert_clean()
    sweep.finish()
    assert_same(sweep, undisturbed_sweep)


def test_the_second_interrupt_ends_the_sweep_at_once(sweep: Place, undisturbed_sweep: dict[str, Any]) -> None:
    command = sweep.start()
    command.strike(lambda: sweep.trains("trials/00000", 3), lambda: command.process.pid, signal.SIGINT)
    command.until(lambda: "Repeat to stop at once" in command.said())
    command.interrupt()
    code, said = command.end(SAVE_S)
    assert code == 130 and "Traceback" not in said and "***" not in said, said
    sweep.assert_clean()
    sweep.finish()
    assert_same(sweep, undisturbed_sweep)


def test_of_two_sweeps_at_once_the_second_waits(sweep: Place, undisturbed_sweep: dict[str, Any]) -> None:
    first = sweep.start()
    first.until(lambda: sweep.trains("trials/00000"))
    second = sweep.start()
    second.until(lambda: "waiting for it to end" in second.said() or second.process.poll() is not None)
    assert first.end()[0] == 0
    assert second.end()[0] in (0, 1), "it takes the result, or says in a sentence who is at it"
    assert_same(sweep, undisturbed_sweep)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_actor_stays_in_a_ray_that_outlives_the_command(
    site: grounds.Site, undisturbed_sweep: dict[str, Any], sig: signal.Signals
) -> None:
    with grounds.two_nodes(site, "tune_lpa.py", sweep_words) as sweep:
        assert sweep.nodes is not None
        command = sweep.start()
        command.until(lambda: sweep.trains("trials/00000", 3))
        seen = {left.split()[0] for left in sweep.nodes.left()}
        assert seen == {"actor", "placement"}, "they would be seen"
        os.kill(command.process.pid, sig)
        command.end(SAVE_S)
        sweep.assert_free()
        sweep.finish()
        assert_same(sweep, undisturbed_sweep)


@pytest.mark.parametrize("ground", [grounds.plain, grounds.two_nodes])
def test_the_driver_of_a_trial_is_killed_in_an_epoch_and_nobody_has_to_do_anything(
    ground: grounds.Ground, site: grounds.Site, undisturbed_driven: dict[str, Any]
) -> None:
    """It is an actor of Ray Tune, and starts the trial's workers: they, their controller and their room go with it."""
    trial, steps = "trials/00000", list[int]()

    def within_an_epoch(sweep: Place) -> bool:
        steps.append(sweep.saved_step(trial))
        return sweep.trains(trial) and steps[-1] > 3 * STEPS and 0 < steps[-1] % STEPS < STEPS - 1

    with ground(site, "tune_lpa.py", driven_words) as sweep:
        command = sweep.start()
        command.strike(lambda: within_an_epoch(sweep), lambda: command.actors("ImplicitFunc")[0])
        code, said = command.end()
        assert code == 0 and "Traceback" not in said, said
        first, second = sweep.record(trial)["starts"]
        assert (first["world"], second["world"], first["images_seen"]) == (2, 2, 0)
        assert 3 * STEPS < steps[-1] < EPOCHS * STEPS and steps[-1] % STEPS, "it was struck between two epochs"
        assert steps[-1] * BATCH <= second["images_seen"] < EPOCHS * STEPS * BATCH, "it goes on where it was struck"
        assert_same(sweep, undisturbed_driven)
