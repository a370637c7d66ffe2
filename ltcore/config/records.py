"""What runs and sweeps write down about themselves: ``run.json`` and ``sweep.json``, field by field.

Training and tuning write these records, reports and commands read them, and training and reports know nothing of each
other. So they live here, in the highest layer below both, beside the schema of what a person asks for; importing them
pulls in no torch. Metrics, parameters and configurations stay mappings: their keys are data.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from ltcore.config.gpu_share import GpuShare
from ltcore.config.json_record import JsonRecord, StoredRecord
from ltcore.config.retrained import AblationRecord, BalancedRecord, Comparison, RetrainRecord
from ltcore.config.space import parse_space
from ltcore.config.trained_with import Hardware, TrainedData
from ltcore.errors import ConfigError
from ltcore.evaluation.calibration import ReliabilityBin
from ltcore.evaluation.confused import ConfusedPair
from ltcore.text import glimpse

Metrics = Mapping[str, float | None]
"""Name of a metric -> value; None where it is not defined, as for an empty shot group."""
Status = Literal["running", "finished", "stopped", "failed"]
Notice = Literal["preemption", "resize"]
"""Why a group of workers was told that it ends: a node of it is taken away, or the run goes on with another number."""


def now() -> datetime.datetime:
    """Returns the current time as it is written in records."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


@dataclass(frozen=True, kw_only=True)
class Stage1(JsonRecord):
    """The checkpoint that a run of stage 2 started from."""

    run: str
    """``stage2.from_run``."""
    name: str
    seed: int
    checkpoint: str
    epoch: int
    step: int
    fingerprint: str
    """Of the checkpoint's own record: another one after stage 1 was trained anew."""


@dataclass(frozen=True, kw_only=True)
class Stopped(JsonRecord):
    """Why a trial was stopped at a rung."""

    epoch: int
    value: float | None
    rank: int
    of: int
    """Trials that were compared."""
    keep: int
    """Trials that went on."""


@dataclass(frozen=True, kw_only=True)
class Start(JsonRecord):
    """One start of a run: where it went on from, with how many workers, and how it was told to leave."""

    images_seen: int
    """At its checkpoint; 0 at the beginning."""
    world: int
    """Workers. With equal numbers from equal points on, runs are equal bit for bit."""
    host: str
    """Of rank 0."""
    at: datetime.datetime
    notice: Notice | None = None
    left_at: int | None = None
    """Images seen when the notice was heeded; None where none came."""


