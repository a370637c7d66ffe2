"""The watcher of spot notices against a metadata service of this machine: tokens, silence, nonsense, and what it weighs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from ltcore.runtime import spot
from ltcore.runtime.spot import ComputeEngine, Ec2, Notice, Unreachable, find_cloud, wait_for_notice
from tests.metadata import INSTANCE_ACTION, REBALANCE, Metadata, in_seconds, metadata_service


@pytest.fixture
def service() -> Iterator[Metadata]:
    with metadata_service() as made:
        yield made


PREEMPTED = "/computeMetadata/v1/instance/preempted"


def test_ec2_wants_a_token_and_is_asked_for_one_once(service: Metadata) -> None:
    cloud = Ec2(service.endpoint)
    assert cloud.notice() is None
    assert cloud.notice() is None
    assert service.asked.count("PUT /latest/api/token") == 1
    service.take_back_in(100)
    notice = cloud.notice()
    assert notice is not None and notice.why == "EC2 spot interruption"
    assert 97 < notice.seconds_left <= 100


def test_a_token_that_has_expired_is_replaced(service: Metadata) -> None:
    cloud = Ec2(service.endpoint)
    assert cloud.notice() is None
    service.token = "another"
    service.answers[REBALANCE] = f'{{"noticeTime": "{in_seconds(0)}"}}'
    assert cloud.notice() == Notice(120.0, "EC2 rebalance recommendation")
    service.accepts_tokens = False
    with pytest.raises(Unreachable, match="no token"):
        cloud.notice()


@pytest.mark.parametrize("said", ["{}", '{"time": 7}', '{"time": "soon"}', '{"time": "2026-01-01T00:00:00"}'])
def test_a_notice_that_does_not_say_when_counts_as_one_all_the_same(service: Metadata, said: str) -> None:
    service.answers[INSTANCE_ACTION] = said
    assert Ec2(service.endpoint).notice() == Notice(120.0, "EC2 spot interruption")


@pytest.mark.parametrize(("seconds", "left"), [(-1000, 0), (10**9, 1200)])
def test_the_time_that_is_left_has_bounds(service: Metadata, seconds: int, left: float) -> None:
    service.take_back_in(seconds)
    assert Ec2(service.endpoint).notice() == Notice(left, "EC2 spot interruption")


def test_compute_engine_is_told_apart_and_gives_30_s(service: Metadata) -> None:
    service.accepts_tokens = False
    service.answers[PREEMPTED] = "FALSE"
    cloud = find_cloud([service.endpoint])
    assert isinstance(cloud, ComputeEngine)
    service.answers[PREEMPTED] = "TRUE"
    assert wait_for_notice(cloud, 0.01) == Notice(30.0, "Compute Engine preemption")


@pytest.mark.parametrize("answer", ["", "<html>a portal that wants a login</html>", "x" * 10**6, "[]", "[" * 4000])
def test_a_portal_that_answers_everything_is_no_cloud(service: Metadata, answer: str) -> None:
    service.any_answer = answer
    assert find_cloud([service.endpoint], 0) is None


def test_answers_are_read_up_to_a_bound(service: Metadata) -> None:
    service.answers["/long"] = "x" * 10**6
    assert spot.ask(f"{service.endpoint}/long") == "x" * spot.MOST_BYTES


def test_silence_for_minutes_ends_the_watch_and_a_moment_of_it_does_not(
    service: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Flaky:
        turns: list[Notice | None] = field(default_factory=list)

        def notice(self) -> Notice | None:
            if not self.turns:
                raise Unreachable("gone")
            turn = self.turns.pop(0)
            if turn is None:
                raise Unreachable("for a moment")
            return turn

    monkeypatch.setattr(spot, "LOST_ANSWERS", 3)
    told = Notice(1.0, "told")
    assert wait_for_notice(Flaky([None, None, told]), 0.0) == told  # type: ignore[arg-type]
    assert wait_for_notice(Flaky([None, None, None, told]), 0.0) is None  # type: ignore[arg-type]


def test_a_machine_without_metadata_is_told_so_in_one_line_and_nothing_fails() -> None:
    command = [sys.executable, "-m", "ltcore.runtime.spot", "--endpoint", "http://127.0.0.1:9", "--found-s", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and "nothing to watch" in done.stdout


def test_it_weighs_little_while_it_waits() -> None:
    say = "import sys, ltcore.runtime.spot; print(*sys.modules); print(open('/proc/self/status').read())"
    said = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, timeout=60).stdout
    modules, status = said.split("\n", 1)
    assert not {"ray", "torch", "numpy", "pyarrow"} & set(modules.split())
    assert int(status.split("VmHWM:")[1].split()[0]) < 40 * 1024, "KiB at most, as Linux counts it"


def test_the_drain_is_tried_again_until_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        tries.append(command)
        return subprocess.CompletedProcess(command, 1 if len(tries) == 1 else 0, "", "the head does not answer")

    monkeypatch.setattr(spot.subprocess, "run", run)
    monkeypatch.setattr(spot.time, "sleep", lambda _: None)
    assert spot.drain(Notice(120.0, "told"))
    assert [command[1:3] for command in tries] == [["-m", "ltcore.runtime.drain"]] * 2
    assert 100 <= int(tries[0][3]) <= 110, "what is left without the margin"
    assert "the head does not answer" in capsys.readouterr().err


def test_a_drain_that_is_never_taken_is_given_up_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "no"))
    assert not spot.drain(Notice(1.0, "told"))


def test_the_notice_is_heeded_that_follows_a_recommendation(
    service: Metadata, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def drain(notice: Notice, _node: object) -> bool:
        told.append(notice.why)
        if len(told) == 2:
            service.take_back_in(100)
        return len(told) > 1  # Ray does not take the first one

    monkeypatch.setattr(spot, "drain", drain)
    service.answers[REBALANCE] = f'{{"noticeTime": "{in_seconds(0)}"}}'
    assert spot.main(["--endpoint", service.endpoint, "--every-s", "0.01"]) == 0
    assert told == ["EC2 rebalance recommendation"] * 2 + ["EC2 spot interruption"]
    assert capsys.readouterr().out.count("draining this node") == 3


def test_a_recommendation_that_is_never_taken_is_not_tried_for_ever(
    service: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(spot, "drain", lambda notice, node: told.append(notice.why) is not None)
    monkeypatch.setattr(spot, "LOST_ANSWERS", 1)
    service.answers[REBALANCE] = f'{{"noticeTime": "{in_seconds(0)}"}}'
    threading.Timer(1.0, service.take_back_in, [100]).start()
    assert spot.main(["--endpoint", service.endpoint, "--every-s", "0.01"]) == 1  # nor is the last one
    assert told == ["EC2 rebalance recommendation"] * spot.RECOMMENDED_TRIES + ["EC2 spot interruption"]


def test_a_recommendation_is_tried_once_so_that_the_notice_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[object] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        tries.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no")

    monkeypatch.setattr(spot.subprocess, "run", run)
    assert not spot.drain(Notice(120.0, "EC2 rebalance recommendation")) and len(tries) == 1
