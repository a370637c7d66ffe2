"""How many runs share a GPU: a pure function of what training steps took of a whole one. Imports neither Ray nor torch.

Kernels of different processes do not run at the same time (that needs NVIDIA's MPS); the GPU goes from one process to the
next. So what two runs on one GPU have to share is time, and a run whose kernels fill a third of it leaves two thirds to
others. A network that fills the time leaves none, however few of the GPU's cores it keeps busy.
"""

from __future__ import annotations

import math

from ltcore.config.gpu_share import GpuShare, Occupancy
from ltcore.text import byte_size

MOST = 8
"""Runs that share a GPU at most: each also takes a process of some GB on the node."""
HEAD_ROOM = 1.1
"""Factor on the measured memory: the order of allocations differs from epoch to epoch, and with it what lies between them."""
UNIT = 10_000
"""Ray counts resources in parts of this. A share is rounded down to one, so that as many fit as are meant to."""


def sharers(
    peak_bytes: int, device_bytes: int, busy_fraction: float, cpus: float, gpus: float, *, cpus_each: float = 1.0
) -> dict[str, int]:
    """Returns how many runs of this kind fit on one GPU by each of 'memory', 'time' and 'CPUs', at most ``MOST``.

    It is 0 by memory where not even one fits with head-room. ``cpus`` and ``gpus`` are those of the node, ``cpus_each``
    what every run takes of its CPUs.
    """
    need = HEAD_ROOM * peak_bytes / device_bytes
    found = {"memory": need, "time": busy_fraction, "CPUs": cpus_each * gpus / cpus if cpus > 0 else math.inf}
    # the small number: 1 / (1 / 3) and its like come out just below a whole one
    return {what: MOST if each * MOST <= 1 else math.floor(1 / each + 1e-9) for what, each in found.items()}


def share_of(
    peak_bytes: int, device_bytes: int, busy_fraction: float, cpus: float, gpus: float, *, cpus_each: float = 1.0
) -> float:
    """Returns the part of a GPU for each run: 1, 1/2, 1/3, ... 1/8, the smallest that covers memory, time and CPUs."""
    fit = sharers(peak_bytes, device_bytes, busy_fraction, cpus, gpus, cpus_each=cpus_each)
    return part(min(fit.values()))


def part(count: int) -> float:
    """Returns the part of a GPU of which ``count`` fit on one, as Ray counts; 1 for a count below 2."""
    return 1.0 if count < 2 else math.floor(UNIT / count) / UNIT


def whole(why: str, measured: Occupancy | None = None) -> GpuShare:
    """Returns the choice of a whole GPU, after something else was chosen by what was ``measured`` if that is given."""
    return GpuShare(gpus=1.0, why=f"a whole one, as {why}", auto=True, measured=measured)


def chosen(found: Occupancy, *, cpus_each: float, runs_per_gpu: int = MOST) -> GpuShare:
    """Returns the share for what was measured, and why.

    ``runs_per_gpu`` is how many runs there are for each GPU: runs that could have one alone do not share it.
    """
    used = f"{byte_size(found.peak_bytes)} of {byte_size(found.device_bytes)} of a {found.device}"
    if found.busy is None:
        why = f"{found.run} takes {used}, and how long its kernels run could not be measured"
        return GpuShare(gpus=1.0, why=why, auto=True, measured=found)
    numbers = (found.peak_bytes, found.device_bytes, found.busy, found.cpus, found.gpus)
    gpus = max(share_of(*numbers, cpus_each=cpus_each), part(runs_per_gpu))
    fit = sharers(*numbers, cpus_each=cpus_each) | {"the number of runs": runs_per_gpu}
    limits = " and ".join(what for what, most in fit.items() if part(most) == gpus) if gpus > part(MOST) else ""
    bound = f"; limited by {limits}" if limits else ""
    why = f"measured, {found.run} takes {used} and keeps it busy {100 * found.busy:.0f}% of the time{bound}"
    return GpuShare(gpus=gpus, why=why, auto=True, measured=found)
