"""The arithmetic before the start: what cannot be placed is refused at once, with the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ltcore.errors import CapacityError
from ltcore.runtime.cluster import Cluster


@dataclass(frozen=True)
class Scaling:
    """Workers of one run."""

    workers: int = 1
    max_workers: int = 0
    """More than ``workers``: elastic, between the two. 0: exactly ``workers``."""
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0

    @property
    def most(self) -> int:
        return max(self.workers, self.max_workers)


@dataclass(frozen=True)
class Demand:
    """What one trial reserves, and what it needs beside it."""

    cpus: float
    gpus: float
    data_cpus: int
    """CPUs that must stay free for data tasks: Ray Data never runs where workers reserved everything."""

    def describe(self) -> str:
        parts = [f"{self.cpus:g} CPUs"]
        if self.data_cpus:
            parts[0] += f" + {self.data_cpus} for data tasks"
        if self.gpus:
            parts.append(f"{self.gpus:g} GPUs")
        return " and ".join(parts)


def demand(scaling: Scaling, engine: str, streams: bool) -> Demand:
    """Resources of one run at its smallest size."""
    workers = scaling.workers if engine == "train" else 1
    return Demand(workers * scaling.cpus_per_worker, workers * scaling.gpus_per_worker, 1 if streams else 0)


def concurrency(need: Demand, cluster: Cluster, *, max_gpus: float | None) -> int:
    """How many such runs fit at a time, at least one. Raises CapacityError where not even one does.

    Counted with the most that the cluster may become: what the autoscaler allows, else ``max_gpus`` for its GPUs, else the
    nodes of now. ``max_gpus`` never lets trials hold more than it says.
    """
    cpus, gpus = offer(cluster, max_gpus)
    if need.cpus + need.data_cpus > cpus or need.gpus > gpus:
        raise CapacityError(
            f"One run needs {need.describe()}; {'this machine' if cluster.local else 'the cluster'} offers at most "
            f"{cpus:g} CPUs and {gpus:g} GPUs, so it could never start. Lower --workers, --cpus-per-worker or "
            "--gpus-per-worker, or use a larger machine."
        )
    real_cpus = cluster.real_cpus if cluster.local else cpus
    fits = [(real_cpus - (0 if cluster.local else need.data_cpus)) / need.cpus]
    if need.gpus:
        fits.append(gpus / need.gpus)
    return max(1, math.floor(min(fits)))


def offer(cluster: Cluster, max_gpus: float | None) -> tuple[float, float]:
    """(CPUs, GPUs) to count with. Nodes to come that only ``max_gpus`` knows of bring as many CPUs as a run asks for."""
    if max_gpus is None:
        return cluster.most_cpus, cluster.most_gpus
    if cluster.local or cluster.limits:
        return cluster.most_cpus, min(max_gpus, cluster.most_gpus)
    return (math.inf if max_gpus > cluster.gpus else cluster.cpus), max_gpus


def capacity_source(cluster: Cluster, max_gpus: float | None) -> str:
    """What ``concurrency`` counted with, in words; '' on one machine, where there is nothing to guess."""
    if cluster.local:
        return ""
    if cluster.limits:
        return "by the autoscaler's maximum"
    if max_gpus is not None:
        return "by --max-gpus"
    return "by the nodes of now, because no autoscaler's maximum is known here: --max-gpus N says what may come"
