"""Many small tasks on Ray, a few ahead at a time, for what reads and writes files of this machine."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from ltcore.data.datasets.workspace import Run, here
from ltcore.errors import StallError
from ltcore.retry import patience_s
from ltcore.runtime import cluster
from ltcore.text import counted, duration

T = TypeVar("T")
R = TypeVar("R")
TASK_BYTES = 3 * 2**29
"""Of memory for a task: what it takes at most where images are large, see ``limits``."""
AHEAD = 2
"""Tasks per CPU that are submitted at once: each CPU has its next one at hand."""
LOOK_S = 1.0
SAID_AFTER_S = 60.0
"""How long no task ends before it is said what is waited for. Most take seconds."""


def is_connected() -> bool:
    """Tells whether this program works with a Ray already."""
    cluster.quiet()
    import ray

    return bool(ray.is_initialized())


@contextlib.contextmanager
def ray_tasks(say: Callable[[str], None], *, debug: bool = False) -> Iterator[Run]:
    """Yields ``on_ray``, on the Ray that is connected or on one that is there as long as the block; ``say`` is told which.

    On a node that offers no CPU, as the head of a cluster, where no task would ever begin, it is this process.
    """
    was_connected, run = is_connected(), partial(on_ray, say=say)
    if not was_connected:
        found = cluster.connect(debug=debug)
        say(found.describe())
        run = partial(on_ray, say=say, ends_next=found.local)
    try:
        yield run if _own_node()[1] else here
    finally:
        if not was_connected:
            cluster.disconnect()


def _own_node() -> tuple[str, float, float]:
    """Returns the id, the CPUs and the bytes of memory of the node of this process."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    offered = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
    return own, offered.get("CPU", 0.0), offered.get("memory", 0.0)


def on_ray(
    tasks: Iterable[T], do: Callable[[T], R], /, *, say: Callable[[str], None] = print, ends_next: bool = False
) -> Iterator[tuple[T, R]]:
    """Does the tasks in processes of the Ray that is connected; yields each with its result when it is there.

    They run on the node of this process, where local files are, one per CPU for which it has memory, each with one thread of
    torch. A task whose process dies is repeated twice. An ``LtcoreError`` in one is raised here, and the others are canceled,
    unless the Ray ``ends_next`` and takes them along.

    ``say`` is told where none ends for a while. Raises StallError where that lasts longer than a storage may be disturbed, on
    a Ray that ``ends_next``: nobody else takes the CPUs of that one, so its tasks stand still. On any other they may wait
    for a CPU, which this process cannot tell from work, and are left alone.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from ltcore.runtime.heartbeat import BEGIN_S
    from ltcore.runtime.placement import BEYOND_PATIENCE_S, Demand
    from ltcore.runtime.ray_task import cancel, lacking, result_of
    from ltcore.training.hardware import allocated_cpus

    own, cpus, memory_bytes = _own_node()
    at_once = max(1, min(int(cpus), allocated_cpus(), int(memory_bytes // TASK_BYTES)))
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
            began, told = time.monotonic(), False
            while not (done := ray.wait(list(running), num_returns=1, timeout=LOOK_S)[0]):
                silent_s = time.monotonic() - began
                if silent_s > SAID_AFTER_S and not told:
                    told = True
                    waits = lacking(Demand(cpus / at_once, 0, 0), "task")
                    say(f"none of {counted(len(running), 'task')} has ended for {duration(silent_s)}; needed: {waits}")
                if ends_next and silent_s > max(BEGIN_S, patience_s() + BEYOND_PATIENCE_S):
                    raise StallError(
                        f"None of {counted(len(running), 'task')} has ended for {duration(silent_s)}, so they count as lost: see "
                        "whether the storage of the images and the disk answer. The same command continues."
                    )
            (ref,) = done
            yield running.pop(ref), result_of(ref, "task")
    finally:
        if not ends_next:
            cancel(running)


def _alone(do: Callable[[T], R], task: T) -> R:
    """Does one task in a worker."""
    import torch

    cluster.quiet()
    torch.set_num_threads(1)
    return do(task)
