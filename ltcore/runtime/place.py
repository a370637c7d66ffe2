"""Where a run goes and on which engine: decided, and refused, before anything starts. Imports neither Ray nor torch."""

from __future__ import annotations

import math
from pathlib import Path

from ltcore.config.cli import PlaceArgs
from ltcore.data.storage import is_local
from ltcore.errors import ConfigError
from ltcore.runtime.capacity import Scaling
from ltcore.runtime.cluster import Cluster

DEFAULT_STORAGE = Path.home() / "ltcore-runs"


def storage_root(storage: str | None) -> str:
    """``--storage``, else LTCORE_STORAGE, else a folder in the home directory; absolute, because workers change directory."""
    root = storage or str(DEFAULT_STORAGE)
    return str(Path(root).expanduser().resolve()) if is_local(root) and "://" not in root else root.rstrip("/")


def check_storage(root: str, cluster: Cluster) -> None:
    if (cluster.nodes > 1 or cluster.limits) and is_local(root):
        size = f"has {cluster.nodes} nodes" if cluster.nodes > 1 else "adds nodes as they are needed"
        raise ConfigError(
            f"Storage {root} is a path of one machine, but the cluster {size}: set LTCORE_STORAGE (or "
            "--storage) to a place that all nodes reach, such as s3://bucket/runs."
        )


def choose_engine(place: PlaceArgs, cluster: Cluster) -> str:
    """``auto``: in-process trials on one machine with at most one GPU and one worker; Ray Train otherwise, and on a cluster."""
    if place.engine != "auto":
        return place.engine
    several = place.workers is not None and place.workers[1] > 1
    return "train" if several or cluster.gpus > 1 or not cluster.local else "trial"


def choose_scaling(place: PlaceArgs, cluster: Cluster, engine: str) -> Scaling:
    low, high = place.workers or (1, 1)
    if engine == "trial" and high > 1:
        raise ConfigError(f"--workers {low}-{high} needs --engine train: a trial of --engine trial is one process.")
    gpus = place.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if cluster.most_gpus or (not cluster.local and (place.max_gpus or 0) > 0) else 0.0
    cpus = place.cpus_per_worker
    if cpus is None:
        # Half of the CPUs beside a GPU; the other half is for data tasks, which find none where workers reserved all.
        cpus = gpus * cluster.limits.cpus_per_gpu // 2 if cluster.limits else 1
    return Scaling(workers=low, max_workers=high, cpus_per_worker=max(1, math.ceil(cpus)), gpus_per_worker=gpus)
