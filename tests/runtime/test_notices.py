"""What Ray's side makes of notices, with Ray's answers put in its place: who saves, who starts again, what is drained."""

from __future__ import annotations

import pickle
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ltcore.config.records import Notice, RunRecord, Start, now
from ltcore.errors import ConfigError, LtcoreError
from ltcore.runtime import drain, launch, ray_context, ray_task, ray_train, resize
from ltcore.runtime.placement import Demand, Placement, Scaling
from ltcore.runtime.ray_context import ReportingContext, execute_on_node
from ltcore.training.context import Interrupted
from ltcore.training.record import RunInfo
from ltcore.training.run import Job
from ltcore.tuning import runs
from tests.records import run_record


def job(folder: Path, **fields: Any) -> Job:
    return Job(config={}, data_uri="data", run_uri=str(folder), info=RunInfo(id="run"), **fields)


def start(notice: Notice | None = None) -> Start:
    return Start(images_seen=0, world=1, host="node", at=now(), notice=notice, left_at=8 if notice else None)


# --- Ray Train --------------------------------------------------------------------------------------------------------


def test_a_run_that_was_told_to_leave_is_started_again_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        run_record(starts=(start("preemption"),)),
        run_record(starts=(start("preemption"), start("resize"))),
        run_record(starts=(start("preemption"), start("resize"), start()), status="stopped", reason="at a rung"),
    ]
    left = list(records)
    trainer = SimpleNamespace(fit=lambda: left.pop(0).write(tmp_path))
    monkeypatch.setattr(ray_train, "_trainer", lambda *_: trainer)
    assert ray_train.fit_with_train(job(tmp_path), Scaling(), None, []) == records[-1]
    assert left == []


def test_a_run_that_failed_after_a_notice_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_record(starts=(start("preemption"), start()), status="failed", reason="the loss is not finite")
    monkeypatch.setattr(ray_train, "_trainer", lambda *_: SimpleNamespace(fit=lambda: record.write(tmp_path)))
    with pytest.raises(LtcoreError, match="the loss is not finite"):
        ray_train.fit_with_train(job(tmp_path), Scaling(), None, [])


@pytest.mark.parametrize("scaling", [Scaling(workers=1, max_workers=2), Scaling(workers=2)])
def test_preemptions_and_waiting_for_room_cost_no_failure(tmp_path: Path, scaling: Scaling) -> None:
    trainer = ray_train._trainer(job(tmp_path), scaling, None, [])
    limits = trainer.run_config.failure_config
    assert (limits.max_preemption_failures, limits.controller_failure_limit, limits.max_failures) == (-1, -1, 3)
    own = {type(each): each for each in trainer.run_config.callbacks if type(each).__module__ == resize.__name__}
    elastic = scaling.max_workers > scaling.workers
    assert own.keys() == ({resize.SaveBeforeResize, resize.WaitForRoom} if elastic else set()), (
        "nothing else is resized"
    )
    assert set(own.values()) <= set(trainer._create_default_callbacks()), "Ray hands them to its controller"


@pytest.mark.parametrize(("nodes", "notice"), [(None, None), ({"node": [0]}, "preemption"), ({}, "resize")])
def test_ray_trains_word_for_it(nodes: Any, notice: Notice | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train

    said = None if nodes is None else ray.train.PreemptionInfo(deadline_ms=None, preempted_node_to_ranks=nodes)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: said)
    assert ray_train._TrainContext.notice(SimpleNamespace(_asked=0.0)) == notice  # type: ignore[arg-type]


@dataclass
class Group:
    """A worker group, by the states that it is polled in."""

    states: list[tuple[bool, bool]]
    """(finished, failed) of each poll; the last one stays."""
    told: list[Any] = field(default_factory=list)

    def poll_status(self, timeout: float) -> Any:
        assert timeout > 0
        finished, failed = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return SimpleNamespace(finished=finished, errors={0: "lost"} if failed else {})

    def get_workers(self) -> list[Any]:
        mark = SimpleNamespace(remote=lambda notice: self.told.append(notice))
        return [SimpleNamespace(actor=SimpleNamespace(mark_preempt=mark))] * 2


