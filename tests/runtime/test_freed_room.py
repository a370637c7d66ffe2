"""Room of an actor that died is free again, also where Ray has no dashboard to ask."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import ray

from ltcore.runtime import freed_room

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


class Controller:
    """Holds room, as that of Ray Train does."""

    def take(self, cpus: float) -> int:
        self.group = made(cpus)
        return os.getpid()


def made(cpus: float) -> Any:
    from ray.util.placement_group import placement_group

    group = placement_group([{"CPU": cpus}])
    ray.get(group.ready())
    return group


def states() -> list[str]:
    return sorted(group["state"] for group in ray.util.placement_group_table().values())


def until(states_wanted: list[str]) -> None:
    end = time.monotonic() + 60
    while states() != states_wanted and time.monotonic() < end:
        time.sleep(0.2)
    assert states() == states_wanted


def test_the_room_of_a_dead_actor_is_freed_and_that_of_a_living_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_room, "EVERY_S", 0.2)
    before = states()
    others = [made(0.1), ray.get(ray.remote(num_cpus=0)(made).remote(0.1))]  # of a driver, as Tune's, and of a task
    make: Any = ray.remote(num_cpus=0)(Controller)
    dead, living = make.remote(), make.remote()
    pids = [ray.get(actor.take.remote(0.1)) for actor in (dead, living)]
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(dead.take.remote(0.1))
    time.sleep(2)
    assert states() == sorted([*before, *["CREATED"] * 4]), "Ray does not do it by itself"
    with freed_room.freed_room():
        until(sorted([*before, *["CREATED"] * 3, "REMOVED"]))
        time.sleep(1)
        assert states() == sorted([*before, *["CREATED"] * 3, "REMOVED"])
    ray.kill(living)
    for group in others:
        ray.util.remove_placement_group(group)
