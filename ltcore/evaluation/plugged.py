"""Metrics of plugins: one number each, of what an evaluation counts, and of a score of each sample.

    @plugins.metric("neg_log_loss", summary="mean log-probability of the true class")
    class NegLogLoss(Metric):
        def score(self, logits_BC, labels_B):
            return logits_BC.log_softmax(1).gather(1, labels_B[:, None])[:, 0]

        def value(self, counted):
            return counted.scores_C.sum() / counted.samples_C.sum()

Higher is better, always: a report that does not have the plugin can still rank what it finds. Counts are integers, and scores
are summed as whole multiples of 2^-24, so that a value is the same for any split of the rows over batches and ranks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ltcore import dist
from ltcore.errors import PluginError
from ltcore.evaluation.catalog import taken
from ltcore.evaluation.pairs import Ints, Pairs
from ltcore.plugins.generated import add_row, configured, generate, grow_if_it_has_options
from ltcore.plugins.loading import attach, load, names_in
from ltcore.plugins.parts import Part, has_options

SCALE = 2**24
"""Units of a score in 1."""
LARGEST = 2.0**16
"""Size from which a score is none; so eight million samples fit into 64 bits."""


class Tables(Protocol):
    """What is read of a ``Confusion``, which holds the scores itself."""

    pairs: Pairs
    counts_PC: Tensor
    top_C: Tensor
    bins_CK3: Tensor


@dataclass(frozen=True)
class Counted:
    """What an evaluation counted in one split, over all ranks. C classes, P pairs of class and attribute."""

    pairs: Pairs
    """Those that samples of the split have; unknown attributes are the last."""
    counts_PC: Ints
    """Samples by pair of label and attribute, and by prediction."""
    top_C: Ints
    """Samples of each class whose own logit is among the five largest."""
    bins_CK3: Ints
    """Of each class and bin of confidence: samples, correct ones, and confidences in units of 2^-32."""
    shot_groups: tuple[str, ...]
    """[C] groups of the classes: many, medium or few."""
    scores_C: npt.NDArray[np.float64]
    """Sum of the scores of each class's samples; zeros where the metric has none."""

    @cached_property
    def counts_CC(self) -> Ints:
        """Returns the samples by label and prediction."""
        found = np.zeros((self.pairs.num_classes, self.pairs.num_classes), np.int64)
        np.add.at(found, self.pairs.labels_P, self.counts_PC)
        return found

    @cached_property
    def counts_ACC(self) -> Ints:
        """Returns the samples by attribute, label and prediction; the last attribute is the unknown one.

        It is made when it is asked for: 8 (A + 1) C^2 bytes, for 1,000 classes and 3,000 attributes 24 GB.
        """
        size = (self.pairs.num_attributes + 1, self.pairs.num_classes, self.pairs.num_classes)
        found = np.zeros(size, np.int64)
        found[self.pairs.attributes_P, self.pairs.labels_P] = self.counts_PC
        return found

    @cached_property
    def samples_C(self) -> Ints:
        """Returns the samples of each class; 0 for one without any."""
        return self.pairs.by_class(self.counts_PC.sum(1))


