"""`ray up cluster.yaml`, `ray submit cluster.yaml pipelines/tune_lpa.py`, `ray down`: the shipped file on machines of our own.

Everything is the file's own but what a cloud provides: addresses instead of an instance type, the store's endpoint and keys
instead of an instance profile, packages from this machine's cache instead of the network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.nodes import Lab, lab, uv_binary
from tests.cluster.store import BUCKET, STORE, everything, object_store, read

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

HEAD = 1
"""Its place among ``tokens``."""
KEY = "0123456789abcdef" * 2 + "01234567"
"""A W&B key that is known on the head alone."""


def bashrc() -> str:
    """What a cloud's machine brings: rights on the bucket; where this machine keeps packages; and an autoscaler that looks
    every second, since these nodes need no minutes to start."""
    cache = subprocess.run([uv_binary(), "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    offline = {"UV_OFFLINE": "1", "UV_CACHE_DIR": cache, "UV_PYTHON": str(python), "RAY_USAGE_STATS_ENABLED": "0"}
    often = {"AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    return "".join(f"export {key}={value}\n" for key, value in {**STORE, **offline, **often}.items())


@pytest.fixture(scope="module")
def store(machines: Lab) -> Iterator[Any]:
    with object_store() as client:
        yield client


@pytest.fixture(scope="module")
def machines() -> Iterator[Lab]:
    """Returns two machines of one image; what the first `ray up` installs, the second finds there."""
    with lab(["head", "worker"], bashrc()) as made:
        for node in made.nodes:
            (node.home / "ltcore-uv" / "bin").mkdir(parents=True)
            (node.home / "ltcore-uv" / "bin" / "uv").symlink_to(uv_binary())
        with (made.nodes[0].home / ".bashrc").open("a") as file:
            file.write(f"export WANDB_API_KEY={KEY} WANDB_MODE=offline\n")
        for number, token in enumerate(tokens(made)):
            if number == HEAD:  # whose own, where it has one, would be everybody's
                continue
            token.parent.mkdir(exist_ok=True)
            token.write_text(f"{number:032x}")
            os.utime(
                token, (number, number)
            )  # of other days: rsync takes files of one second and one size to be the same
        adapt(made)
        yield made


@pytest.fixture(scope="module")
def doctors(machines: Lab, store: Any) -> Iterator[tuple[str, str]]:
    """Tables of the doctor after `ray up`, and after another with new code and a sweep that has less to compute."""
    first = up(machines)
    edited = machines.checkout / "ltcore" / "shots.py"
    edited.write_text(edited.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    sweep = machines.checkout / "ltcore" / "sweeps" / "tune_lpa.yaml"
    tree = yaml.safe_load(sweep.read_text(encoding="utf-8"))
    fewer = {
        "num_trials": 2,
        "retrain_seeds": 1,
        "alt": False,
        "overrides": {**tree.get("overrides", {}), "train.epochs": 6},
    }
    sweep.write_text(yaml.safe_dump({**tree, **fewer}), encoding="utf-8")
    yield first, up(machines)
    machines.laptop("ray", "down", "-y", "cluster.yaml", timeout=120)


def tokens(made: Lab) -> list[Path]:
    """Where Ray keeps its token: on the laptop, the head and the worker."""
    return [home / ".ray" / "auth_token" for home in (made.laptop_home, *(node.home for node in made.nodes))]


def adapt(made: Lab) -> None:
    """Rewrites the checkout's cluster.yaml for machines that are there already."""
    file = made.checkout / "cluster.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8").replace("YOUR-BUCKET", BUCKET))
    for key in ("available_node_types", "head_node_type"):
        del config[key]
    head, *workers = made.nodes
    config["provider"] = {"type": "local", "head_ip": head.ip, "worker_ips": [node.ip for node in workers]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(made.key)}
    config["max_workers"] = len(workers)
    file.write_text(yaml.safe_dump(config, sort_keys=False))


