"""Where runs go on Ray: decided once, before anything starts. Imports neither Ray nor torch.

What cannot be placed is refused at once, with the numbers: Ray would wait for it without a word.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltcore.config.execution import AUTO, PlaceArgs
from ltcore.errors import CapacityError, ConfigError
from ltcore.retry import patience_s
from ltcore.runtime.cluster import Cluster
from ltcore.storage import is_local
from ltcore.text import counted

if TYPE_CHECKING:
    from ltcore.config.schema import RunConfig

BACKEND = "LTCORE_DIST_BACKEND"
"""Variable that names the collectives' backend instead of Ray's choice (nccl with GPUs, else gloo): gloo on nodes whose GPUs
exist in name only, or to see whether NCCL is what hangs."""
BEYOND_PATIENCE_S = 180.0
"""How much longer than for its storage a process may be waited for by others before all of them count as hanging."""


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
        """Returns the most workers that Ray may start."""
        return max(self.workers, self.max_workers)


@dataclass(frozen=True)
class Demand:
    """What one run reserves, and what it needs beside it."""

    cpus: float
    gpus: float
    data_cpus: int
    """CPUs that must stay free for data tasks: Ray Data never runs where workers reserved everything."""

    def describe(self) -> str:
        """Describes the demand in words."""
        parts = [counted(self.cpus, "CPU")]
        if self.data_cpus:
            parts[0] += f" + {self.data_cpus} for data tasks"
        if self.gpus:
            parts.append(counted(self.gpus, "GPU"))
        return " and ".join(parts)


@dataclass(frozen=True)
class Placement:
    """Which engine computes runs, what each of them takes, and how many fit at a time."""

    engine: str
    scaling: Scaling
    demand: Demand
    concurrent: int
    capacity_source: str
    """What ``concurrent`` was counted with, in words; '' on one machine, where there is nothing to guess."""

    @classmethod
    def decide(
        cls, args: PlaceArgs, cluster: Cluster, root: str, cfg: RunConfig | None = None, *, search: str = "random"
    ) -> Placement:
        """Decides for runs of ``cfg`` whose results go to ``root``; without ``cfg``, for runs of any recipe.

        Raises ConfigError where the answers of the command line do not go together, or not with this cluster, and
        CapacityError where not even one run fits.
        """
        check_storage(root, cluster)
        engine = choose_engine(args, search)
        scaling = choose_scaling(args, cluster, engine)
        if cfg is not None:
            check_workers(cfg, scaling)
        need = demand(scaling, engine, streams=cfg is not None and cfg.data.loader == "ray")
        return cls(
            engine=engine,
            scaling=scaling,
            demand=need,
            concurrent=concurrency(need, cluster, max_gpus=args.max_gpus),
            capacity_source=capacity_source(cluster, args.max_gpus),
        )

    def silence_s(self, asked_s: float) -> float:
        """Returns after how many seconds of silence a run hangs: ``asked_s`` where it is one process that reads by itself.

        Workers of a group, and those that data tasks feed, say nothing while they wait for another process, which may wait for
        its storage.
        """
        alone = self.scaling.most == 1 and not self.demand.data_cpus
        return asked_s if alone else max(asked_s, patience_s() + BEYOND_PATIENCE_S)

    def describe(self) -> str:
        """Says what one run takes and how many fit at a time.

        It also says on which resources that is based.
        """
        counted = f", {self.capacity_source}" if self.capacity_source else ""
        return f"{self.demand.describe()}; {self.concurrent} at a time{counted}"


def check_storage(root: str, cluster: Cluster) -> None:
    """Refuses a path on one machine where other nodes write results too, or will."""
    if (cluster.nodes > 1 or cluster.limits) and is_local(root):
        size = f"has {cluster.nodes} nodes" if cluster.nodes > 1 else "adds nodes as they are needed"
        raise ConfigError(
            f"Storage {root} is a path of one machine, but the cluster {size}: set LTCORE_STORAGE (or "
            "--storage) to a place that all nodes reach, such as s3://bucket/runs."
        )


def choose_engine(args: PlaceArgs, search: str = "random") -> str:
    """Returns the engine asked for, or for ``auto`` the one that suits the number of workers.

    That is a process for each run of one worker, and for ``search=pbt``; Ray Train for runs of several workers. It would take
    three more processes and over a GiB of the head's memory for each run.
    """
    if search == "pbt":
        if args.engine not in ("auto", "trial") or (args.workers or (1, 1))[1] > 1:
            raise ConfigError(
                "sweep.search=pbt needs --engine trial and one worker per trial: trials go on from each other's checkpoints, "
                "which runs of Ray Train keep to themselves."
            )
        return "trial"
    if args.engine != "auto":
        return args.engine
    return "train" if args.workers is not None and args.workers[1] > 1 else "trial"


def choose_scaling(args: PlaceArgs, cluster: Cluster, engine: str) -> Scaling:
    """Returns the workers asked for, with the cluster's CPUs and GPUs where none were given."""
    low, high = args.workers or (1, 1)
    check_answers(args, engine)
    gpus = None if args.gpus_per_worker == AUTO else args.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if cluster.most_gpus or (not cluster.local and (args.max_gpus or 0) > 0) else 0.0
    if 0 < gpus < 1 and high > 1 and os.environ.get(BACKEND) != "gloo":
        raise ConfigError(
            f"--gpus-per-worker {gpus:g} would put workers of one run on the same GPU, which NCCL refuses: give each a whole one."
        )
    cpus = args.cpus_per_worker
    if cpus is None:
        # Half of the CPUs beside a GPU; the other half is for data tasks, which find none where workers reserved all.
        cpus = gpus * cluster.limits.cpus_per_gpu // 2 if cluster.limits else 1
    return Scaling(workers=low, max_workers=high, cpus_per_worker=max(1, math.ceil(cpus)), gpus_per_worker=gpus)