def saves_before_resize(group: Group, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the callback waited."""
    waits: list[float] = []
    monkeypatch.setattr(ray, "get", lambda refs, timeout: refs)
    monkeypatch.setattr(resize.time, "sleep", waits.append)
    callback = resize.SaveBeforeResize()
    callback.before_controller_execute_resize_decision(None)  # of the first group, before which there is none
    callback.after_worker_group_training_start(group)
    callback.before_controller_execute_resize_decision(None)
    callback.before_worker_group_shutdown(group)
    callback.before_controller_execute_resize_decision(None)
    return len(waits)


def test_a_resize_waits_for_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group([(False, False), (False, False), (True, False)])
    assert saves_before_resize(group, monkeypatch) == 2
    assert [notice.preempted_ranks for notice in group.told] == [[], []], "both workers, once"


def test_a_group_that_failed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group([(False, True)])
    assert saves_before_resize(group, monkeypatch) == 0
    assert group.told == []
    assert saves_before_resize(Group([(False, False), (False, True)]), monkeypatch) == 1


def test_a_controller_that_waits_for_room_pauses_and_one_that_acts_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.controller.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

    waits: list[float] = []
    monkeypatch.setattr(resize.time, "sleep", waits.append)
    decisions = [NoopDecision(), ResizeDecision(num_workers=1, resources_per_worker={})]
    policy = SimpleNamespace(make_decision_for_non_running_worker_group=lambda: decisions.pop(0))
    controller: Any = SimpleNamespace(_scaling_policy=policy, _get_run_attempt_id=lambda: "attempt")
    before: Any = object()
    for waited in ([resize.ASK_S], []):
        waits.clear()
        step = TrainController._make_and_handle_scaling_decision_for_non_running_worker_group(controller, before)
        resize.WaitForRoom().after_controller_state_update(before, step.next_state)
        assert waits == waited


def test_the_claim_of_a_run_that_was_killed_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client as client

    monkeypatch.setattr(client, "AUTOSCALING_REQUESTS_EXPIRE_TIME_S", client.AUTOSCALING_REQUESTS_EXPIRE_TIME_S)
    pickle.loads(pickle.dumps(resize.WaitForRoom()))  # as it comes into the controller's process
    asked: list[float] = []
    remote = SimpleNamespace(remote=lambda **given: asked.append(given["expire_after_s"]))
    monkeypatch.setattr(
        client, "get_or_create_autoscaling_coordinator", lambda: SimpleNamespace(request_resources=remote)
    )
    monkeypatch.setattr(client, "build_train_resource_request", lambda *_: ([], []))
    monkeypatch.setattr(ray, "get", lambda *_, **__: None)
    client.TrainAutoscalingCoordinatorClient("run").maybe_send_resource_request(None, 1)
    assert asked == [resize.CLAIM_S]
    assert client.AUTOSCALING_REQUESTS_INTERVAL_S * 2 < resize.CLAIM_S, "a living run renews it in time"


# --- trials and tasks -------------------------------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReportingContext:
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    here = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    return ReportingContext(job(tmp_path))


def drained(monkeypatch: pytest.MonkeyPatch, **nodes: int) -> None:
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: nodes)


def test_a_trial_hears_of_its_own_node_and_once_of_each_time(
    context: ReportingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained(monkeypatch, elsewhere=5000)
    assert context.notice() is None
    drained(monkeypatch, here=5000)
    assert context.notice() == "preemption" and context.taken_at_s == 5.0
    assert context.notice() is None, "what it was told it knows"
    drained(monkeypatch, here=9000)  # the notice, after a recommendation
    assert context.notice() == "preemption" and context.taken_at_s == 9.0
    drained(monkeypatch, here=0)
    assert context.notice() is None


def test_a_trial_that_is_not_told_when_hears_of_it_once(
    context: ReportingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained(monkeypatch, here=0)
    assert [context.notice(), context.notice()] == ["preemption", None]
    assert context.taken_at_s > 0


def test_it_is_asked_every_two_seconds_and_never_on_a_private_ray(
    context: ReportingContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drained(monkeypatch)
    assert not context.notice_due()
    context._asked -= 3
    assert context.notice_due()
    context.notice()
    assert not context.notice_due()
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    private = ReportingContext(job(tmp_path))
    private._asked -= 3
    assert not private.notice_due()


def test_a_process_waits_for_the_end_of_its_node_and_goes_on_if_that_does_not_come(
    context: ReportingContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waited: list[float] = []
    ends: list[Any] = [*[Interrupted("preemption", run_record())] * 2, run_record()]

    def execute(*_: object) -> Any:
        end = ends.pop(0)
        if isinstance(end, Exception):
            context.taken_at_s += 1000.0
            raise end
        return end

    monkeypatch.setattr(ray_context, "execute", execute)
    monkeypatch.setattr(ray_context.time, "time", lambda: 990.0)
    monkeypatch.setattr(ray_context.time, "sleep", waited.append)
    assert execute_on_node(job(tmp_path), context) == run_record()
    assert waited == [10.0 + ray_context.TAKEN_S, 1010.0 + ray_context.TAKEN_S], "also where it is announced again"


@pytest.mark.parametrize(("gpus", "watcher", "alone"), [(0, "0", False), (1, "0", True), (0, "1", True)])
def test_no_process_is_kept_for_another_run_on_a_gpu_or_where_nodes_are_taken_away(
    gpus: int, watcher: str, alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", watcher)
    for name in ("run_job", "run_job_alone"):
        task = SimpleNamespace(remote=lambda *_, name=name: name)
        monkeypatch.setattr(ray_task, name, SimpleNamespace(options=lambda task=task, **_: task))
    scaling = Scaling(gpus_per_worker=gpus)
    assert ray_task.submit(job(tmp_path), "trial", scaling) == ("run_job_alone" if alone else "run_job")
    assert ray_task.submit(job(tmp_path), "train", scaling) == "run_job", "which only drives, on the head"


def test_a_task_that_is_told_to_leave_returns_the_record_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = run_record(starts=(start("preemption"),))

    def execute(*_: object) -> None:
        ENDED.write(tmp_path)  # another command has taken the run over meanwhile
        raise Interrupted("preemption after epoch 1, step 8", left)

    monkeypatch.setattr(ray_task, "execute", execute)
    monkeypatch.setattr(ray_task, "begin", lambda *_: None)  # it is about the process, which here is that of the tests
    assert ray_task._run(job(tmp_path).to_json(), "trial", Scaling()) == left
    assert ray_train.told_to_leave(left)


ENDED = run_record(starts=(start("preemption"), start()), status="finished")


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[RunRecord | None]:
    """What tasks return, one after the other; a reference is the number of tasks that were left when it was submitted."""
    left = [run_record(starts=(start("preemption"),)), run_record(starts=(start(), start("preemption"))), ENDED]

    def submit(*given: object) -> int:
        assert given == (given[0], "trial", Scaling()), "as it was submitted first"
        return len(left)

    for module in (launch, runs):
        monkeypatch.setattr(module, "submit", submit)
        monkeypatch.setattr(module, "result_of", lambda ref: left.pop(0))
        monkeypatch.setattr(module.ray, "wait", lambda refs, timeout: (list(refs), []))
    return left


def watchdog(saving: bool) -> Any:
    events = {"saving": saving, "stalled": False}
    flags = {name: SimpleNamespace(is_set=lambda on=on: on) for name, on in events.items()}
    return SimpleNamespace(**flags, stop_wanted=False, start=lambda: None, end=lambda: None, touch=lambda: None)


@pytest.mark.parametrize("saving", [False, True])
def test_a_task_that_was_told_to_leave_is_submitted_again_without_end(
    saving: bool, tasks: list[RunRecord | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("check_nodes", "start_heartbeat"):
        monkeypatch.setattr(launch, name, lambda *_: None)
    monkeypatch.setattr(launch, "Watchdog", lambda *_, **__: watchdog(saving))
    monkeypatch.setattr(launch, "saving_first", lambda *_: nullcontext())
    place = Placement("trial", Scaling(), Demand(1, 0, 0), 1, "")
    work = replace(job(tmp_path), config={"train": {"select": "val/accuracy"}})
    cluster = SimpleNamespace(local=True, describe=lambda: "a Ray")
    ended = launch.run_single(work, "run", place, cluster)  # type: ignore[arg-type]
    assert (ended, len(tasks)) == ((None, 2) if saving else (ENDED, 0)), "where all are to save and end, it is not"


def test_what_has_ended_is_not_canceled(monkeypatch: pytest.MonkeyPatch) -> None:
    canceled: list[int] = []
    monkeypatch.setattr(ray, "cancel", lambda ref, force: canceled.append(ref))
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: (refs[:num_returns:2], refs[1::2]))
    ray_task.cancel([1, 2, 3, 4])
    assert canceled == [2, 4]
    ray_task.cancel([])


@pytest.mark.parametrize("local", [False, True])
def test_an_interrupt_cancels_what_would_go_on(
    local: bool, tasks: list[RunRecord | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local Ray ends with the command, and canceling a task that ends in the same moment can crash Ray."""
    canceled: list[int] = []
    monkeypatch.setattr(ray, "cancel", lambda ref, force: canceled.append(ref))
    for name in ("check_nodes", "start_heartbeat"):
        monkeypatch.setattr(launch, name, lambda *_: None)
    monkeypatch.setattr(launch, "Watchdog", lambda *_, **__: watchdog(False))
    monkeypatch.setattr(launch, "saving_first", lambda *_: nullcontext())

    def wait(refs: list[int], timeout: float, num_returns: int = 1) -> tuple[list[int], list[int]]:
        if timeout:
            raise KeyboardInterrupt
        return [], refs

    monkeypatch.setattr(ray, "wait", wait)
    place = Placement("trial", Scaling(), Demand(1, 0, 0), 1, "")
    work = replace(job(tmp_path), config={"train": {"select": "val/accuracy"}})
    cluster: Any = SimpleNamespace(local=local, describe=lambda: "a Ray")
    with pytest.raises(KeyboardInterrupt):
        launch.run_single(work, "run", place, cluster)
    setup: Any = SimpleNamespace(placement=place, cluster=cluster)
    sweep = runs.Runs(setup, SimpleNamespace(), watchdog(False), "", "", "")  # type: ignore[arg-type]
    sweep.submit(job(tmp_path))
    sweep.cancel()
    assert len(canceled) == (0 if local else 2)


@pytest.mark.parametrize("saving", [False, True])
def test_a_run_of_a_sweep_as_well(saving: bool, tasks: list[RunRecord | None], tmp_path: Path) -> None:
    said: list[str] = []
    display: Any = SimpleNamespace(say=said.append, ended=lambda name, text: said.append(text))
    setup: Any = SimpleNamespace(
        placement=SimpleNamespace(engine="trial", scaling=Scaling()), sweep=SimpleNamespace(metric="loss")
    )
    sweep = runs.Runs(setup, display, watchdog(saving), "", "", "")
    running = {sweep.submit(job(tmp_path)): "baseline"}
    while running:
        with suppress(runs.TimeIsUp):
            sweep.wait_any(running)
    moved = "baseline: its node is taken away, so it goes on elsewhere"
    assert said == (["baseline: a checkpoint is saved"] if saving else [moved, moved, "baseline: done"])
    assert len(tasks) == (2 if saving else 0)


def test_the_baseline_moves_while_the_search_goes_on_and_is_else_left_to_its_end(
    tasks: list[RunRecord | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    setup: Any = SimpleNamespace(placement=SimpleNamespace(engine="trial", scaling=Scaling()))
    sweep = runs.Runs(setup, SimpleNamespace(say=said.append), watchdog(False), "", "", "")  # type: ignore[arg-type]
    sweep.move_beside()
    sweep.beside = {sweep.submit(job(tmp_path)): "baseline"}
    sweep.move_beside()
    sweep.wait_any({})  # as whoever waits for others does, such as for the start that trials share
    assert (len(said), len(tasks), sweep.beside) == (2, 1, {1: "baseline"})
    for outcome in (ENDED, LtcoreError("lost")):

        def result_of(ref: int, outcome: Any = outcome) -> Any:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(runs, "result_of", result_of)
        sweep.move_beside()
        assert sweep.beside == {1: "baseline"}


# --- the drain --------------------------------------------------------------------------------------------------------


def test_rays_own_command_is_given_this_machines_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.scripts import scripts

    taken: list[tuple[Any, ...]] = []
    monkeypatch.setattr(scripts.drain_node, "callback", lambda **given: taken.append(tuple(given.values())))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(drain, "own_nodes", lambda address: ["ab12"])
    assert drain.main(["110", "EC2 spot interruption"]) == 0
    assert drain.main(["0", "told", "cd34"]) == 0
    reason = "DRAIN_NODE_REASON_PREEMPTION"
    assert taken == [
        ("10.0.0.1:6379", "ab12", reason, "EC2 spot interruption", 110),
        ("10.0.0.1:6379", "cd34", reason, "told", 0),
    ]


def test_a_machine_without_ray_has_nothing_to_drain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ConfigError, match="No Ray runs on this machine"):
        drain.main(["110", "told"])
