"""What a cluster may grow to, and what is counted with it before anything starts."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from ltcore.cli.parsers import read_tune
from ltcore.errors import CapacityError, ConfigError
from ltcore.runtime.autoscaler import Limits, limits_of, read_limits
from ltcore.runtime.cluster import Cluster
from ltcore.runtime.placement import Demand, capacity_source, check_storage, choose_engine, choose_scaling, concurrency
from tests.paths import ROOT

SHIPPED = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
HEAD = Cluster(local=False, cpus=4, real_cpus=4, gpus=0, nodes=1, address="10.0.0.1:6379")
GPU_WORKER = Demand(cpus=4, gpus=1, data_cpus=0)


def with_limits(**values: float) -> Cluster:
    return Cluster(
        local=False,
        cpus=4,
        real_cpus=4,
        gpus=0,
        nodes=1,
        address="10.0.0.1:6379",
        limits=Limits(**{"cpus": 68, "gpus": 8, "cpus_per_gpu": 8, **values}),
    )


def test_the_shipped_cluster_may_have_eight_gpus_and_one_node_for_data() -> None:
    assert limits_of(SHIPPED) == Limits(cpus=8 * 8 + 16, gpus=8, cpus_per_gpu=8)


def test_the_maximum_of_all_together_goes_to_gpu_nodes_first() -> None:
    assert limits_of({**SHIPPED, "max_workers": 3}) == Limits(cpus=3 * 8, gpus=3, cpus_per_gpu=8)


def test_node_types_that_do_not_say_what_they_have_give_no_limits() -> None:
    local = {"available_node_types": {"local.cluster.node": {"resources": {}, "max_workers": 3}}, "max_workers": 3}
    assert limits_of({**local, "head_node_type": "local.cluster.node"}) is None


def test_the_file_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert read_limits(tmp_path / "none.yaml") is None
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(yaml.safe_dump(SHIPPED))
    assert read_limits(file) == limits_of(SHIPPED)
    file.write_text(json.dumps({**SHIPPED, "setup_commands": ["echo \N{SNOWMAN} \N{GRINNING FACE}"]}))  # as Ray does
    assert read_limits(file) == limits_of(SHIPPED)
    for damaged in ("- a list", "available_node_types: {", "head_node_type: nobody"):
        file.write_text(damaged)
        with pytest.raises(ConfigError, match=r"ray_bootstrap_config.yaml is not a cluster configuration .*--max-gpus"):
            read_limits(file)


@pytest.mark.parametrize("place", ["max_workers", "CPU", "GPU"])
@pytest.mark.parametrize(
    "amount", [math.inf, math.nan, -1, 10**400, True, "4"], ids=["inf", "nan", "-1", "1e400", "true", "text"]
)
def test_what_is_no_number_of_nodes_or_of_what_they_have_is_refused(place: str, amount: Any, tmp_path: Path) -> None:
    damaged = copy.deepcopy(SHIPPED)
    gpu_node = max(damaged["available_node_types"].values(), key=lambda node: node["resources"].get("GPU", 0))
    (gpu_node if place == "max_workers" else gpu_node["resources"])[place] = amount
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(damaged))
    with pytest.raises(ConfigError, match=f"is not a cluster configuration .ValueError: {place}=.* is no number"):
        read_limits(file)


@pytest.mark.parametrize(
    ("cluster", "max_gpus", "at_a_time", "words"),
    [
        (with_limits(), None, 8, "autoscaler's maximum"),
        (with_limits(), 3, 3, "autoscaler's maximum"),
        (with_limits(cpus=20), None, 5, "autoscaler's maximum"),
        (HEAD, 6, 6, "by --max-gpus"),
    ],
)
def test_trials_at_a_time_are_counted_with_what_may_come(
    cluster: Cluster, max_gpus: float | None, at_a_time: int, words: str
) -> None:
    assert concurrency(GPU_WORKER, cluster, max_gpus=max_gpus) == at_a_time
    assert words in capacity_source(cluster, max_gpus)


def test_without_any_knowledge_the_nodes_of_now_count_and_it_is_said() -> None:
    with pytest.raises(CapacityError, match="the cluster offers at most 4 CPUs and 0 GPUs"):
        concurrency(GPU_WORKER, HEAD, max_gpus=None)
    assert concurrency(Demand(cpus=1, gpus=0, data_cpus=1), HEAD, max_gpus=None) == 3
    assert "nodes of now" in capacity_source(HEAD, None) and "--max-gpus" in capacity_source(HEAD, None)


def test_a_trial_gets_a_gpu_worker_while_only_the_head_is_there() -> None:
    args = read_tune("test", [])
    assert choose_engine(args) == "trial"
    scaling = choose_scaling(args, with_limits(), "trial")
    assert (scaling.workers, scaling.gpus_per_worker) == (1, 1.0)
    assert scaling.cpus_per_worker == 4, "half of the CPUs beside a GPU stay for data tasks"
    assert choose_scaling(read_tune("test", ["--max-gpus", "4"]), HEAD, "trial").gpus_per_worker == 1.0
    assert choose_scaling(args, HEAD, "trial").gpus_per_worker == 0.0


def test_a_cluster_that_will_grow_refuses_a_path_of_one_machine() -> None:
    with pytest.raises(ConfigError, match="the cluster adds nodes as they are needed: set LTCORE_STORAGE"):
        check_storage("/home/me/runs", with_limits())