def check_answers(args: PlaceArgs, engine: str) -> None:
    """Refuses answers of the command line that do not go with the engine, on whatever cluster."""
    low, high = args.workers or (1, 1)
    if engine == "trial" and high > 1:
        raise ConfigError(f"--workers {low}-{high} needs --engine train: a trial of --engine trial is one process.")
    if args.gpus_per_worker == AUTO and engine != "trial":
        raise ConfigError(
            f"--gpus-per-worker auto is for a sweep with --engine trial, one process per trial; with --engine {engine} give a "
            "number, or leave it out for a whole GPU for each worker."
        )


def check_workers(cfg: RunConfig, scaling: Scaling) -> None:
    """Refuses workers that cannot share the batches, for every number of them that Ray may start."""
    from ltcore.config.load import check_world

    for world in range(scaling.workers, scaling.most + 1):
        try:
            check_world(cfg, world)
        except ConfigError as error:
            several = f"--workers {scaling.workers}-{scaling.most}: Ray may start any number of these. "
            raise ConfigError(f"{several if scaling.most > scaling.workers else ''}{error}") from None


def demand(scaling: Scaling, engine: str, streams: bool) -> Demand:
    """Returns what one run takes at its smallest size."""
    workers = scaling.workers if engine == "train" else 1
    return Demand(workers * scaling.cpus_per_worker, workers * scaling.gpus_per_worker, 1 if streams else 0)


def concurrency(need: Demand, cluster: Cluster, *, max_gpus: float | None) -> int:
    """Counts how many such runs fit at a time, at least one. Raises CapacityError where not even one does.

    It counts with the most that the cluster may become: what the autoscaler allows, else ``max_gpus`` for its GPUs,
    else the present nodes. Runs never take more than ``max_gpus``.
    """
    cpus, gpus = offer(cluster, max_gpus)
    if need.cpus + need.data_cpus > cpus or need.gpus > gpus:
        raise CapacityError(
            f"One run needs {need.describe()}; {'this machine' if cluster.local else 'the cluster'} offers at most "
            f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}, so it could never start. Lower --workers, --cpus-per-worker or "
            "--gpus-per-worker, or use a larger machine."
        )
    real_cpus = cluster.real_cpus if cluster.local else cpus
    fits = [(real_cpus - (0 if cluster.local else need.data_cpus)) / need.cpus]
    if need.gpus:
        fits.append(_fitting(gpus, need.gpus))
    return max(1, math.floor(min(fits)))


def _fitting(gpus: float, each: float) -> float:
    """Returns how many runs fit on GPUs; a run with less than a whole one is never on two."""
    if each >= 1:
        return gpus / each
    whole, rest = divmod(gpus, 1)
    return whole * math.floor(1 / each + 1e-9) + math.floor(rest / each + 1e-9)


def offer(cluster: Cluster, max_gpus: float | None) -> tuple[float, float]:
    """Returns (CPUs, GPUs) to count with.

    Future nodes that are known only from ``max_gpus`` bring as many CPUs as are asked for.
    """
    if max_gpus is None:
        return cluster.most_cpus, cluster.most_gpus
    if cluster.local or cluster.limits:
        return cluster.most_cpus, min(max_gpus, cluster.most_gpus)
    return (math.inf if max_gpus > cluster.gpus else cluster.cpus), max_gpus


def capacity_source(cluster: Cluster, max_gpus: float | None) -> str:
    """Says on which resources ``concurrency`` is based; '' on one machine."""
    if cluster.local:
        return ""
    if cluster.limits:
        return "by the autoscaler's maximum"
    if max_gpus is not None:
        return "by --max-gpus"
    return "by the nodes of now, because no autoscaler's maximum is known here: --max-gpus N says what may come"
