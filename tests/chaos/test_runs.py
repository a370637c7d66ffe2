"""A single run in one process is struck: the same command ends with the bits of the undisturbed one, and nothing stays."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos import grounds, kinds
from tests.chaos.grounds import Ground, Site
from tests.chaos.harness import Place, differences, outcome, place
from tests.chaos.kinds import Scene
from tests.chaos.sweeps import EPOCHS, run_words
from tests.flaky import HANGS_S

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Server

pytest_plugins = ["tests.s3"]
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


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a second machine, a namespace of processes")
def test_a_second_machine_takes_over_from_one_that_stands_still(
    run: Place, undisturbed_run: dict[str, Any], struck_shards: str, tmp_path: Path
) -> None:
    """With a cache of its own: only the storage is shared. The first wakes up while the second trains, and writes nothing."""
    first = run.start()
    first.strike(lambda: struck(run), lambda: first.process.pid, signal.SIGSTOP)
    other = {"LTCORE_CACHE": str(tmp_path / "cache-of-the-other")}
    namespace = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
    words = run_words(struck_shards, tmp_path)
    with place("train.py", words, "small", tmp_path, environment=other, through=namespace) as second_machine:
        second = second_machine.start()
        second.until(lambda: "waiting for it to end" in second.said())
        before = run.record()["pid"]
        second.until(lambda: run.record()["pid"] != before and run.trains("."))
        os.kill(first.process.pid, signal.SIGCONT)
        code, said = first.end()
        assert code == 1 and "was taken over by another process" in said and "Traceback" not in said, said
        assert second.end()[0] == 0, second.said()
        assert_same(run, undisturbed_run)
        second_machine.assert_clean()


Open = Callable[[Ground], Place]
"""Opens a place for the run, which ends with the test."""


@pytest.fixture
def at(struck_shards: str, s3_server: Server, tmp_path: Path) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:
        yield lambda ground: stack.enter_context(
            ground(Site(struck_shards, tmp_path / "site", s3_server), "train.py", run_words)
        )


def goes_on(run: Place, fault: Callable[[Scene], object], undisturbed: dict[str, Any]) -> str:
    """Strikes the run, which must end well by itself. Returns what it said."""
    command = run.start()
    command.until(lambda: struck(run))
    fault(Scene(run, command, ".", random.Random(0)))
    assert run.trains("."), "it came too late"
    code, said = command.end()
    assert code == 0 and "Traceback" not in said, said
    assert_same(run, undisturbed)
    return said


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
def test_wandbs_process_is_killed_or_stands_still(
    at: Open, undisturbed_run: dict[str, Any], sig: signal.Signals
) -> None:
    """Logging is not worth a training: the run goes on without that process, and W&B in another file."""

    def fault(scene: Scene) -> None:
        os.kill(scene.command.child(scene.trainer, "wandb"), sig)

    run = at(grounds.logged)
    said = goes_on(run, fault, undisturbed_run)
    assert re.search(r"W&B failed \(.+\): run small-\w+ is logged offline from here on\.", said), said
    assert len(run.record()["starts"]) == 1 and len(list(run.results.glob("wandb/offline-run-*/*.wandb"))) == 2


@pytest.mark.parametrize("fault", ["503", "429", "drops", "hangs"])
def test_the_object_store_fails_for_a_while(at: Open, undisturbed_run: dict[str, Any], fault: str) -> None:
    run = at(grounds.stored)
    proxy = run.proxy
    assert proxy is not None

    def disturb(_: Scene) -> None:
        with proxy.disturbed(fault):
            time.sleep(6 + HANGS_S * (fault == "hangs"))  # a silence is felt late, and has to meet a second attempt

    said = goes_on(run, disturb, undisturbed_run)
    told = said.count("does not answer")
    assert proxy.struck > 1 and said.count("answers again") == told, said
    assert told == 1 or (fault == "hangs" and not told), "the client's own attempts may outlast a silence"


needs_root = pytest.mark.skipif(not grounds.can_mount(), reason="only root can make a disk that is small")


@needs_root
def test_the_disk_of_the_results_is_full_for_a_while(at: Open, undisturbed_run: dict[str, Any]) -> None:
    run = at(grounds.small_disks)
    said = goes_on(run, lambda _: kinds.fill(run.disks[0], 5), undisturbed_run)
    assert "No space left on device" in said and "again, after" in said, said


@needs_root
@pytest.mark.parametrize("disk", [0, 1], ids=["results", "cache"])
def test_a_disk_is_full_when_the_command_begins(at: Open, undisturbed_run: dict[str, Any], disk: int) -> None:
    """It waits for that of the results, and makes do without the other: images are decoded again each time."""
    run = at(grounds.small_disks)
    filling = threading.Thread(target=kinds.fill, args=(run.disks[disk], 30))
    filling.start()
    said = run.finish()
    filling.join()
    assert ("No space left on device" in said) == (disk == 0), said
    assert run.record()["data"]["loader"] == ("cache" if disk == 0 else "threads")
    assert_same(run, undisturbed_run)


@pytest.mark.parametrize("ground", [grounds.plain, grounds.stored])
def test_a_kill_while_a_checkpoint_is_written(at: Open, undisturbed_run: dict[str, Any], ground: Ground) -> None:
    run = at(ground)
    command = run.start()
    command.until(lambda: struck(run))
    assert kinds.upload(Scene(run, command, ".", random.Random(0)))
    assert command.end()[0] == -signal.SIGKILL and 3 <= run.rows(".") < EPOCHS
    folders = run.collect() / "checkpoints"
    torn = [path for path in folders.iterdir() if path.name.startswith(".") or not (path / "meta.json").exists()]
    assert torn, "the kill came between two checkpoints"
    run.finish()
    assert_same(run, undisturbed_run)
    assert not [path for path in (run.collect() / "checkpoints").iterdir() if path in torn]
