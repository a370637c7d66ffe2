"""Signs of life: workers tell one small actor how far they are; the driver shows it, and notices who falls silent.

A run that has begun and then says nothing hangs: its process is ended, and whoever started it starts it again from its last
checkpoint. A run that has not begun waits, for another tenant or for a machine that is not there yet, which is no fault.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ltcore.evaluation.catalog import VALIDATION
from ltcore.retry import listeners
from ltcore.runtime.cluster import secret_environment
from ltcore.runtime.poller import Poller

NAMESPACE = "ltcore"
SAVE_S = 30.0
"""How long runs may take to save a checkpoint before they are ended."""
BEGIN_S = 1800.0
"""Silence that is allowed between the start of a run's process and its first step: data are fetched and decoded there."""


@ray.remote(num_cpus=0)
class HeartbeatActor:
    """Latest state of every run that was ever heard of, a few numbers each; and what only memory may hold."""

    def __init__(self, secrets: dict[str, str], nonce: str) -> None:
        self._runs: dict[str, dict[str, Any]] = {}
        self._secrets, self._nonce = secrets, nonce
        self._stop = False

    def beat(self, run: str, state: dict[str, Any]) -> bool:
        """Takes the latest numbers of a run. Returns whether it is to save a checkpoint and end."""
        known = self._runs.get(run, {})
        self._runs[run] = {**known, **state, "beats": known.get("beats", 0) + 1}  # a change also where nothing else has
        return self._stop

    def stop(self) -> None:
        """Answers every sign of life with the request to save a checkpoint and end."""
        self._stop = True

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
    options = HeartbeatActor.options(  # type: ignore[attr-defined]
        name=name, namespace=NAMESPACE, scheduling_strategy=here, max_restarts=-1
    )
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
        self._answer: Any = None
        self._stop = False
        if self._actor is not None:
            self._process = ray.get_runtime_context().get_node_id(), os.getpid()
            # what an earlier process of the run sent stays, for those who look; this one has yet to fetch and decode its data
            self._send({"begun": False})

    def stop_requested(self) -> bool:
        """Tells whether the driver answered a sign of life with the request to save and end. Never waits."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # the driver is gone, and with it whoever could ask
                self._stop = ray.get(self._answer)
            self._answer = None
        return self._stop

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        """Sends how far an epoch is, where nothing was sent for a while."""
        if time.monotonic() - self._sent > self._every_s:
            self._send({"begun": True, "epoch": epoch, "images_seen": images_seen, "total_images": total_images})

    def alive(self) -> None:
        """Tells that the run waits for its storage, or decodes its data, which is no hang; where nothing was sent for a while."""
        if time.monotonic() - self._sent > self._every_s:
            self._send({})

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Sends the numbers of a finished epoch."""
        kept = ("epoch", "images_seen", "images_per_s", "data_wait_fraction", "time_s")
        total = round(metrics["images_seen"] / metrics["progress"])
        shown = {key: value for key, value in metrics.items() if key in kept or key.startswith(VALIDATION)}
        self._send({"begun": True, "total_images": total, **shown})

    def over(self) -> None:
        """Says that this process is through with the run, so that silence means nothing from now on."""
        self._send({"over": True})

    def _send(self, state: dict[str, Any]) -> None:
        if self._actor is not None:
            # all that judging its silence takes: an actor that was started again knows of no earlier sign
            whole = {"over": False, "process": self._process, **state}
            answer = self._actor.beat.remote(self._run, whole)
            self._answer = answer if self._answer is None else self._answer  # the oldest one arrives first
            self._sent = time.monotonic()


