"""Who counts as silent, judged without Ray: the actor's own class, a clock of the test, and no process that is ended."""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

from ltcore.runtime import heartbeat
from ltcore.runtime.heartbeat import BEGIN_S, HeartbeatActor, HeartbeatSender, Watchdog
from ltcore.runtime.poller import Poller

STALL_S = 300.0


class Direct:
    """Calls what Ray would call in another process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *values: copy.deepcopy(getattr(self._actor, name)(*values)))


class Scene:
    """A driver, its watchdog, and the processes of one run, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ended = 1000.0, list[tuple[str, int]]()
        meta: Any = HeartbeatActor
        actor = Direct(meta.__ray_metadata__.modified_class({}, "nonce"))
        told = SimpleNamespace(
            get=lambda answer, timeout=None: answer,
            wait=lambda answers, timeout: (answers, []),
            get_actor=lambda name, namespace: actor,
            get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "node"),
            exceptions=ray.exceptions,
        )
        monkeypatch.setattr(heartbeat, "ray", told)
        monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(heartbeat, "listeners", {})
        monkeypatch.setattr(heartbeat, "end_process", lambda node, pid: self.ended.append((node, pid)))
        self.watch = Watchdog(actor, lambda _: None, stall_s=STALL_S, deadline_s=None, say=lambda _: None)

    def starts(self) -> HeartbeatSender:
        sender = HeartbeatSender("heartbeat", "trial 00000")
        self.watch.poll()
        return sender

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.watch.poll()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_each_process_of_a_run_may_decode_its_data_before_its_first_step(scene: Scene) -> None:
    """On a node that has none yet: what an earlier process did elsewhere says nothing of it."""
    for _ in range(2):
        sender = scene.starts()
        scene.passes(BEGIN_S - 1)
        assert not scene.ended
        sender.beat(0, 128, 1000)
        scene.passes(STALL_S - 1)
        assert not scene.ended
        sender.over()
        scene.passes(0)
    scene.starts()
    scene.passes(BEGIN_S + 1)
    assert len(scene.ended) == 1


def test_one_that_trained_and_falls_silent_is_ended(scene: Scene) -> None:
    sender = scene.starts()
    scene.now += 3
    sender.beat(0, 128, 1000)
    scene.passes(0)
    scene.passes(STALL_S + 1)
    assert len(scene.ended) == 1 and scene.ended[0][0] == "node"


def test_work_that_takes_long_is_no_silence_and_is_not_told_in_every_piece(scene: Scene) -> None:
    sender = scene.starts()
    scene.now += 3
    sender.beat(0, 128, 1000)
    for _ in range(100):  # a copy to a slow store
        sender.alive()
        sender.alive()
        scene.passes(STALL_S / 10)
    assert not scene.ended
    (state,) = scene.watch._actor.snapshot.remote().values()
    assert state["beats"] == 101 and state["images_seen"] == 128


def test_a_run_whose_process_was_lost_for_good_is_not_waited_for(scene: Scene) -> None:
    sender = scene.starts()
    scene.now += 3
    sender.beat(0, 128, 1000)
    scene.passes(0)
    scene.watch.lost("trial 00000")
    scene.passes(1)
    scene.passes(STALL_S + 1)
    assert not scene.ended and scene.watch.stalled.is_set(), "nothing runs"


def test_an_actor_that_is_gone_says_nothing_of_the_runs(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = scene.starts()
    scene.now += 3
    sender.beat(0, 128, 1000)
    scene.passes(0)
    with monkeypatch.context() as patch:
        gone = ray.exceptions.ActorDiedError()

        def dead(*_: Any, **__: Any) -> Any:
            raise gone

        patch.setattr(heartbeat.ray, "get", dead)
        scene.passes(STALL_S + 1)
    assert not scene.ended and not scene.watch.stalled.is_set()
    scene.watch._actor.snapshot.remote().clear()  # as the one that Ray starts in its place
    sender.beat(0, 256, 1000)
    scene.passes(0)
    scene.passes(STALL_S + 1)
    assert len(scene.ended) == 1


def test_the_time_ends_and_a_silent_run_too_though_nothing_can_be_printed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    scene.watch = Watchdog(scene.watch._actor, full, stall_s=STALL_S, deadline_s=3000.0, say=full)
    sender = HeartbeatSender("heartbeat", "trial 00000")
    sender.beat(1, 8, 100)
    for seconds in (0.0, STALL_S + 1, 3000.0):
        scene.now += seconds
        with contextlib.suppress(OSError):  # as the thread does
            scene.watch.poll()
    assert len(scene.ended) == 1 and scene.watch.out_of_time.is_set() and scene.watch.saving.is_set()


def test_a_look_that_fails_is_said_once_and_repeated(caplog: pytest.LogCaptureFixture) -> None:
    looks = list[int]()

    class Failing(Poller):
        def poll(self) -> bool:
            looks.append(len(looks))
            if len(looks) < 3:
                raise ValueError("not now")
            return False

    poller = Failing("failing", 0.001)
    poller.start()
    poller.join(10)
    assert looks == [0, 1, 2] and not poller.is_alive()
    assert [record.getMessage() for record in caplog.records] == [
        "ltcore-failing: a look failed (ValueError: not now) and is repeated"
    ]


def test_who_ends_the_watch_lets_the_actor_go(scene: Scene) -> None:
    assert heartbeat.listeners
    scene.watch.end()
    assert not heartbeat.listeners
