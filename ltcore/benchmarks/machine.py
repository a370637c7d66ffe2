"""The machine under a benchmark: its CPUs shared out equally, its state written down."""

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
"""Load average of the last minute above which another program computes here, and numbers mean nothing."""
PEERS = ("webdataset", "numpy", "pillow", "scikit-learn")
"""Packages whose versions matter here and that ``hardware.versions`` leaves out."""


@contextlib.contextmanager
def on_cpus(count: int) -> Iterator[int]:
    """This process, its threads and all it starts, on ``count`` of its CPUs and with as many torch threads.

    So two sides have equal totals of CPUs however many processes and threads each of them starts. Yields the number of
    CPUs, which is smaller where there are fewer.
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
    # Affinity belongs to a thread; those that exist already (torch's pool) would keep theirs.
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(task.name), cpus)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(place: torch.device) -> None:
    """Until the device has done what it was given: before the clock is read."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def state() -> dict[str, Any]:
    """Hardware, versions and load at this moment, as plain JSON."""
    found = versions() | {name: importlib.metadata.version(name) for name in PEERS}
    return describe_hardware().to_json() | {
        "allocated_cpus": allocated_cpus(),
        "torch_threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "versions": found,
    }


def warning(load: float) -> str:
    """What to say about another load at the start, or ''."""
    if load <= MOST_LOAD:
        return ""
    return f"load average {load:.2f} > {MOST_LOAD:g}: something else computes here; these numbers mean nothing"