@dataclass(frozen=True, kw_only=True)
class RunRecord(StoredRecord):
    """``run.json``: what a run is, was asked to do, and came to."""

    FILE: ClassVar[str] = "run.json"

    schema: Literal[1] = 1
    status: Status = "running"
    reason: str = ""
    """Why it was stopped or failed, or finished before its last epoch."""
    retryable: bool | None = None
    """Of one that failed: whether the same command may fare better. If not, it is not repeated."""
    short_of_gpu: float | None = None
    """Of one that failed: the part of a GPU whose memory was too small for it."""
    id: str
    name: str
    kind: str
    """See ``RunInfo.kind``."""
    group: str
    seed: int
    config: Mapping[str, Any]
    """The whole configuration, flat."""
    epochs_planned: int
    epochs_done: int = 0
    images_seen: int = 0
    last: Metrics
    """Metrics of the last whole epoch."""
    best: Metrics
    """Metrics of the epoch with the best ``train.select``."""
    data: TrainedData
    hardware: Hardware
    precision: str
    threads: int
    world: int
    device: str
    engine: str
    pid: int
    versions: Mapping[str, str]
    started_at: datetime.datetime
    wandb_id: str
    """Drawn when the run begins, so that neither --fresh nor another storage continues a run of W&B that is not this one."""
    seconds: float | None = None
    """Of training."""
    finished_at: datetime.datetime | None = None
    bad_samples: int | None = None
    test: Mapping[str, Metrics] | None = None
    """Split -> metrics with the weights of the last epoch; None before the run was tested."""
    test_best: Mapping[str, Metrics] | None = None
    """The same with the weights of the best epoch on validation."""
    per_class: Mapping[str, Sequence[float | None]] | None = None
    """Split -> recall of each class with the weights of the last epoch; None of a class without test samples."""
    per_class_best: Mapping[str, Sequence[float | None]] | None = None
    """The same with the weights of the best epoch on validation."""
    support: Mapping[str, Sequence[int]] | None = None
    """Split -> test samples of each class."""
    calibration: Mapping[str, Sequence[ReliabilityBin]] | None = None
    """Split -> reliability bins with the weights of the last epoch, from the lowest confidence to the highest."""
    calibration_best: Mapping[str, Sequence[ReliabilityBin]] | None = None
    """The same with the weights of the best epoch on validation."""
    confused: Mapping[str, Sequence[ConfusedPair]] | None = None
    """Split -> the pairs of classes confused most with the weights of the last epoch, and some of their images."""
    trained_parameters: int | None = None
    """Of the network: numbers that training changes (``model.tune``); of stage 2: those that its method trains, 0 where it
    computes the classifier. None in records of stage 2 that lack it, of an older version."""
    parameters: int | None = None
    """All numbers of the network that could be trained."""
    schedule: Sequence[Mapping[str, Any]] | None = None
    """Values of the keys that may change between starts, each with the ``images_seen`` from which they held."""
    started_from: Mapping[str, Any] | None = None
    """Where ``train.init_from`` or ``model.weights`` took the weights, and ``model.head_init=text`` its text encoder."""
    weights_sha256: str | None = None
    """Hash of the file of ``model.weights``, with which the run continues to be compared."""
    starts: tuple[Start, ...] | None = None
    """Every start of the run, the first one first; None of stage 2, which always starts from its beginning."""
    stage1: Stage1 | None = None
    decision: Stopped | None = None

    def __post_init__(self) -> None:
        if self.status == "finished" and (self.finished_at is None or self.seconds is None):
            raise ValueError(f"{'finished_at' if self.finished_at is None else 'seconds'} is missing")
        for name in ("per_class", "per_class_best", "support"):
            for split, values in (getattr(self, name) or {}).items():
                if len(values) != len(self.data.classes):
                    raise ValueError(f"{name}.{split} has {len(values)} values for {len(self.data.classes)} classes")
                most = math.inf if name == "support" else 1
                if wrong := [value for value in values if value is not None and not 0 <= value <= most]:
                    raise ValueError(f"{name}.{split} has {glimpse(wrong[0])}, expected numbers from 0 to {most:g}")
        for split, pairs in (self.confused or {}).items():
            for pair in pairs:
                if not all(0 <= c < len(self.data.classes) for c in (pair.label, pair.prediction)):
                    raise ValueError(f"confused.{split} names a class outside the {len(self.data.classes)} there are")

    @property
    def train_split(self) -> str:
        """Returns the split that the run was trained on."""
        return _train_split(self.config)

    @property
    def worlds(self) -> tuple[int, ...]:
        """Returns the numbers of workers that the run had, one after the other."""
        found = [start.world for start in self.starts or ()] or [self.world]
        return tuple(world for n, world in enumerate(found) if n == 0 or world != found[n - 1])

    @property
    def preemptions(self) -> tuple[int, ...]:
        """Returns for each preemption that was announced the images that had to be trained on again."""
        return tuple(
            (start.left_at or 0) - following.images_seen
            for start, following in pairwise(self.starts or ())
            if start.notice == "preemption"
        )


@dataclass(frozen=True, kw_only=True)
class Place(JsonRecord):
    """One trial in a comparison at a rung."""

    id: str
    epoch: int
    value: float | None
    rank: int
    goes_on: bool


@dataclass(frozen=True, kw_only=True)
class RungDecision(JsonRecord):
    """Who of a cohort goes on after a rung."""

    cohort: int
    fraction: float
    """Of a whole training."""
    keep: int
    trials: tuple[Place, ...]
    """By rank."""

    def __post_init__(self) -> None:
        if not self.trials:
            raise ValueError("trials is empty, expected those that were compared")


@dataclass(frozen=True, kw_only=True)
class TrialRecord(JsonRecord):
    """What a trial came to, as its sweep says it."""

    id: str
    run_dir: str
    """Below the directory of the sweep."""
    status: Status
    reason: str
    params: Mapping[str, Any]
    """The swept keys and their values."""
    epochs_done: int
    best: float | None
    """The sweep's metric at its best epoch."""
    last: float | None
    """The sweep's metric after its last epoch, by which trials are ranked."""
    retryable: bool | None = None
    """See ``RunRecord.retryable``."""
    schedule: Sequence[Mapping[str, Any]] | None = None
    decision: Stopped | None = None


@dataclass(frozen=True, kw_only=True)
class SharedStart(JsonRecord):
    """The epochs that trials had in common and that were trained once."""

    epochs: int
    trials: int
    saved_s: float


Values = Mapping[str, tuple[float | None, ...]]
"""Metric -> a value for each seed."""


@dataclass(frozen=True, kw_only=True)
class VariantRecord(JsonRecord):
    """What one of the compared variants came to."""

    name: str
    changes: Mapping[str, Any]
    """Dotted keys in which it differs from the recipe."""
    trials: tuple[str, ...]
    """Its trials, one for each seed."""
    alt_trials: tuple[str, ...] = ()
    """Those of the ALT protocol, trained on balanced classes; () where it was not asked for."""
    reason: str = ""
    """Why it is not ranked; '' where it is."""
    seconds: tuple[float, ...] = ()
    """Of training of each trial that finished; with stage 2, of both stages."""
    trained_parameters: int | None = None
    """Of the network: numbers that training changes; of stage 2, those that its method trains; None where no trial finished."""
    val: Values
    """At the end of training, of the trials that finished."""
    test: Mapping[str, Values] | None = None
    """Split -> values, with those of ``alt_trials`` as 'alt'; None before it was tested."""
    difference: Comparison | None = None
    """The chosen variant against this one, where both were tested with the same seeds."""


