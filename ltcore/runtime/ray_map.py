"""Many small tasks on Ray, a few ahead at a time, for what reads and writes files of this machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ltcore.runtime.cluster import quiet

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2
"""Tasks per CPU that are submitted at once: each CPU has its next one at hand."""


def on_ray(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
    """Does the tasks in processes of the Ray that is connected; yields each with its result when it is there.

    They run on the node of this process, where local files are, one per CPU, each with one thread of torch. A task whose
    process dies is repeated twice. An ``LtcoreError`` in one is raised here, and the others are canceled.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    cpus = next(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == own)
    from ltcore.runtime.ray_task import cancel, result_of
    from ltcore.training.hardware import allocated_cpus

    at_once = max(1, min(int(cpus), allocated_cpus()))
    remote: Any = ray.remote(num_cpus=cpus / at_once, max_retries=2)(_alone).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(own, soft=False)
    )
    coming, running = iter(tasks), dict[Any, T]()
    try:
        while True:
            for task in itertools.islice(coming, AHEAD * at_once - len(running)):
                running[remote.remote(do, task)] = task
            if not running:
                return
            (ref,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(ref), result_of(ref, "task")
    finally:
        cancel(running)


def _alone(do: Callable[[T], R], task: T) -> R:
    """Does one task in a worker."""
    import torch

    quiet()
    torch.set_num_threads(1)
    return do(task)
