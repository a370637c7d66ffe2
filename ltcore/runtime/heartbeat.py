"""Signs of life: workers tell one small actor how far they are; the driver shows it, and notices when all fall silent."""

from __future__ import annotations

import hmac
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ltcore.runtime.cluster import secret_environment
from ltcore.runtime.poller import Poller

NAMESPACE = "ltcore"
NODE_WAIT_S = 1800.0
"""Longest wait for nodes that the autoscaler says it is starting."""


@ray.remote(num_cpus=0)
class HeartbeatActor:
    """Latest state of every run that was ever heard of, a few numbers each; and what only memory may hold."""

    def __init__(self, secrets: dict[str, str], nonce: str) -> None:
        self._runs: dict[str, dict[str, Any]] = {}
        self._secrets, self._nonce = secrets, nonce

    def beat(self, run: str, state: dict[str, Any]) -> None:
        """Takes the latest numbers of a run."""
        known = self._runs.get(run, {})
        self._runs[run] = {**known, **state, "beats": known.get("beats", 0) + 1}  # a change also where nothing else has

    def secrets(self, nonce: str) -> dict[str, str]:
        """Returns the W&B key to callers that know the nonce of the driver's jobs.

        Any job can find this actor by its name.
        """
        if not hmac.compare_digest(nonce, self._nonce):
            raise PermissionError("The nonce is not that of this driver's jobs, so the W&B key is not handed over.")
        return self._secrets

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Returns the latest numbers of every run."""
        return self._runs


def start_heartbeat(name: str, nonce: str) -> Any:
    """Starts the actor of one driver, with the W&B key that its workers may need.

    It stays on the driver's node: Ray would put an actor without demands on any node, also on one that is taken away.
    ``nonce`` travels only in the jobs, never in names or settings, which Ray shows to everyone.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = HeartbeatActor.options(name=name, namespace=NAMESPACE, scheduling_strategy=here)  # type: ignore[attr-defined]
    return options.remote(secret_environment(), nonce)


def adopt_secrets(heartbeat: str, nonce: str) -> None:
    """Takes the driver's W&B key into this process's environment.

    It travels only through memory: variables of a runtime environment would end up in Ray's logs on every node.
    """
    if not heartbeat:
        return
    try:
        actor = ray.get_actor(heartbeat, namespace=NAMESPACE)
        found: Any = ray.get(actor.secrets.remote(nonce), timeout=60)
    except (ValueError, ray.exceptions.RayError):  # the driver is gone, and this run with it
        return
    for key, value in found.items():
        os.environ.setdefault(key, value)


class HeartbeatSender:
    """A worker's end. Sends at most every ``every_s`` seconds, except for finished epochs; never waits."""

    def __init__(self, heartbeat: str, run: str, every_s: float = 2.0) -> None:
        self._run, self._every_s, self._sent = run, every_s, 0.0
        try:
            self._actor: Any = ray.get_actor(heartbeat, namespace=NAMESPACE) if heartbeat else None
        except ValueError:  # the driver that wanted to hear is gone
            self._actor = None

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        """Sends how far an epoch is, where nothing was sent for a while."""
        if time.monotonic() - self._sent > self._every_s:
            self._send({"epoch": epoch, "images_seen": images_seen, "total_images": total_images})

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Sends the numbers of a finished epoch."""
        kept = ("epoch", "images_seen", "images_per_s", "val/balanced_accuracy", "data_wait_fraction", "time_s")
        total = round(metrics["images_seen"] / metrics["progress"])
        self._send({"total_images": total, **{key: metrics[key] for key in kept if key in metrics}})

    def _send(self, state: dict[str, Any]) -> None:
        if self._actor is not None:
            self._actor.beat.remote(self._run, state)
            self._sent = time.monotonic()


class Watchdog(Poller):
    """The driver's end: polls the actor, passes snapshots on, and asks for a stop after silence or at a deadline."""

    def __init__(
        self,
        actor: Any,
        on_snapshot: Callable[[dict[str, dict[str, Any]]], None],
        *,
        stall_s: float,
        deadline_s: float | None,
        nodes_are_coming: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__("watchdog", 1.0)
        self._last: Any = None
        self._actor, self._on_snapshot = actor, on_snapshot
        self._stall_s, self._deadline = stall_s, None if deadline_s is None else time.monotonic() + deadline_s
        self._moved = self._heard = time.monotonic()
        """When the last excuse for silence was seen, and when a run was last heard of."""
        self._nodes_are_coming = nodes_are_coming
        self.stalled = threading.Event()
        self.out_of_time = threading.Event()

    @property
    def stop_wanted(self) -> bool:
        """Tells whether runs are to be ended: after silence, or because time is up."""
        return self.stalled.is_set() or self.out_of_time.is_set()

    def touch(self) -> None:
        """Notes activity that is no sign of life of a run: a trial ended, a stage began."""
        self._moved = self._heard = time.monotonic()

    def poll(self) -> bool:
        """Asks the actor once, and judges silence and the deadline."""
        try:
            now = ray.get(self._actor.snapshot.remote(), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):
            now = self._last  # counts as silence
        if now != self._last:
            self.touch()
            self._last = now
            self._on_snapshot(now)
        silent_s = time.monotonic() - self._moved
        waits = silent_s > self._stall_s / 2 and time.monotonic() - self._heard < NODE_WAIT_S
        if waits and self._nodes_are_coming():
            self._moved = time.monotonic()  # machines boot and are set up for minutes, which is no stall
        elif silent_s > self._stall_s:
            self.stalled.set()
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.out_of_time.set()
        return True
