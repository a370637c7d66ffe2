"""cluster.yaml is valid by Ray's own schema, carries no secret, and names the Ray that this checkout runs on."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import ray
import yaml

FILE = Path(__file__).parents[1] / "cluster.yaml"
TEXT = FILE.read_text(encoding="utf-8")


def config() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


def test_it_passes_rays_own_validation() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config())))


def test_it_installs_the_ray_of_this_checkout() -> None:
    (wanted,) = re.findall(r"ray\[default,train,tune,data\]==([\d.]+)", TEXT)
    assert wanted == ray.__version__


def test_the_head_holds_the_drivers_and_gpus_come_and_go() -> None:
    from ltcore.runtime.cluster import DRIVER_RESOURCE

    types = config()["available_node_types"]
    assert types[config()["head_node_type"]]["resources"][DRIVER_RESOURCE] >= 100
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_every_worker_that_reads_or_writes_may() -> None:
    for name, node in config()["available_node_types"].items():
        assert node["node_config"]["IamInstanceProfile"], name


def test_every_ray_start_says_its_authentication_mode() -> None:
    starts = [
        c for key in ("head_start_ray_commands", "worker_start_ray_commands") for c in config()[key] if "ray start" in c
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=" in command for command in starts)


def test_there_is_no_secret_in_it() -> None:
    assert not re.search(r"(?i)(api_key|secret|password)\s*[:=]\s*\S", TEXT)
    assert not re.search(r"AKIA[0-9A-Z]{16}", TEXT)
