"""The command lines of the pipelines. Reading one imports neither torch nor Ray: ``--help`` and ``--show`` are instant.

Grammar: words, flags and ``key=value`` overrides in any order. ``ray submit`` joins arguments without quoting, so no
part of the grammar needs a blank, a bracket or a quote: lists are ``a,b,c``, ranges ``log:0.02,1``, off is ``null``.

What a flag says about the run itself is folded into ``overrides`` (``--data`` is ``data.uri=``, ``--seed`` is
``seed=``), so there is one way for a value to reach a run; the other fields say where and how it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ltcore.config.execution import PlaceArgs


@dataclass(frozen=True, kw_only=True)
class TrainArgs(PlaceArgs):
    """``train.py``"""

    recipe: str
    overrides: dict[str, str]
    """Dotted keys of the run, those given as flags included."""


@dataclass(frozen=True, kw_only=True)
class TuneArgs(PlaceArgs):
    """``tune_lpa.py``"""

    sweep: str
    overrides: dict[str, str]
    """For ``read_sweep``: dotted keys of every run, and ``sweep.`` keys, those given as flags included."""
    max_hours: float | None
    """Most hours that the sweep may take."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """``evaluate.py``"""

    checkpoint: str
    """A checkpoint or run directory, or its URI."""
    images: tuple[str, ...]
    """Image files to predict; empty: evaluate."""
    data: str | None
    """URI of the data to evaluate on; None: what the checkpoint was trained on."""
    splits: tuple[str, ...]
    """Splits by name; empty: those of ``protocols``."""
    protocols: tuple[str, ...]
    """Any of 'clt', 'alt', 'glt'; empty, with empty ``splits``: every test split."""
    posthoc_tau: float
    """Strength of post-hoc logit adjustment; 0 is none."""
    output: str | None
    """File for all metrics as JSON; None: one file for each data set and split in metrics/ of the run or checkpoint."""
    debug: bool


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """``report.py``"""

    directories: list[Path]
    """A sweep, or runs."""
    output: Path | None
    """File of the page; None: in the directory."""
    markdown: bool
    """Print a table instead of a page."""


@dataclass(frozen=True, kw_only=True)
class ShardsArgs:
    """``make_shards.py``"""

    source: str
    """Images, the name of a data set, or 'check' or 'info'."""
    target: str
    """Where the shards are or will be."""
    imbalance_factor: float | None
    subset: str
    subset_seed: int
    val_per_class: int
    classes_from: str | None
    max_bad_samples: int
    shard_size: int
    label_key: str | None
    lists: list[tuple[str, str]]
    """(split, list file) pairs."""
    image_column: str | None
    label_column: str | None
    split_column: str | None
    attribute_column: str | None


@dataclass(frozen=True, kw_only=True)
class DoctorArgs:
    """``ltcore doctor``"""

    storage: str | None
    data: str | None
    max_gpus: float | None
