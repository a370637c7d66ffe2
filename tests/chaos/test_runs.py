"""A single run in one process is struck: the same command ends with the bits of the undisturbed one, and nothing stays."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import Place, differences, outcome, place
from tests.chaos.sweeps import EPOCHS, run_words

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


@pytest.fixture
def run(struck_shards: str, tmp_path: Path) -> Iterator[Place]:
    with place("train.py", run_words(struck_shards, tmp_path), "small", tmp_path) as where:
        yield where


def struck(run: Place) -> bool:
    return run.trains(".", 3)


def assert_same(run: Place, undisturbed: dict[str, Any]) -> None:
    assert differences(undisturbed, outcome(run)) == []
    run.assert_clean()


def test_a_killed_run_goes_on(run: Place, undisturbed_run: dict[str, Any]) -> None:
    command = run.start()
    command.strike(lambda: struck(run), lambda: command.process.pid)
    assert command.end()[0] == -signal.SIGKILL and 3 <= run.rows(".") < EPOCHS
    run.finish()
    assert_same(run, undisturbed_run)


@pytest.mark.parametrize(
    ("sig", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_saves_and_ends_the_run(
    run: Place, undisturbed_run: dict[str, Any], sig: signal.Signals, code: int, word: str
) -> None:
    command = run.start()
    command.strike(lambda: struck(run), lambda: command.process.pid, sig)
    ended, said = command.end()
    assert ended == code, said
    assert f"{sig.name}: saving a checkpoint, then stopping" in said
    assert said.endswith(f"{word}; the same command continues where it stopped\n") and "Traceback" not in said
    record = run.record()
    step = int(re.findall(r"last-(\d+)", str(list((run.results / "checkpoints").iterdir())))[0])
    assert record["status"] == "stopped" and record["reason"].startswith("stopped ") and step > 0
    run.assert_clean()
    run.finish()
    assert_same(run, undisturbed_run)


def test_the_second_signal_ends_the_run_at_once(run: Place, undisturbed_run: dict[str, Any]) -> None:
    command = run.start()
    command.until(lambda: struck(run))
    os.kill(command.process.pid, signal.SIGSTOP)
    assert struck(run)
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):  # of different kinds: equal ones would be merged
        os.kill(command.process.pid, sig)
    code, said = command.end(60)
    assert code in (130, 143) and "Traceback" not in said, said
    run.assert_clean()
    run.finish()
    assert_same(run, undisturbed_run)


def test_of_two_commands_at_once_the_second_waits_and_takes_the_result(
    run: Place, undisturbed_run: dict[str, Any]
) -> None:
    first = run.start()
    first.until(lambda: struck(run))
    second = run.start()
    second.until(lambda: "waiting for it to end" in second.said())
    assert run.trains(".")
    assert first.end()[0] == 0 and second.end()[0] == 0, second.said()
    assert_same(run, undisturbed_run)


def test_wandbs_process_is_killed(struck_shards: str, tmp_path: Path, undisturbed_run: dict[str, Any]) -> None:
    """Logging is not worth a training: the run goes on without it."""
    words = run_words(struck_shards, tmp_path, tracking__wandb="true")
    with place("train.py", words, "small", tmp_path) as run:
        command = run.start()
        command.strike(lambda: struck(run), lambda: command.server("wandb"))
        code, said = command.end()
        assert code == 0 and "Traceback" not in said, said
        assert_same(run, undisturbed_run)
