"""Runs seen from outside: metrics that Ray exports, log lines that say whose they are, node-hours, secrets that stay away."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from wandb.sdk.lib.urls import DEFAULT_BASE_URL
from wandb.sdk.lib.wbauth import write_netrc_auth

from ltcore.runtime.cluster import forwarded_environment, secret_environment
from ltcore.training.record import RunInfo
from ltcore.training.run import Job
from ltcore.tuning.node_hours import NodeHours, kind_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

METRICS = {
    "epoch": 3,
    "train/loss": 1.25,
    "val/balanced_accuracy": 0.5,
    "images_per_s": 812.0,
    "data_wait_fraction": 0.125,
}


@pytest.fixture(scope="module")
def cluster(one_ray: Any) -> Any:
    return one_ray


def exported() -> str:
    """What Prometheus would read from this machine's node."""
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=5) as answer:
        return answer.read().decode()


def test_metrics_reach_rays_exporter_with_run_trial_and_rank(cluster: Any) -> None:
    from ltcore.runtime.metrics import RayMetrics

    RayMetrics("sweep-a", "trial 00003", 0).epoch({**METRICS, "memory_bytes": 2**30, "checkpoint_s": 0.25})
    lines: list[str] = []
    for _ in range(60):
        lines = [line for line in exported().splitlines() if line.startswith("ray_ltcore_")]
        if len(lines) >= 4:
            break
        time.sleep(1)
    found = {line.split("{")[0].removeprefix("ray_ltcore_"): line for line in lines}
    assert set(found) == {"images_per_s", "data_wait_fraction", "memory_bytes", "checkpoint_s"}
    assert all('run="sweep-a"' in line and 'trial="trial 00003"' in line and 'rank="0"' in line for line in lines)
    assert float(found["images_per_s"].split()[-1]) == 812.0


def test_a_log_line_says_whose_it_is(cluster: Any, capfd: pytest.CaptureFixture[str]) -> None:
    @ray.remote(num_cpus=0)
    def work() -> str:
        import contextlib
        import io

        from ltcore.runtime.metrics import RayMetrics

        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            RayMetrics("sweep-a", "trial 00003", 1).epoch(METRICS)
        return said.getvalue()

    line = ray.get(work.remote())
    assert (
        "run=sweep-a trial=trial 00003 rank=1 epoch=3 loss=1.2500 val/balanced_accuracy=0.5000 images_per_s=812" in line
    )


def test_node_hours_grow_while_a_node_is_there_and_go_on_after_an_interruption(cluster: Any) -> None:
    meter = NodeHours({"head": 1.0, "gpu": 0.5}, every_s=0.1)
    meter.start()
    time.sleep(1.5)
    meter.end()
    meter.join(5)
    assert 1.0 + 0.5 / 3600 < meter.hours()["head"] < 1.0 + 5 / 3600
    assert meter.hours()["gpu"] == 0.5
    assert meter.most_nodes == 1
    assert [kind_of(r) for r in ({"GPU": 1.0}, {"CPU": 4.0}, {"node:__internal_head__": 1.0})] == ["gpu", "cpu", "head"]


def test_a_wandb_key_is_for_memory_and_never_for_rays_logged_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "long-tails")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "store-secret")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    login = "key_of_wandb_login_of_at_least_40_letters"
    write_netrc_auth(host=DEFAULT_BASE_URL, api_key=login)
    assert secret_environment() == {"WANDB_API_KEY": login}
    monkeypatch.setenv("WANDB_API_KEY", "key-of-the-shell")
    assert secret_environment() == {"WANDB_API_KEY": "key-of-the-shell"}
    monkeypatch.setenv("WANDB_BASE_URL", "https://user:pa55word@wandb.example.org")
    monkeypatch.setenv("WANDB__EXTRA_HTTP_HEADERS", '{"Authorization": "Bearer b3arer"}')
    assert secret_environment().pop("WANDB__EXTRA_HTTP_HEADERS") == '{"Authorization": "Bearer b3arer"}'
    assert "WANDB__EXTRA_HTTP_HEADERS" not in forwarded_environment()
    monkeypatch.delenv("WANDB__EXTRA_HTTP_HEADERS")
    server = {"WANDB_BASE_URL": "https://user:pa55word@wandb.example.org"}  # else the key would go to another one
    assert secret_environment() == {"WANDB_API_KEY": "key-of-the-shell", **server}
    passed = forwarded_environment()
    assert (passed["WANDB_PROJECT"], passed["AWS_REGION"]) == ("long-tails", "us-west-2")
    assert not {"key-of-the-shell", "store-secret"} & set(passed.values())


