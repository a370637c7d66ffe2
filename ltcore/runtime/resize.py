"""What Ray Train's controller of an elastic run does not do by itself: save before a resize, and wait for room cheaply."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.train import PreemptionInfo
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client

ASK_S = 1.0
"""Seconds between two looks for room, between which Ray's answer stays the same."""
CLAIM_S = 60
"""How long Ray reserves room for a run that it no longer hears of; it hears of each every 20 s."""
SAVE_S = 120.0
"""How long a group may take to reach its next checkpoint; then it is resized without one."""


class SaveBeforeResize(ControllerCallback, WorkerGroupCallback):
    """Waits for the workers' checkpoint between Ray's decision to resize the group and the act.

    Ray ends the workers in the middle of a step. They are told first, the way Ray tells of a preemption, but of no node: they
    save, and end by themselves. Ray passes callbacks that are not ``UserCallback`` on to its controller, for ends like this one.
    """

    def __init__(self) -> None:
        self._group: Any = None

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Remembers the group that would have to save."""
        self._group = worker_group

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Forgets the group: what is started after it has nothing to save yet."""
        del worker_group
        self._group = None

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Tells the workers, and waits until all of them have returned.

        Not those of a group that is replaced because it failed: it goes on from its last checkpoint.
        """
        del resize_decision
        if self._group is None:
            return
        notice = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={})
        until = time.monotonic() + SAVE_S
        try:
            status = self._group.poll_status(timeout=SAVE_S)
            if not status.errors:
                ray.get([w.actor.mark_preempt.remote(notice) for w in self._group.get_workers()], timeout=SAVE_S)
            while not status.errors and not status.finished and time.monotonic() < until:
                time.sleep(0.2)
                status = self._group.poll_status(timeout=SAVE_S)  # it also hands on what the workers report
        except (ray.exceptions.RayError, TimeoutError):
            return  # a worker was lost meanwhile


class WaitForRoom(ControllerCallback):
    """Waits for room without a core of the head, and no longer than ``CLAIM_S`` for that of a run which was killed.

    Ray's controller looks without a pause, and its own claims last three minutes.
    """

    def __reduce__(self) -> tuple[Callable[[], WaitForRoom], tuple[()]]:
        """Shortens claims where it arrives, in the controller's process: Ray makes the first before it calls any hook."""
        return _shorten_claims, ()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Pauses where the controller has decided nothing: it then keeps the state itself, of which it else makes another."""
        if current_state is previous_state:
            time.sleep(ASK_S)


def _shorten_claims() -> WaitForRoom:
    autoscaling_coordinator_client.AUTOSCALING_REQUESTS_EXPIRE_TIME_S = CLAIM_S
    return WaitForRoom()