class Watchdog(Poller):
    """The driver's end: polls the actor, passes snapshots on, ends runs that hang, and asks for a stop at a deadline.

    Args:
        actor: the heartbeat actor.
        on_snapshot: hears the latest state of all runs.
        stall_s: silence after which a run hangs; on one machine also that of all runs before the first has begun.
        deadline_s: when to ask for a stop, from now; None: never.
        say: takes a message for people.
        waited_for: what runs that have not begun wait for, in words, where others decide about it: on a cluster. None: nobody
            does, so that a machine on which nothing begins is stalled.
    """

    def __init__(
        self,
        actor: Any,
        on_snapshot: Callable[[dict[str, dict[str, Any]]], None],
        *,
        stall_s: float,
        deadline_s: float | None,
        say: Callable[[str], None],
        waited_for: Callable[[], str] | None = None,
    ) -> None:
        super().__init__("watchdog", 1.0)
        self._last: dict[str, dict[str, Any]] = {}
        self._actor, self._on_snapshot, self._say = actor, on_snapshot, say
        self._stall_s, self._deadline = stall_s, None if deadline_s is None else time.monotonic() + deadline_s
        self._moved = time.monotonic()
        """When anything was last heard of."""
        self._moved_of: dict[str, float] = {}
        """When each run was last heard of."""
        self._waited_for = waited_for
        listeners["watchdog"] = self.touch  # this process may wait for the storage itself
        self.stalled = threading.Event()
        self.out_of_time = threading.Event()
        self.saving = threading.Event()
        """Runs are asked to save a checkpoint and end, and no other one begins."""
        self._patience_ends = 0.0

    @property
    def stop_wanted(self) -> bool:
        """Tells whether runs are to be ended at once: after silence, or because they took too long to save."""
        return self.stalled.is_set() or (self.saving.is_set() and time.monotonic() > self._patience_ends)

    def save_and_end(self) -> None:
        """Lets every run save a checkpoint and end, within ``SAVE_S``. Only notes it: a handler of signals may call it."""
        if not self.saving.is_set():
            self._patience_ends = time.monotonic() + SAVE_S
            self.saving.set()

    def lost(self, run: str) -> None:
        """Notes that nobody will go on with a run, whose process could not say so itself."""
        self._actor.beat.remote(run, {"over": True})

    def end(self) -> None:
        super().end()
        listeners.pop("watchdog", None)  # which holds the actor, and with it the W&B key

    def touch(self) -> None:
        """Notes activity that is no sign of life of a run: a trial ended, a stage began."""
        self._moved = time.monotonic()

    def poll(self) -> bool:
        """Asks the actor once, judges silence and the deadline, and passes on the request to save and end."""
        try:
            known: dict[str, dict[str, Any]] = ray.get(self._actor.snapshot.remote(), timeout=10)
            now = {**self._forgotten(known), **known}
        except ray.exceptions.RayActorError:
            self._excuse()  # nobody has heard anything, whoever spoke
            now = self._last
        except (ray.exceptions.RayError, TimeoutError):
            now = self._last  # counts as silence
        moved = [run for run, state in now.items() if state != self._last.get(run)]
        if moved:
            self.touch()
            self._moved_of.update(dict.fromkeys(moved, self._moved))
            self._last = now
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.out_of_time.set()
            self.save_and_end()
        if self.saving.is_set():
            self._actor.stop.remote()  # each time: an actor that was started again knows nothing of it
        self._judge(now)
        if moved:
            self._on_snapshot(now)
        return True

    def _excuse(self) -> None:
        """Begins to wait anew for a sign of every run."""
        self.touch()
        self._moved_of = dict.fromkeys(self._moved_of, self._moved)

    def _forgotten(self, known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Returns the last state of runs that an actor, started again, has not heard of, as far as they may still be running."""
        busy = [state.get("process") for state in known.values()]
        return {
            run: state
            for run, state in self._last.items()
            if run not in known and not state.get("over", True) and state["process"] not in busy
        }

    def _judge(self, now: Mapping[str, Mapping[str, Any]]) -> None:
        running = {run: state for run, state in now.items() if not state.get("over", True)}
        for run, state in running.items():
            silent_s = time.monotonic() - self._moved_of[run]
            # before its first step a run fetches and decodes data, which takes as long as it takes
            if silent_s > (self._stall_s if state.get("begun") else max(self._stall_s, BEGIN_S)):
                self._moved_of[run] = time.monotonic()
                end_process(*state["process"])
                self._last = {**self._last, run: {**state, "over": True}}  # until it is heard of again
                self._say(
                    f"{run} has said nothing for {silent_s:.0f} s: it is ended, and goes on from its last checkpoint"
                )
        if running or time.monotonic() - self._moved <= self._stall_s:
            return
        if self._waited_for is None:
            self.stalled.set()
        else:
            self.touch()
            self._say(f"waiting for {self._waited_for()}")


def end_process(node: str, pid: int) -> None:
    """Ends one of Ray's processes on a node, without waiting, also one that no longer reacts to anything."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    _kill.options(scheduling_strategy=there).remote(pid)


@ray.remote(num_cpus=0, max_retries=0)
def _kill(pid: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # where there is no /proc, Ray's own note of the process has to do
        if not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            return  # it has ended, and another program has its number
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
