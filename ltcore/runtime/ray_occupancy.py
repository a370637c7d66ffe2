"""Measures, on a node that has a GPU, what runs take of it: in a Ray task, so that no other process keeps memory there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from ltcore.config.gpu_share import Occupancy
from ltcore.config.schema import RunConfig
from ltcore.errors import LtcoreError
from ltcore.runtime.cluster import Cluster, quiet
from ltcore.runtime.placement import Demand, Scaling
from ltcore.runtime.ray_task import awaited, cancel, result_of
from ltcore.version import check_same_code, code_version

Measure = Callable[[Sequence[RunConfig], str], Occupancy]
"""(the runs of a sweep, URI of their data) -> what the heaviest of them takes of a whole GPU."""
PATIENCE_S = 900.0
"""How long a free GPU is waited for. A node that is started for it takes some minutes, and then has the first runs too."""
SAID_AFTER_S = 10.0


class NotMeasuredError(LtcoreError):
    """Nothing could be measured; the message says why, and the runs get whole GPUs."""


@ray.remote(num_gpus=1, max_calls=1, max_retries=1)
def measure_task(trees: Sequence[dict[str, Any]], data_uri: str, code: str, threads: int) -> Occupancy:
    """Measures the heaviest of these runs, of which the first is the recipe's.

    The process ends after it, and with it what it holds of the GPU.
    """
    import torch

    from ltcore.data.shards.manifest import read_manifest
    from ltcore.training.hardware import allocated_cpus
    from ltcore.training.occupancy import described, heaviest, occupancy

    quiet()
    check_same_code(code)
    if not torch.cuda.is_available():
        raise NotMeasuredError("torch finds no GPU on the node that Ray gave one of")
    torch.set_num_threads(min(threads, allocated_cpus()))
    runs = [RunConfig.from_dict(tree) for tree in trees]
    cfg = heaviest(runs, read_manifest(data_uri))
    node = ray.get_runtime_context().get_node_id()
    offered = next(found["Resources"] for found in ray.nodes() if found["NodeID"] == node)
    # a local Ray counts more CPUs than there are
    cpus = min(offered.get("CPU", 0.0), allocated_cpus())
    return occupancy(cfg, data_uri, name=described(cfg, runs[0]), cpus=cpus, gpus=offered["GPU"])


def measure_on_node(
    runs: Sequence[RunConfig], data_uri: str, *, scaling: Scaling, cluster: Cluster, say: Callable[[str], None]
) -> Occupancy:
    """Measures as ``measure_task`` on the first GPU that is free, with the CPUs of one run beside it.

    Raises NotMeasuredError where none is free for a long time, and where the steps fail: a whole GPU is always right.
    """
    cpus = scaling.cpus_per_worker
    trees = [cfg.to_dict() for cfg in runs]
    ref = measure_task.options(num_cpus=cpus).remote(trees, data_uri, code_version(), cpus)
    doing = "measuring on a whole GPU how many runs can share one"
    try:
        found: Occupancy = measured_by(ref, lambda: f"{doing}; needed: {awaited(Demand(cpus, 1, 0), cluster)}", say)
        return found
    except NotMeasuredError:
        raise
    except LtcoreError as error:
        raise NotMeasuredError(f"the measured steps failed ({error})") from error


def measured_by(ref: Any, waits: Callable[[], str], say: Callable[[str], None]) -> Any:
    """Returns what a task measures, and says where that takes a while what it ``waits`` for.

    Raises NotMeasuredError where it takes too long, and the error of the task.
    """
    began, told = time.monotonic(), False
    try:
        while not ray.wait([ref], timeout=1.0)[0]:
            waited = time.monotonic() - began
            if waited > SAID_AFTER_S and not told:
                told = True
                say(waits())
            if waited > PATIENCE_S:
                raise NotMeasuredError(f"no measurement came within {PATIENCE_S / 60:.0f} minutes")
        return result_of(ref, "measurement")
    finally:
        cancel([ref])  # an interrupt too must not leave it on the GPU