def up(made: Lab) -> str:
    """`ray up`, then the doctor until both nodes are there; returns the doctor's table."""
    made.laptop("ray", "up", "-y", "cluster.yaml", timeout=600)
    for _ in range(50):
        said = made.laptop("ray", "exec", "cluster.yaml", "python -m ltcore doctor", timeout=120)
        if "2 nodes passed" in said:
            return said
        time.sleep(1)
    raise AssertionError(f"the worker has not joined: {said}")


def code_on_nodes(doctor: str) -> str:
    return next(word for line in doctor.splitlines() if "ltcore " in line for word in line.split() if "+" in word)


def check_sweep(client: Any, trials: int) -> None:
    """A finished sweep on the storage, computed on both machines."""
    stored = everything(client)
    sweep = read(client, "ltcore/tune_lpa/sweep.json")
    assert not [data for key, data in stored.items() if key.endswith("error.txt")]
    assert (sweep["status"], sweep["engine"], len(sweep["trials"])) == ("finished", "trial", trials)
    assert sweep["most_nodes"] == 2
    assert sweep["node_hours"]["head"] > 0 and sweep["node_hours"]["cpu"] > 0
    assert "ltcore/tune_lpa/report.html" in stored
    assert any(key.startswith("ltcore/datasets/digits-glt") for key in stored)
    runs = {key: json.loads(data) for key, data in stored.items() if key.endswith("/run.json")}
    assert {run["engine"] for run in runs.values()} == {"trial"}
    assert {run["hardware"]["host"] for run in runs.values()} == {"ltc-head", "ltc-worker"}
    for key in runs:
        place = key.removesuffix("run.json") + "wandb/offline-run-"
        files = [name.removeprefix(place) for name in stored if name.startswith(place) and name.endswith(".wandb")]
        # a file for each part of a trial, uploaded as one run by their id
        assert len({file.split("/")[0].split("-", 1)[1] for file in files}) == 1, key


def check_secrets(made: Lab, client: Any) -> None:
    """One token for both machines, readable by its owner alone; it and the W&B key are written nowhere else."""
    laptop, head, worker = tokens(made)
    assert int(laptop.read_text(), 16) == 0, "its own is left alone"
    assert head.read_text() == worker.read_text()
    assert int(head.read_text(), 16) > len(tokens(made)), "none of those that lay about"
    assert {file.stat().st_mode & 0o777 for file in (head, worker)} == {0o600}
    for secret in (head.read_bytes().strip(), KEY.encode()):
        assert not [key for key, data in everything(client).items() if secret in data]
        logs = [file for node in made.nodes for file in made.tmp(node).rglob("*") if file.is_file()]
        assert logs
        assert not [file for file in logs if secret in file.read_bytes()]


def test_nodes_share_a_fresh_token_and_new_code_reaches_them(
    machines: Lab, store: Any, doctors: tuple[str, str]
) -> None:
    """Where other tokens lie about: left to itself Ray would switch authentication on there, with whatever token that is."""
    check_secrets(machines, store)
    before, after = map(code_on_nodes, doctors)
    assert after != before, "`ray up` again brings the new code to every node"


@pytest.mark.usefixtures("doctors")
def test_the_users_command_without_arguments(machines: Lab, store: Any) -> None:
    print(machines.laptop("ray", "submit", "cluster.yaml", "pipelines/tune_lpa.py", timeout=900))
    check_sweep(store, trials=2)
    check_secrets(machines, store)
    again = machines.laptop("ray", "submit", "cluster.yaml", "pipelines/tune_lpa.py", timeout=120)
    assert "this is its stored result" in again
    job = "ray job submit --address http://127.0.0.1:8265 -- python ~/tune_lpa.py"
    said = machines.laptop("ray", "exec", "cluster.yaml", job, timeout=180)
    assert "this is its stored result" in said and "succeeded" in said