def test_where_a_node_keeps_its_cache_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would put the driver's path in the place of the one that cluster.yaml gives the node."""
    monkeypatch.setenv("LTCORE_CACHE", "/a/disk/of/the/head")
    monkeypatch.setenv("LTCORE_DATA", "s3://bucket/shards")
    assert forwarded_environment().keys() & {"LTCORE_CACHE", "LTCORE_DATA"} == {"LTCORE_DATA"}


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "LTCORE_DATA", "LTCORE_EXTRA", "WANDB_BASE_URL"])
def test_a_password_inside_a_value_is_a_secret_whatever_the_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "https://user:pa55word@host/x")
    assert name not in forwarded_environment()
    monkeypatch.setenv(name, "https://host/x@y")
    assert name in forwarded_environment()


def test_workers_adopt_the_key_of_their_driver(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ltcore.runtime.heartbeat import start_heartbeat

    monkeypatch.setenv("WANDB_API_KEY", "key-of-the-driver")
    heartbeat = start_heartbeat("heartbeat-of-a-test", "nonce-of-the-driver")

    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"WANDB_API_KEY": ""}})
    def work(nonce: str) -> str:
        import os

        from ltcore.runtime.heartbeat import adopt_secrets

        os.environ.pop("WANDB_API_KEY", None)
        adopt_secrets("heartbeat-of-a-test", nonce)
        return os.environ.get("WANDB_API_KEY", "")

    assert ray.get(work.remote("nonce-of-the-driver")) == "key-of-the-driver"
    for guess in ("", "nonce", "nonce-of-the-drivers"):
        assert ray.get(work.remote(guess)) == ""
        with pytest.raises(PermissionError, match="the W&B key is not handed over"):
            ray.get(heartbeat.secrets.remote(guess))


def test_the_nonce_stands_in_no_text_of_a_job() -> None:
    job = Job(config={}, data_uri="d", run_uri="r", info=RunInfo(id="x"), nonce="nonce-of-the-driver")
    assert "nonce-of-the-driver" not in repr(job)
    assert job.to_json()["nonce"] == "nonce-of-the-driver"  # it travels to the worker all the same


def watchdog(name: str, said: list[str], waited_for: Callable[[], str] | None) -> Any:
    from ltcore.runtime.heartbeat import Watchdog, start_heartbeat

    heartbeat = start_heartbeat(name, "")
    return Watchdog(heartbeat, lambda _: None, stall_s=2, deadline_s=None, say=said.append, waited_for=waited_for)


def test_before_anything_has_begun_silence_is_a_stall_on_one_machine_and_waiting_on_a_cluster(cluster: Any) -> None:
    said: list[str] = []
    alone, shared = watchdog("alone", said, None), watchdog("shared", said, lambda: "1 GPU; 0 of 4 are free")
    for watch in (alone, shared):
        watch.start()
    assert alone.stalled.wait(10)
    assert not shared.stalled.wait(4)
    assert "waiting for 1 GPU; 0 of 4 are free" in said
    for watch in (alone, shared):
        watch.end()


def test_a_run_that_hangs_is_ended_while_others_move_and_one_that_is_over_is_left_alone(cluster: Any) -> None:

    from ltcore.runtime.heartbeat import HeartbeatSender

    @ray.remote(num_cpus=0, max_restarts=0)
    class Worker:
        def begin(self, run: str) -> int:
            self.sender = HeartbeatSender("hangs", run, every_s=0)
            self.beat()
            return os.getpid()

        def beat(self) -> None:
            self.sender.beat(1, time.monotonic_ns(), 2)

        def over(self) -> None:
            self.sender.over()

        def ping(self) -> bool:
            return True

    said: list[str] = []
    watch = watchdog("hangs", said, None)
    hangs, moves, ended = (Worker.remote() for _ in range(3))
    pids = ray.get([worker.begin.remote(run) for worker, run in ((hangs, "hangs"), (moves, "moves"), (ended, "ended"))])
    ray.get(ended.over.remote())
    os.kill(pids[0], signal.SIGSTOP)
    watch.start()
    until = time.monotonic() + 30
    while Path(f"/proc/{pids[0]}").exists() and time.monotonic() < until:
        ray.get(moves.beat.remote())
        time.sleep(0.2)
    watch.end()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(hangs.ping.remote(), timeout=30)
    assert ray.get([moves.ping.remote(), ended.ping.remote()]) == [True, True]
    assert all(line.startswith("hangs has said nothing for") for line in said) and said
    assert not watch.stalled.is_set()


def test_a_process_that_is_not_rays_is_never_ended(cluster: Any) -> None:

    from ltcore.runtime.heartbeat import end_process

    other = subprocess.Popen(["sleep", "60"])
    end_process(ray.get_runtime_context().get_node_id(), other.pid)
    time.sleep(3)
    assert other.poll() is None
    other.kill()
    other.wait()
