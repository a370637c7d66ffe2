"""A sweep on a cluster that has only its head: GPU nodes come for the trials, go when they are done, and are counted.

Ray's own autoscaler, with nodes that are processes of one machine and GPUs that exist in name only.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.nodes import TRAIN_TAB, Lab, lab
from tests.cluster.store import BUCKET, STORE, object_store, read
from tests.paths import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

IDLE_MINUTES = 0.2
CONFIG: dict[str, Any] = {
    "cluster_name": "fake",
    "max_workers": 2,
    "upscaling_speed": 10.0,
    "idle_timeout_minutes": IDLE_MINUTES,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 2, "GPU": 1, "object_store_memory": 200 * 2**20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "head_node_type": "ray.head.default",
    "auth": {},
    "docker": {},
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
}
START = (
    "ray get-auth-token --generate > /dev/null; AUTOSCALER_UPDATE_INTERVAL_S=1 RAY_FAKE_CLUSTER=1 ray start --head "
    "--num-cpus=0 --object-store-memory=300000000 "
    "--autoscaling-config=$HOME/ray_bootstrap_config.yaml"
)
COUNT = (
    "python -c \"import ray; ray.init(logging_level='ERROR'); print('alive', sum(n['Alive'] for n in ray.nodes()))\""
)


def bashrc() -> str:
    variables = {
        **STORE,
        "PATH": f"{ROOT}/.venv/bin:$PATH",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "LTCORE_STORAGE": f"s3://{BUCKET}/ltcore",
        "LTCORE_DIST_BACKEND": "gloo",  # the GPUs of this cluster are numbers
    }
    return "".join(f"export {key}={value}\n" for key, value in variables.items())


@pytest.fixture
def machine() -> Iterator[Lab]:
    assert not ROOT.is_relative_to("/tmp"), "a node has its own /tmp, and would not find a checkout that lies there"
    with lab(["head"], bashrc()) as made:
        (made.nodes[0].home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(CONFIG))
        yield made


def alive(made: Lab) -> int:
    said = made.on(made.nodes[0], COUNT, timeout=60)
    return int(said.split("alive ")[1].split()[0])


def test_nodes_come_for_the_trials_and_go(machine: Lab) -> None:
    head = machine.nodes[0]
    with object_store() as store:
        machine.on(head, START, timeout=120)
        assert alive(machine) == 1
        few = "--engine train --name tune_lpa --num-trials 2 sweep.retrain_seeds=0 train.epochs=6"
        said = machine.on(head, f"cd /tmp && python {ROOT}/pipelines/tune_lpa.py {few}", timeout=900)
        print(said)
        assert "the autoscaler allows 4 CPUs and 2 GPUs" in said
        assert "2 at a time, by the autoscaler's maximum" in said
        sweep = read(store, "ltcore/tune_lpa/sweep.json")
        assert (sweep["status"], sweep["most_nodes"], len(sweep["trials"])) == ("finished", 3, 2)
        assert set(sweep["node_hours"]) == {"head", "gpu"}
        assert 0 < sweep["node_hours"]["gpu"] < 2 * sweep["node_hours"]["head"], "fewer than both nodes all the time"
        for trial in sweep["trials"]:
            record = read(store, f"ltcore/tune_lpa/{trial['run_dir']}/run.json")
            assert record["engine"] == "train"
        page = machine.on(head, TRAIN_TAB, timeout=60)
        tab = json.loads(next(line for line in page.splitlines() if line.startswith("{")))["train_runs"]
        shown = {run["name"].rpartition("-")[2]: run["status"] for run in tab}
        finished = [trial["id"] for trial in sweep["trials"] if trial["status"] == "finished"]
        assert [shown.get(trial) for trial in finished] == ["FINISHED"] * len(finished), "the Train tab has every trial"
        report = store.get_object(Bucket=BUCKET, Key="ltcore/tune_lpa/report.html")["Body"].read().decode()
        (told,) = re.findall(r"node-hours: ([\d.]+) head, ([\d.]+) gpu", report)
        assert [float(hours) for hours in told] == pytest.approx([*sweep["node_hours"].values()], rel=0.1)
        left = 0
        for _ in range(45):
            left = alive(machine)
            if left == 1:
                break
            time.sleep(1)
        assert left == 1, "idle nodes go back"
