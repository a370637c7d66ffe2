"""The machine of a benchmark: equal shares of its CPUs for all sides, and a description of its state."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ltcore.training.hardware import allocated_cpus, describe_hardware, versions

MOST_LOAD = 0.5
"""Load average of the last minute above which another program is computing, so that measurements are useless."""
PEERS = ("webdataset", "numpy", "pillow", "scikit-learn")
"""Packages whose versions matter here and that ``hardware.versions`` does not include."""


@contextlib.contextmanager
def on_cpus(count: int) -> Iterator[int]:
    """Restricts this process and its children to ``count`` CPUs and as many torch threads.

    Two sides then have equal totals of CPUs whatever number of processes and threads each starts. Yields the number of
    CPUs, which is smaller where fewer are available.
    """
    threads = torch.get_num_threads()
    before = os.sched_getaffinity(0)
    chosen = set(sorted(before)[:count])
    _pin(chosen)
    torch.set_num_threads(len(chosen))
    try:
        yield len(chosen)
    finally:
        _pin(before)
        torch.set_num_threads(threads)


def _pin(cpus: set[int]) -> None:
    # Affinity belongs to a thread, so existing threads (torch's pool) must be set as well.
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # the thread has ended
            os.sched_setaffinity(int(task.name), cpus)


def device() -> torch.device:
    """Returns the GPU where there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(place: torch.device) -> None:
    """Waits until the device has finished its work, before the clock is read."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def state() -> dict[str, Any]:
    """Returns hardware, versions and current load, as plain JSON."""
    found = versions() | {name: importlib.metadata.version(name) for name in PEERS}
    return describe_hardware().to_json() | {
        "allocated_cpus": allocated_cpus(),
        "torch_threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "versions": found,
    }


def warning(load: float) -> str:
    """Returns a warning about other load at the start, or ''."""
    if load <= MOST_LOAD:
        return ""
    return f"load average {load:.2f} > {MOST_LOAD:g}: another program is running; these numbers mean nothing"
