"""Many small tasks on Ray, a few ahead at a time, for what reads and writes files of this machine."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ltcore.data.datasets.workspace import Run, here
from ltcore.runtime import cluster

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2
"""Tasks per CPU that are submitted at once: each CPU has its next one at hand."""


@contextlib.contextmanager
def ray_tasks(say: Callable[[str], None], *, debug: bool = False) -> Iterator[Run]:
    """Yields ``on_ray``, on the Ray that is connected or on one that is there as long as the block; ``say`` is told which.

    On a node that offers no CPU, as the head of a cluster, where no task would ever begin, it is this process.
    """
    cluster.quiet()
    import ray

    is_connected = ray.is_initialized()
    if not is_connected:
        say(cluster.connect(debug=debug).describe())
    try:
        yield on_ray if _own_node()[1] else here
    finally:
        if not is_connected:
            cluster.disconnect()


def _own_node() -> tuple[str, float]:
    """Returns the id and the CPUs of the node of this process."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return own, next(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["NodeID"] == own)


def on_ray(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
    """Does the tasks in processes of the Ray that is connected; yields each with its result when it is there.

    They run on the node of this process, where local files are, one per CPU, each with one thread of torch. A task whose
    process dies is repeated twice. An ``LtcoreError`` in one is raised here, and the others are canceled.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from ltcore.runtime.ray_task import cancel, result_of
    from ltcore.training.hardware import allocated_cpus

    own, cpus = _own_node()
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

    cluster.quiet()
    torch.set_num_threads(1)
    return do(task)
