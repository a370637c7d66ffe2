"""Where and how runs are computed, as the command line says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ENGINES = ("auto", "inline", "trial", "train")
AUTO: Literal["auto"] = "auto"
"""Of ``--gpus-per-worker``: the part of a GPU is measured and chosen."""
PREDICTION_FORMATS = (".parquet", ".csv", ".jsonl")
"""Endings of a file that ask for predictions in it."""


@dataclass(frozen=True, kw_only=True)
class PlaceArgs:
    """Where and how something is computed; nothing here changes what is computed."""

    engine: str = "auto"
    """'auto', 'inline' (this process), 'trial' (a Tune trial) or 'train' (Ray Train workers)."""
    workers: tuple[int, int] | None = None
    """Fewest and most Ray Train workers; None: the engine chooses."""
    cpus_per_worker: float | None = None
    gpus_per_worker: float | Literal["auto"] | None = None
    """GPUs of each worker, or a part of one; None: a whole one where there are GPUs, and in a sweep with one worker per trial
    as 'auto', which measures how many trials can share one."""
    max_gpus: float | None = None
    """Most GPUs that runs may hold together; on a cluster that grows by itself also how far it may."""
    storage: str | None = None
    """Path or URI under which run directories go (``--storage``, else LTCORE_STORAGE); None: the default place."""
    fresh: bool = False
    """Do everything anew, whatever is stored."""
    dry_run: bool = False
    """Prepare the data, check everything, say the cost, train nothing."""
    debug: bool = False
    """Show tracebacks and library logs."""
