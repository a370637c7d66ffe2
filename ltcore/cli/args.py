"""The command lines of the pipelines. Reading one imports neither torch nor Ray: ``--help`` and ``--show`` are instant.

Grammar: words, flags and ``key=value`` overrides in any order. ``ray submit`` joins arguments without quoting, so no
part of the grammar needs a blank, a bracket or a quote: lists are ``a,b,c``, ranges ``log:0.02,1``, off is ``null``.

What a flag says about the run itself is folded into ``overrides`` (``--data`` is ``data.uri=``, ``--seed`` is
``seed=``), so there is one way for a value to reach a run; the other fields say where and how it is computed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltcore.config.execution import PREDICTION_FORMATS, PlaceArgs
from ltcore.config.keys import methods
from ltcore.data.config import READING_KEYS
from ltcore.data.glt.choices import GltChoices
from ltcore.data.shards.reencode import Reencode
from ltcore.errors import ConfigError

DEMO_SWEEP, DEMO_RECIPE, DEMO_DATA = "tune_lpa", "digits_glt_lpa_dro_ifl", "digits-glt"
"""The sweep that runs without a word, its recipe, and the data of that."""
FILE_KEYS = (
    "data.uri",
    "data.images",
    "data.annotations",
    "model.weights",
    "model.text.weights",
    "model.text.names",
    "train.init_from",
    "stage2.from_run",
)
"""Keys whose value may be a path."""
_WORDS = ("", "null", "none", "auto", "default")
"""Values that mean something else than a file or folder of that name."""


def absolute(key: str, value: str) -> str:
    """Returns the value of a key, of which a path that exists is made absolute.

    Workers change directory, and what a run records is read from other folders. Of a pattern of data, such as
    ``shards/*.tar``, the folder before it has to exist. A word that says something else, such as the name of a source of
    images, is no folder beside it.
    """
    if key not in FILE_KEYS or "://" in value or value in _WORDS or (key == "data.uri" and value in _sources()):
        return value
    try:
        path = Path(value).expanduser()
        before, *pattern = re.split(r"[*?\[{]", str(path), maxsplit=1)
        exists = path.exists() or (key == "data.uri" and pattern and Path(f"{before}x").parent.exists())
    except (OSError, RuntimeError):  # too long a name, a closed folder, ~ of nobody: said when it is read
        return value
    return str(path.absolute()) if exists else value


def _sources() -> set[str]:
    return {row.name for row in methods() if row.kind == "data"}


def fold(overrides: dict[str, Any], flags: Mapping[str, object]) -> None:
    """Turns flags into overrides. LTCORE_DATA comes last: it replaces the recipe's data, but nothing that was given.

    Raises ConfigError for a key that is given twice, with different values.
    """
    for key, value in flags.items():
        if value is None:
            continue
        meant = absolute(key, str(value))
        if str(overrides.setdefault(key, meant)) != meant:
            raise ConfigError(f"{key} is given twice: {overrides[key]} and {value}")
    if data := os.environ.get("LTCORE_DATA"):
        overrides.setdefault("data.uri", absolute("data.uri", data))


@dataclass(frozen=True, kw_only=True)
class TrainArgs(PlaceArgs):
    """``train.py``"""

    recipe: str
    """'' where only data are named: the size of their images chooses."""
    overrides: dict[str, str]
    """Dotted keys of the run, those given as flags included."""


@dataclass(frozen=True, kw_only=True)
class TuneArgs(PlaceArgs):
    """``tune`` and ``tune_lpa.py``"""

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
    """What to predict: image files, folders, zips, lists of files, or shards; empty: the data."""
    data: str | None
    """URI of the data to evaluate on; None: what the checkpoint was trained on."""
    splits: tuple[str, ...]
    """Splits by name; empty: those of ``protocols``."""
    protocols: tuple[str, ...]
    """Any of 'clt', 'alt', 'glt'; empty, with empty ``splits``: every test split."""
    posthoc_tau: float
    """Strength of post-hoc logit adjustment; 0 is none."""
    output: str | None
    """File for all metrics as JSON; None: one file for each data set and split in metrics/ of the run or checkpoint. Or,
    with another ending, the file for predictions; None: the standard output."""
    debug: bool
    tta: str = "none"
    """Test-time augmentation: 'none', 'flip' or 'five_crop'."""
    top_k: int = 1
    """Most probable classes of each image in predictions."""
    logits: bool = False
    """Whether predictions have the logits."""
    engine: str = "inline"
    """Where predictions are computed: 'inline' (this process) or 'ray' (a pool of actors)."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """How ``data`` is read: keys such as data.label_column."""

    @property
    def predicts(self) -> bool:
        """Tells whether predictions are asked for rather than metrics."""
        return bool(self.images) or (self.output or "").endswith(PREDICTION_FORMATS)

    def contradiction(self) -> str:
        """Returns what would be of metrics and of predictions at once, in words; '' where there is nothing."""
        known, output = ", ".join(PREDICTION_FORMATS), self.output or ""
        if self.images and output and not output.endswith(PREDICTION_FORMATS):
            return f"--output {output}: predictions are written as {known}; choose one by the ending"
        if len(self.images) > 1 and (self.splits or self.protocols):
            return "--split and --protocol choose images of one data set; leave them out, or give shards alone"
        if output and not self.predicts and not output.endswith(".json"):
            return f"--output {output}: expected the ending .json for metrics, or {known} for predictions"
        if not self.predicts and (self.top_k > 1 or self.logits or self.engine == "ray"):
            return f"--top-k, --logits and --engine ray are of predictions; give IMAGES, or --output with the ending {known}"
        if self.logits and not output.endswith((".parquet", ".jsonl")):
            return "--logits needs --output FILE.parquet or FILE.jsonl, which hold lists"
        return ""


@dataclass(frozen=True, kw_only=True)
class ProtocolsArgs:
    """``evaluate.py --protocols``"""

    runs: tuple[str, ...]
    """Run directories, or their URIs."""
    data: str | None
    """As for ``EvaluateArgs``."""
    train_missing: bool = False
    """Train the runs on the other training split that are not there."""
    posthoc_tau: float = 0.0
    tta: str = "none"
    output: str | None = None
    """File of the table, .json or .csv; None: JSON in metrics/ of the first run."""
    debug: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """``ltcore export``"""

    checkpoint: str
    """A checkpoint or run directory, or its URI."""
    file: str
    """Where the model goes, with its format as the ending."""
    images: tuple[str, ...]
    """What the file is compared on; empty: images of training's data, where they are at hand."""
    posthoc_tau: float
    tta: str


@dataclass(frozen=True, kw_only=True)
class CardArgs:
    """``ltcore card``"""

    run: str
    """A run directory, or its URI."""
    output: str | None
    """None: the standard output."""


@dataclass(frozen=True, kw_only=True)
class RetrieveArgs:
    """``ltcore retrieve``"""

    run: str
    """A run or checkpoint directory, or its URI, or the name of a backbone."""
    weights: str | None
    """Of a backbone: a file, or 'default'; None: 'default'."""
    images: tuple[str, ...]
    """Queries: image files, folders, zips or lists; empty: some of the test split."""
    data: str | None
    """URI of the data to search; None: what the run was trained on."""
    output: str | None
    """File of the page; None: in the run directory."""
    neighbors: int
    prototypes: int
    reading: Mapping[str, Any] = field(default_factory=dict)
    """How ``data`` is read: keys such as data.label_column."""


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """``report.py``"""

    directories: list[Path]
    """A sweep, or runs."""
    output: Path | None
    """File of the page; None: in the directory."""
    markdown: bool
    """Print a table instead of a page."""
    rows: tuple[str, ...] = ()
    """Variants that it has; (): all."""
    columns: tuple[str, ...] = ()
    """Titles that it has beside their names; (): all."""


@dataclass(frozen=True, kw_only=True)
class SourceArgs:
    """How images are read that shards are made of."""

    classes_from: str | None
    max_bad_samples: int
    label_key: str | None
    lists: list[tuple[str, str]]
    """(split, list file) pairs."""
    image_column: str | None
    label_column: str | None
    split_column: str | None
    attribute_column: str | None
    engine: str
    """Where shards are written: 'inline' (this process), 'ray' (tasks), or 'auto'."""
    debug: bool


@dataclass(frozen=True, kw_only=True)
class ShardsArgs(SourceArgs):
    """``make_shards.py``"""

    source: str
    """Images, the name of a data set, or 'check', 'info' or 'pictures'."""
    target: str
    """Where the shards are or will be; of 'pictures' any data."""
    pictures_dir: str | None
    """Folder for pictures."""
    imbalance_factor: float | None
    subset: str
    subset_seed: int
    val_per_class: int
    images: str | None
    annotations: str | None
    shard_size: int
    reencode: Reencode | None = None
    """How images are encoded anew."""


@dataclass(frozen=True, kw_only=True)
class GltArgs(SourceArgs):
    """``shards glt``"""

    source: str
    """Images, or the name of a data set."""
    target: str
    """Where the shards will be."""
    choices: GltChoices


@dataclass(frozen=True, kw_only=True)
class DoctorArgs:
    """``ltcore doctor``"""

    storage: str | None
    data: str | None
    max_gpus: float | None


def check_reading(keys: Iterable[str]) -> None:
    """Raises ConfigError for a key that does not say how other data are read."""
    known = [f"data.{key}" for key in READING_KEYS]
    if odd := next((key for key in keys if key not in known), None):
        raise ConfigError(f"{odd} does not say how data are read; expected {', '.join(known)}.")
