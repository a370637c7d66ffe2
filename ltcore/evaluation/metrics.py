"""Metrics of long-tailed recognition as functions of the confusion counts. All are fractions in [0, 1], in float64.

Source: OLTR (many / medium / few), GLT ``utils/general_utils.py`` (macro precision and its F1).
Differs: a group or class without test samples is None where the published code returns 0; GLT's F1 is 0 where theirs is
NaN.
Shapes: A attributes + 1 slot for 'unknown', C classes (rows: label, columns: prediction).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltcore.shots import SHOT_GROUPS


def metrics(counts_ACC: Tensor, shot_groups: Sequence[str]) -> dict[str, float | None]:
    """Computes top1, macro_precision, glt_f1, worst_class, and many, medium and few, each with its macro_precision.

    ``shot_groups`` names the group of each class. A group's value is the mean accuracy, or precision, over those of its
    classes that have test samples; None where there is no such class. For the precision, predictions of a class count
    that were made for any test sample (GLT's rule for groups of classes).
    """
    counts_CC = counts_ACC.sum(0)
    accuracies = per_class(counts_CC)
    tested = [a for a in accuracies if a is not None]
    top1, precision = accuracy(counts_CC), macro_precision(counts_CC)
    result = {"top1": top1, "macro_precision": precision, "glt_f1": glt_f1(top1, precision)}
    for name in SHOT_GROUPS:
        group = [a for a, g in zip(accuracies, shot_groups, strict=True) if g == name and a is not None]
        result[name] = sum(group) / len(group) if group else None
        in_group_C = torch.tensor([g == name for g in shot_groups], device=counts_CC.device)
        result[f"{name}/macro_precision"] = macro_precision(counts_CC * in_group_C[:, None], counts_CC.sum(0))
    return result | {"worst_class": min(tested, default=None)}


def accuracy(counts_CC: Tensor) -> float | None:
    """Returns the share of correct predictions; None for an empty evaluation."""
    total = int(counts_CC.sum())
    return int(counts_CC.diagonal().sum()) / total if total else None


def macro_precision(counts_CC: Tensor, predicted_C: Tensor | None = None) -> float | None:
    """Returns the mean of hits / predictions over the classes *present in the labels*.

    A class that is never predicted contributes 0. ``predicted_C`` [C] replaces the number of predictions per class; by
    default those in ``counts_CC`` are counted.
    """
    present_C = counts_CC.sum(1) > 0
    if not bool(present_C.any()):
        return None
    predicted_C = counts_CC.sum(0) if predicted_C is None else predicted_C
    share_C = counts_CC.diagonal().double() / predicted_C.clamp_min(1).double()
    return float(share_C[present_C].mean())


def glt_f1(top1: float | None, precision: float | None) -> float | None:
    """Returns the harmonic mean of accuracy and macro precision, 0 where both are 0. This is *not* the macro F1."""
    if top1 is None or precision is None:
        return None
    return 2 * top1 * precision / (top1 + precision) if top1 + precision > 0 else 0.0


def per_class(counts: Tensor) -> list[float | None]:
    """Returns the accuracy of each class; None for a class without test samples.

    ``counts`` is [C, C] or [A, C, C].
    """
    counts_CC = counts.sum(0) if counts.dim() == 3 else counts
    hits, totals = counts_CC.diagonal().tolist(), counts_CC.sum(1).tolist()
    return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]


def per_attribute(counts_ACC: Tensor, names: Sequence[str] | None = None) -> dict[str, float | None]:
    """Returns ``attribute/<name>``, the accuracy of the samples with that attribute, and its ``/macro_precision``.

    Precision counts predictions inside the attribute's samples, GLT's rule for attributes ('premask'). Samples of
    unknown attribute belong to no group; a group without samples is None. ``names`` defaults to 0, 1, ...
    """
    known_ACC = counts_ACC[:-1]
    result: dict[str, float | None] = {}
    for name, counts_CC in zip(names or [str(a) for a in range(len(known_ACC))], known_ACC, strict=True):
        result[f"attribute/{name}"] = accuracy(counts_CC)
        result[f"attribute/{name}/macro_precision"] = macro_precision(counts_CC)
    return result
