"""Nothing that is counted grows worse than linearly, at sizes that a test can afford."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltcore.benchmarks.scale import MOST_GROWTH, Line, Lines, of_repetition, of_runs, of_shards, of_trials, of_workers
from ltcore.tracking.wandb_sink import UPLOAD_EVERY_S
from tests.tracking.wandb_server import serve

SIZES = (100, 200, 400)


def check(lines: Lines) -> dict[str, Line]:
    counted = {name: line for name, line in lines.lines.items() if line.counted}
    assert counted
    for line in counted.values():
        assert line.growth <= MOST_GROWTH, line
    return counted


def test_the_exponent_of_a_power_law_is_found() -> None:
    line = Line("bytes", "B", True, {10: 300.0, 100: 30_000.0, 1000: 3_000_000.0})
    assert line.growth == pytest.approx(2)
    assert str(line) == "bytes: 300 at 10, 3e+04 at 100, 3e+06 at 1,000 (B); grows with exponent 2.00"
    assert Line("none", "B", True, {10: 0.0, 100: 0.0, 1000: 0.0}).growth == pytest.approx(0)


@pytest.mark.slow
def test_what_a_process_does_before_its_first_batch(tmp_path: Path) -> None:
    counted = check(of_shards(tmp_path, SIZES))
    assert set(counted["files read before the first batch is planned"].values.values()) == {1}  # the manifest
    assert counted["indexes read for the first window, in all its tasks"].growth < 0.4  # of the lanes, not of the data
    assert counted["labels of a batch, memory"].values[400] < 10  # MiB, where 400,000 labels are checked in chunks


@pytest.mark.slow
def test_repeated_images_workers_and_trials(tmp_path: Path) -> None:
    check(of_repetition((10_000, 20_000, 40_000)))
    plan = check(of_workers(tmp_path, (1, 4, 16), 50))["ten windows of a worker, memory"]
    assert plan.growth < 0  # each worker's part of the same steps
    check(of_trials(tmp_path, (5, 10, 20)))


def test_a_thousand_runs_stay_within_the_limits_of_wandb() -> None:
    lines = of_runs((64, 250, 1000))
    requests = check(lines)["uploads to W&B in a second"]
    assert requests.values[1000] <= 500 / 2, "W&B takes 500 a second of a project; half is for files and for others"
    assert 1 / UPLOAD_EVERY_S <= 2, "and 2 of a run"
    assert "not a measurement" in lines.section().title


LOGS = """
import time
from pathlib import Path
from ltcore.tracking import wandb_sink
from ltcore.tracking.config import TrackingConfig
wandb_sink.UPLOAD_EVERY_S = 1.0
sinks, began = [], time.monotonic()
for name in "abc":
    names = {key: name for key in ("run_id", "group", "name", "job_type")}
    options = TrackingConfig(wandb_mode="online", project="p")
    sinks += wandb_sink.open_wandb(run_dir=Path.cwd() / name, config_flat={}, options=options, **names)
for epoch in range(80):
    for sink in sinks:
        sink.log({"epoch": epoch, "train/loss": 1.0}, epoch)
    time.sleep(0.05)
print(time.monotonic() - began)
for sink in sinks:
    sink.finish({}, "finished")
"""


@pytest.mark.slow
def test_a_run_uploads_once_in_an_interval_however_often_it_logs(tmp_path: Path) -> None:
    """What the arithmetic starts from, with W&B's own client."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with serve(lambda _: 200) as server:
        environ |= {"HOME": str(tmp_path), "WANDB_API_KEY": "0123456789abcdef" * 3, "WANDB_BASE_URL": server.url}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", LOGS], env=environ, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        for name in "abc":
            uploads = server.asked.count(f"/files/me/p/{name}/file_stream")
            assert 3 <= uploads <= float(done.stdout) + 2, "one when it begins and one when it ends"
