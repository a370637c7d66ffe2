"""The metrics of an evaluation: what each is called, means, whether lower is better, and when it has a value.

Plain Python, so that configurations and reports are read without torch. ``metrics.metrics`` computes them under these
names; in training they are logged as ``val/<name>``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ltcore.shots import SHOT_GROUPS

VALIDATION = "val/"
TOP = 5
"""The k of top-k."""
ATTRIBUTE_RANKS = ("majority", "second", "rare")
"""Ranks of an attribute within a class, by the counts of the training split; all after the second are rare, and of two the
other one (``AttributeRanks``)."""

MAX_NAMED_ATTRIBUTES = 256
"""Data with more attributes have no metrics of single ones, ``attribute/<name>``. COCO Attributes has 204."""


@dataclass(frozen=True)
class Metric:
    """One metric. All are fractions in [0, 1]; a gap may be below 0."""

    name: str
    title: str
    """Its name for readers."""
    summary: str
    minimize: bool = False
    """True where lower values are better."""
    group: str = ""
    """Shot group whose classes alone count; without samples of them it has no value. '': all classes."""
    above_classes: int = 0
    """It has a value only with more classes than this."""
    above_attributes: int | None = None
    """It has a value only on data with more attributes than this; None: it needs none."""

    @property
    def meaning(self) -> str:
        """Returns the summary, and which values are better."""
        return f"{self.summary}; {'lower' if self.minimize else 'higher'} is better"

    def missing(self, groups: Collection[str], num_classes: int, num_attributes: int = 0) -> str:
        """Returns why it never has a value on some data; '' where it does.

        ``groups`` are the shot groups of the classes with samples, ``num_classes`` counts all classes.
        """
        if self.above_attributes is not None and num_attributes <= self.above_attributes:
            more = f"more than {self.above_attributes} attributes" if self.above_attributes else "attributes"
            return f"it needs {more}, there are {num_attributes or 'none'}"
        if self.group and self.group not in groups:
            return f"no {self.group}-shot class has a sample"
        if num_classes <= self.above_classes:
            return f"{self.title} needs more than {self.above_classes} classes, there are {num_classes}"
        return ""


_OVERALL = (
    Metric(
        "balanced_accuracy", "balanced accuracy", "mean recall of the classes; top-1 where all have as many samples"
    ),
    Metric("top1", "top-1", "share of correct predictions"),
    Metric("top5", "top-5", "share of samples whose class is among the five largest logits", above_classes=TOP),
    Metric("macro_f1", "macro F1", "mean F1 of the classes"),
    Metric("macro_precision", "macro precision", "mean precision of the classes; 0 for one that is never predicted"),
    Metric("glt_f1", "GLT F1", "harmonic mean of top-1 and macro precision, as GLT reports it"),
    Metric("geometric_mean", "geometric mean", "geometric mean of the recalls; 0 with any recall of 0"),
    Metric("harmonic_mean", "harmonic mean", "harmonic mean of the recalls; 0 with any recall of 0"),
    Metric("ece", "ECE", "expected calibration error of the top-1 confidence over 15 equal bins", minimize=True),
)


def _of_group(group: str) -> tuple[Metric, ...]:
    title = f"{group}-shot"
    return (
        Metric(group, title, f"mean recall of the {title} classes", group=group),
        Metric(
            f"{group}/macro_precision",
            f"{title} macro precision",
            f"mean precision of the {title} classes, where predictions of all samples count",
            group=group,
        ),
        Metric(f"{group}/ece", f"{title} ECE", f"ECE of the samples of {title} classes", minimize=True, group=group),
    )


_RANKED = {
    "majority": (0, "the samples whose attribute is the most frequent one of their class in training"),
    "second": (2, "the samples whose attribute is the second most frequent one of their class in training"),
    "rare": (
        1,
        "the samples whose attribute is after the two most frequent ones of their class in training, of two the second",
    ),
}
"""Rank -> attributes above which there is such a one, and its samples in words."""


def _of_rank(rank: str) -> tuple[Metric, ...]:
    name, title = f"attribute_rank/{rank}", f"{rank} attributes"
    least, samples = _RANKED[rank]
    accuracy = f"mean over classes of the accuracy of {samples}"
    precision = f"mean precision of the classes, where {samples} alone count"
    return (
        Metric(name, title, accuracy, above_attributes=least),
        Metric(f"{name}/macro_precision", f"{title} macro precision", precision, above_attributes=least),
        *(
            Metric(
                f"{name}/{group}",
                f"{title}, {group}-shot",
                f"{accuracy}, of {group}-shot classes",
                False,
                group,
                0,
                least,
            )
            for group in SHOT_GROUPS
        ),
    )


_OF_ATTRIBUTES = (
    *(metric for rank in ATTRIBUTE_RANKS for metric in _of_rank(rank)),
    Metric(
        "attribute_gap",
        "attribute gap",
        "mean over classes of the accuracy with the majority attribute minus that with rare ones",
        minimize=True,
        above_attributes=1,
    ),
    Metric("worst_group", "worst group", "lowest accuracy of any attribute within any class", above_attributes=0),
)

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        *_OVERALL,
        *(metric for group in SHOT_GROUPS for metric in _of_group(group)),
        Metric("worst_class", "worst class", "lowest recall of any class"),
        *_OF_ATTRIBUTES,
    )
}
"""Name -> metric, in the order of tables; ``metrics.per_attribute`` adds those of the data's own attributes."""
NCM = "ncm_"


