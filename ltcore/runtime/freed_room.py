"""Room that dead controllers of Ray Train still hold on a Ray without a dashboard.

A worker group's room, a placement group, stays until its controller and the whole job have ended. Ray starts an actor that
frees it when the controller alone is dead, but that one asks the dashboard, and a local Ray has none: the group that is
started again after two such losses waited for room that nobody used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray
import ray._private.state
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

from ltcore.runtime.poller import Poller

EVERY_S = 5.0
"""Seconds between two looks."""


@contextlib.contextmanager
def freed_room() -> Iterator[None]:
    """Frees what dead actors of this job hold, again and again until the block ends: a death takes a moment to be known."""
    freeing = _Freeing("freed-room", EVERY_S)
    freeing.start()
    try:
        yield
    finally:
        freeing.end()


def free_room() -> None:
    """Removes the placement groups of this job whose creator, an actor, is dead."""
    job = ray.get_runtime_context().get_job_id()
    state: Any = ray._private.state.state  # the public table does not say who made a group
    table: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]  # generated
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        group = table.FromString(raw)
        # Of what a driver or a task made, Ray says that its actor is dead.
        made_by_actor = not ray.ActorID(group.creator_actor_id).is_nil()
        orphaned = made_by_actor and group.creator_actor_dead and not group.is_detached
        if orphaned and group.creator_job_id.hex() == job and group.state != table.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


class _Freeing(Poller):
    def poll(self) -> bool:
        with contextlib.suppress(ray.exceptions.RayError, RuntimeError):  # it may be ending, or have much to do
            if ray.is_initialized():
                free_room()
        return True