class Metric:
    """One number for a split, of which higher is better. Subclasses override ``value``, and ``score`` where counts do not do."""

    def score(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor | None:
        """Returns a number [B] for each sample, of its own logits (float64) and label alone; None: it needs none.

        A split with a score that is not finite, or not within +-65536, has no value.
        """
        return None

    def value(self, counted: Counted) -> float | None:
        """Returns the number for a whole split; None where it is not defined."""
        raise NotImplementedError(f"{type(self).__name__} needs value(self, counted)")


@dataclass(frozen=True)
class Row:
    """A registered metric and its description."""

    build: type[Metric]
    summary: str
    paper: str


PLUGGED: dict[str, Row] = {}
"""All are of plugins; ours are in ``catalog``."""


if TYPE_CHECKING:  # a stand-in for the class generated below

    class MetricOptions:
        def __getattr__(self, name: str) -> Any: ...

else:
    MetricOptions = generate("MetricOptions", __name__, "Options of metrics of plugins, under their names.", [])


def metrics_of(entries: Iterable[str], options: MetricOptions) -> dict[str, Metric]:
    """Returns name -> metric of those that the plugins of a configuration have."""
    names = [entry.partition("==")[0] for entry in entries]
    load(names)
    return {name: metric_of(name, options) for name in names_in(names, "metric")}


def metric_of(name: str, options: MetricOptions) -> Metric:
    """Makes one metric of a plugin."""
    build = PLUGGED[name].build
    metric: Metric = configured(build, options, name) if has_options(build) else build()
    return metric


class Scores:
    """Sums of the scores of some metrics, by class."""

    def __init__(self, metrics: Mapping[str, Metric], num_classes: int, device: torch.device | str = "cpu") -> None:
        self._metrics = metrics
        self.sums_MC2 = torch.zeros(len(metrics), num_classes, 2, dtype=torch.int64, device=torch.device(device))
        """int64, of each metric and class: the sum in units of 2^-24, and the samples that have no score."""

    def update(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Adds one batch. Raises PluginError for a score that is no number for each sample."""
        place = self.sums_MC2.device
        exact_BC, labels_B = logits_BC.double(), labels_B.to(place)
        for number, (name, metric) in enumerate(self._metrics.items()):
            with _blamed(name, metric, "score"):
                score_B = metric.score(exact_BC, labels_B.to(exact_BC.device))
            if score_B is None:
                continue
            if score_B.shape != labels_B.shape:
                raise PluginError(
                    f"metric {name!r} gives scores of shape {tuple(score_B.shape)} for {len(labels_B)} samples, expected a "
                    "number for each."
                )
            exact_B = score_B.to(place).double()
            lost_B = ~(exact_B.abs() < LARGEST)  # also NaN
            units_B = (exact_B.masked_fill(lost_B, 0) * SCALE).round().long()
            self.sums_MC2[number].index_put_((labels_B,), torch.stack([units_B, lost_B.long()], 1), accumulate=True)

    def reduce(self) -> None:
        """Sums over ranks in place, once, after the last ``update``. A collective."""
        dist.all_reduce_sum_(self.sums_MC2)

    def values(self, confusion: Tables, shot_groups: Sequence[str]) -> dict[str, float | None]:
        """Returns the value of each metric for what was counted. Raises PluginError for one that is no finite number."""
        tensors = (confusion.counts_PC, confusion.top_C, confusion.bins_CK3)
        counts, top, bins = map(_read_only, tensors)
        sums_MC2 = self.sums_MC2.cpu().numpy()
        values: dict[str, float | None] = {}
        for sums_C2, (name, metric) in zip(sums_MC2, self._metrics.items(), strict=True):
            scores_C = sums_C2[:, 0] / SCALE
            scores_C.flags.writeable = False
            counted = Counted(confusion.pairs, counts, top, bins, tuple(shot_groups), scores_C)
            with _blamed(name, metric, "value"):
                value = None if sums_C2[:, 1].any() else metric.value(counted)
            values[name] = _number(name, value)
        return values


@contextlib.contextmanager
def _blamed(name: str, metric: Metric, what: str) -> Iterator[None]:
    """Names metric and plugin in every error, and how to get at what was trained."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        plugin = type(metric).__module__
        raise PluginError(
            f"metric {name!r} of plugin {plugin} failed in {what} ({type(error).__name__}: {said}). Repair it; checkpoints that "
            f"the run has are evaluated with the repaired one by ltcore evaluate RUN --plugin {plugin}."
        ) from error


def _read_only(tensor: Tensor) -> Ints:
    array: Ints = tensor.cpu().numpy().view()
    array.flags.writeable = False
    return array


def _number(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise PluginError(f"metric {name!r} is {value!r}, expected a number or None.") from None
    if not math.isfinite(number):
        raise PluginError(f"metric {name!r} is {number}, expected a finite number, or None where it is not defined.")
    return number


def _add(part: Part) -> None:
    if taken(part.name):
        raise ValueError(f"the {part.kind} {part.name!r} exists already in ltcore: give it another name.")
    add_row(PLUGGED, part.kind, part.name, Row(part.build, part.summary, part.paper))
    grow_if_it_has_options(MetricOptions, part)


attach("metric", _add)
