"""A fixed group of two workers is struck in each of its processes: by itself it ends with the bits of the undisturbed one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import Command, Place, differences, outcome, place
from tests.chaos.sweeps import COUNTS, EPOCHS, group_words

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(1200)]

IMAGES = sum(COUNTS["train"])


@pytest.fixture
def group(struck_shards: str, tmp_path: Path) -> Iterator[Place]:
    with place("train.py", group_words(struck_shards, tmp_path), "small", tmp_path) as where:
        yield where


def rank_0(group: Place, command: Command) -> int:
    return int(group.record()["pid"])


def rank_1(group: Place, command: Command) -> int:
    return next(pid for pid in command.actors("RayTrainWorker") if pid != rank_0(group, command))


def controller(group: Place, command: Command) -> int:
    """The actor that watches over the workers."""
    return command.actors("TrainController")[0]


def train_driver(group: Place, command: Command) -> int:
    """The process that starts the group, which is a task of Ray."""
    return command.actors("ray::_run")[0]


@pytest.mark.parametrize("target", [rank_0, rank_1, controller, train_driver])
def test_a_process_of_the_group_is_killed_and_nobody_has_to_do_anything(
    group: Place, undisturbed_group: dict[str, Any], target: Callable[[Place, Command], int]
) -> None:
    command = group.start()
    command.strike(lambda: group.trains(".", 3), lambda: target(group, command))
    code, said = command.end()
    assert code == 0 and "Traceback" not in said, said
    first, second = group.record()["starts"]
    assert (first["world"], second["world"], first["images_seen"]) == (2, 2, 0)
    assert 2 * IMAGES <= second["images_seen"] < EPOCHS * IMAGES, "it has gone on from a checkpoint in the middle"
    assert differences(undisturbed_group, outcome(group)) == []
    group.assert_clean()