@dataclass(frozen=True, kw_only=True)
class SweepRecord(StoredRecord):
    """``sweep.json``: what a sweep is, what it has decided, and what it came to."""

    FILE: ClassVar[str] = "sweep.json"

    schema: Literal[1] = 1
    status: Status = "running"
    reason: str = ""
    """Why it failed."""
    name: str
    recipe: str
    space: Mapping[str, str]
    """Swept key -> range."""
    search: str
    metric: str
    """What trials are ranked by, such as 'val/balanced_accuracy'."""
    num_trials: int
    sizes: tuple[int, ...]
    """The numbers of trials that it has had, rising."""
    cut_from: int | None = None
    """The number of trials of which ``sweep.budget_s`` allowed the first of ``sizes``; None where it allowed all."""
    config_hash: str
    identity: Mapping[str, Any]
    """All that the result depends on but the data, flat."""
    data_hash: str
    epochs: int
    """Of one training."""
    weights: str | None = None
    """``model.weights`` of the recipe, as decided when the sweep began."""
    weights_sha256: Mapping[str, str] | None = None
    """Setting that leads to weights which runs start from -> hash of the file or checkpoint; None in older records."""
    input: Mapping[str, Any] | None = None
    """Keys of ``data`` that the weights filled then, flat."""
    engine: str
    gpu_share: GpuShare | None = None
    """What each run takes of a GPU; None where they run without one."""
    hardware: Hardware
    created_at: datetime.datetime
    finished_at: datetime.datetime | None = None
    stages: Mapping[str, float]
    """Stage -> seconds."""
    stages_before: Mapping[str, float]
    """Those of the interrupted sweep that this one continues."""
    node_hours: Mapping[str, float]
    """Kind of node -> hours."""
    most_nodes: int = 0
    suggested: tuple[Mapping[str, Mapping[str, Any]], ...] = ()
    """The batches of search=tpe: name -> parameters."""
    rungs: tuple[RungDecision, ...] = ()
    forked: Mapping[str, str]
    """Trial -> folder of the shared start that it goes on from."""
    shared_start: SharedStart | None = None
    populations: int = 0
    """How often population-based training was started."""
    trials: tuple[TrialRecord, ...] | None = None
    """None before the search was over for the first time."""
    winner: str | None = None
    """The chosen trial, or variant."""
    variants: tuple[VariantRecord, ...] = ()
    """With search=variants, the best on validation first, those without a rank last; () before the choice."""
    baseline: str | None = None
    """Name of the baseline's trial."""
    retrain: tuple[RetrainRecord, ...] | None = None
    comparison: Comparison | None = None
    balanced: BalancedRecord | None = None
    """None before it was trained, and without ``sweep.alt``."""
    ablation: tuple[AblationRecord, ...] | None = None
    """Each term and then its controls; None before they were trained, and without ``sweep.ablation``."""

    def __post_init__(self) -> None:
        if self.status == "finished" and (self.finished_at is None or self.trials is None):
            raise ValueError(f"{'finished_at' if self.finished_at is None else 'trials'} is missing")
        for number, trial in enumerate(self.trials or ()):
            if trial.params.keys() != self.space.keys():
                raise ValueError(f"trials[{number}].params are not the keys of space")
        self._check_space()
        self._check_variants()

    def _check_space(self) -> None:
        for key, spec in self.space.items():
            try:
                parse_space(key, spec)
            except ConfigError as error:
                raise ValueError(f"space.{key} is {glimpse(spec)}, expected a range ({error})") from None

    def _check_variants(self) -> None:
        known = None if self.trials is None else {trial.id for trial in self.trials}
        for number, variant in enumerate(self.variants):
            if not variant.trials:
                raise ValueError(f"variants[{number}].trials is empty, expected one for each seed")
            for trial in (*variant.trials, *variant.alt_trials):
                if known is not None and trial not in known:
                    raise ValueError(f"variants[{number}].trials has {trial!r}, which is not among trials")

    @property
    def train_split(self) -> str:
        """Returns the split that the runs of the sweep are trained on."""
        return _train_split(self.identity)

    def trial(self, name: str | None) -> TrialRecord | None:
        """Returns the entry of a trial; None where there is none."""
        return next((trial for trial in self.trials or () if trial.id == name), None)


def _train_split(config: Mapping[str, Any]) -> str:
    return str(config.get("data.train_split", "train"))
