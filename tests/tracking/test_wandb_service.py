"""W&B's service process cannot hold a program that ends, as W&B's own hook lets it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.tracking.wandb_server import serve

ASKS = """
from ltcore.tracking import wandb_account, wandb_service
wandb_service.END_S, wandb_account.PROBE_S = 1.0, 1
assert wandb_account.settle_mode("auto") == MODE
"""
LOGS = """
from pathlib import Path
from ltcore.tracking import wandb_service, wandb_sink
wandb_service.END_S = 1.0
wandb_sink._init(mode="offline", dir=Path.cwd(), project="p", id="a").finish()
"""
FINISHES = """
from pathlib import Path
from ltcore.tracking import wandb_sink
from ltcore.tracking.config import TrackingConfig
names = {name: "a" for name in ("run_id", "group", "name", "job_type")}
(sink,) = wandb_sink.open_wandb(
    run_dir=Path.cwd(), config_flat={}, options=TrackingConfig(wandb_mode="offline"), **names
)
sink.log({"x": 1.0}, 1)
wandb_sink.ANSWER_S = 1.0  # from here on: a busy machine may need longer to start the service
stop()
sink.log({"x": 2.0}, 2)
sink.finish({"x": 2.0}, "finished")
first, second = Path("wandb").glob("offline-run-*")
assert sink.is_open
"""
OPENS = """
from pathlib import Path
from ltcore.tracking import wandb_sink
from ltcore.tracking.config import TrackingConfig
def opened(name):
    names = {key: name for key in ("run_id", "group", "name", "job_type")}
    options = TrackingConfig(wandb_mode="offline")
    (sink,) = wandb_sink.open_wandb(run_dir=Path.cwd() / name, config_flat={}, options=options, **names)
    return sink
opened("a").finish({}, "finished")
wandb_sink.ANSWER_S = 1.0
stop()
second = opened("b")
second.log({"x": 2.0}, 2)
second.finish({"x": 2.0}, "finished")
assert list(Path("b/wandb").glob("offline-run-*"))
"""
STOPS = """
import psutil, wandb
def stop():
    (service,) = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
    service.suspend()
    print("stopped", service.pid, flush=True)
"""


@pytest.mark.parametrize(
    ("code", "mode"),
    [
        (STOPS + "wandb.Api = lambda *args, **kwargs: (wandb.setup(), stop(), {}['no answer'])" + ASKS, "'offline'"),
        (STOPS + LOGS + "stop()", ""),
        (STOPS + FINISHES, ""),
        (STOPS + OPENS, ""),
    ],
    ids=["asks", "logs", "finishes", "opens"],
)
def test_a_program_ends_though_the_service_hangs(code: str, mode: str, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with serve(lambda _: 200) as server, tempfile.TemporaryDirectory(prefix="lt", dir="/tmp") as short:  # for a socket
        environ |= {"HOME": str(tmp_path), "WANDB_API_KEY": "0123456789abcdef" * 3, "WANDB_BASE_URL": server.url}
        environ |= {"TMPDIR": short}
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code.replace("MODE", mode)],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        left = [path.name for path in Path(short).iterdir()]
    assert (done.returncode, "stopped" in done.stdout) == (0, True), done.stderr
    stopped = done.stdout.partition("stopped ")[2].split()[0]
    assert not [name for name in left if stopped in name.split("-")], "of one that was killed"
    assert time.monotonic() - start < 45
