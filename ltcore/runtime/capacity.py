"""The arithmetic before the start: what cannot be placed is refused at once, with the numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

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

    def plain(self) -> dict[str, Any]:
        return asdict(self)


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
    """How many such runs fit at a time, at least one. Raises CapacityError where not even one does."""
    gpus = cluster.gpus if max_gpus is None else max_gpus
    if need.cpus + need.data_cpus > cluster.cpus or need.gpus > gpus:
        raise CapacityError(
            f"One run needs {need.describe()}; {'this machine' if cluster.local else 'the cluster'} offers "
            f"{cluster.cpus:g} CPUs and {gpus:g} GPUs, so it could never start. Lower --workers, --cpus-per-worker or "
            "--gpus-per-worker, or use a larger machine."
        )
    real_cpus = cluster.real_cpus if cluster.local else cluster.cpus
    fits = [math.floor((real_cpus - (0 if cluster.local else need.data_cpus)) / need.cpus)]
    if need.gpus:
        fits.append(math.floor(gpus / need.gpus))
    return max(1, min(fits))
