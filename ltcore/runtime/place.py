"""Where a run goes and on which engine: decided, and refused, before anything starts. Imports neither Ray nor torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ltcore.config.execution import PlaceArgs
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import prepare, selection_remarks
from ltcore.data.datasets.registry import find
from ltcore.data.shards.manifest import Manifest, read_manifest
from ltcore.errors import ConfigError, refuse_userinfo
from ltcore.runtime.cluster import Cluster
from ltcore.runtime.placement import Scaling
from ltcore.storage import is_local, join

if TYPE_CHECKING:
    from ltcore.config.schema import RunConfig

BACKEND = "LTCORE_DIST_BACKEND"
"""Variable that names the collectives' backend instead of Ray's choice (nccl with GPUs, else gloo): gloo on nodes whose GPUs
exist in name only, or to see whether NCCL is what hangs."""
DEFAULT_STORAGE = Path.home() / "ltcore-runs"


def storage_root(storage: str | None) -> str:
    """``--storage``, else LTCORE_STORAGE, else a folder in the home directory; absolute, because workers change directory."""
    root = storage or str(DEFAULT_STORAGE)
    try:
        refuse_userinfo(**{"--storage (or LTCORE_STORAGE)": root})
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    return str(Path(root).expanduser().resolve()) if is_local(root) and "://" not in root else root.rstrip("/")


def prepare_data(data: DataConfig, root: str, say: Callable[[str], None], *, fresh: bool = False) -> str:
    """URI of the shards, made where there are none: beside the results where these are in an object store, which every node
    reaches, else in the cache folder. ``fresh`` makes generated data again, and no other."""
    place = None if is_local(root) else join(root, "datasets")
    return prepare(data, fresh=fresh and find(data.uri).is_generated, progress=say, root=place)


def prepare_run(cfg: RunConfig, root: str, say: Callable[[str], None], *, fresh: bool = False) -> tuple[str, Manifest]:
    """URI and manifest of a run's shards, after what a person should know of them was said. ConfigError as for
    ``selection_remarks``."""
    uri = prepare_data(cfg.data, root, say, fresh=fresh)
    manifest = read_manifest(uri)
    # the factor of stage 2 only repeats that of stage 1
    chosen = cfg.data if cfg.stage2 is None else replace(cfg.data, imbalance_factor=None)
    for remark in selection_remarks(chosen, manifest):
        say(remark)
    return uri, manifest


def check_workers(cfg: RunConfig, scaling: Scaling) -> None:
    """Every number of workers that Ray may start has to share the batches. ConfigError where one cannot."""
    from ltcore.config.load import check_world

    for world in range(scaling.workers, scaling.most + 1):
        try:
            check_world(cfg, world)
        except ConfigError as error:
            several = f"--workers {scaling.workers}-{scaling.most}: Ray may start any number of these. "
            raise ConfigError(f"{several if scaling.most > scaling.workers else ''}{error}") from None


def check_storage(root: str, cluster: Cluster) -> None:
    if (cluster.nodes > 1 or cluster.limits) and is_local(root):
        size = f"has {cluster.nodes} nodes" if cluster.nodes > 1 else "adds nodes as they are needed"
        raise ConfigError(
            f"Storage {root} is a path of one machine, but the cluster {size}: set LTCORE_STORAGE (or "
            "--storage) to a place that all nodes reach, such as s3://bucket/runs."
        )


def choose_engine(place: PlaceArgs, cluster: Cluster, search: str = "random") -> str:
    """``auto``: in-process trials on one machine with at most one GPU and one worker, and for ``search=pbt``; Ray Train
    otherwise, and on a cluster."""
    if search == "pbt":
        if place.engine not in ("auto", "trial") or (place.workers or (1, 1))[1] > 1:
            raise ConfigError(
                "sweep.search=pbt needs --engine trial and one worker per trial: trials go on from each other's checkpoints, "
                "which runs of Ray Train keep to themselves."
            )
        return "trial"
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
    if 0 < gpus < 1 and high > 1 and os.environ.get(BACKEND) != "gloo":
        raise ConfigError(
            f"--gpus-per-worker {gpus:g} would put workers of one run on the same GPU, which NCCL refuses: give each a whole one."
        )
    cpus = place.cpus_per_worker
    if cpus is None:
        # Half of the CPUs beside a GPU; the other half is for data tasks, which find none where workers reserved all.
        cpus = gpus * cluster.limits.cpus_per_gpu // 2 if cluster.limits else 1
    return Scaling(workers=low, max_workers=high, cpus_per_worker=max(1, math.ceil(cpus)), gpus_per_worker=gpus)