def _ncm(name: str) -> Metric:
    found = METRICS[name]
    how = f"by the nearest class mean of the training features (cosine): {found.summary}"
    return Metric(f"{NCM}{name}", f"NCM {found.title}", how, group=found.group)


NCM_METRICS: Mapping[str, Metric] = {
    metric.name: metric for metric in map(_ncm, ("balanced_accuracy", "top1", *SHOT_GROUPS))
}
"""Name -> metric of what the nearest class mean predicts in place of the classifier. They judge features alone, and exist
where the means were computed (``train.ncm``)."""


def as_predicted(name: str, like: str) -> str:
    """Returns the metric that judges the predictor which another one judges: the classifier, or the nearest class mean.

    ('few', 'val/ncm_top1') -> 'ncm_few'.
    """
    return f"{NCM}{name}" if like.removeprefix(VALIDATION).startswith(NCM) else name


def of_other_predictor(metric: str) -> str:
    """Returns the same metric of the classifier for one of the nearest class mean, and the other way round."""
    return metric.removeprefix(NCM) if metric.startswith(NCM) else f"{NCM}{metric}"


DETAILS = ("/macro_precision", "/ece", *(f"/{group}" for group in SHOT_GROUPS))
"""Endings of metrics of a part of the samples that only complete tables show."""


def title_of(metric: str) -> str:
    """Returns a metric's name for readers.

    'top1' -> 'top-1', 'attribute/red' -> 'attribute red', 'val/top1' -> 'validation top-1'.
    """
    if metric.startswith(VALIDATION):
        return f"validation {title_of(metric.removeprefix(VALIDATION))}"
    if metric in METRICS or metric in NCM_METRICS:
        return (METRICS.get(metric) or NCM_METRICS[metric]).title
    return " ".join(METRICS[word].title if word in METRICS else word for word in metric.split("/"))


def minimized(metric: str) -> bool:
    """Tells whether lower values of a metric are better; 'val/ece' is the same metric as 'ece'."""
    found = METRICS.get(metric.removeprefix(VALIDATION))
    return found is not None and found.minimize


def of_plugin(metric: str) -> bool:
    """Tells whether a metric is none of ours; the plugin that it is of need not be here."""
    name = metric.removeprefix(VALIDATION)
    return name not in METRICS and name not in NCM_METRICS and not name.startswith("attribute/")


def taken(name: str) -> bool:
    """Tells whether a metric of a plugin may not have a name."""
    return not of_plugin(name) or name.startswith(NCM)


def limits(metric: str) -> tuple[float, float]:
    """Returns the lowest and the highest value that a metric can have."""
    if of_plugin(metric):
        return -math.inf, math.inf
    return (-1.0 if metric.removeprefix(VALIDATION) == "attribute_gap" else 0.0), 1.0


def goodness(metric: str, value: float | None) -> float:
    """Returns a number that is higher the better the value; the lowest where there is none."""
    if value is None or math.isnan(value):
        return -math.inf
    return -value if minimized(metric) else value


def headline(values: Mapping[str, float | None]) -> tuple[str, ...]:
    """Returns the accuracies to name first: top-1 alone on a balanced split, where the balanced accuracy is the same."""
    same = values.get("balanced_accuracy") == values.get("top1")
    return ("top1",) if same else ("balanced_accuracy", "top1")
