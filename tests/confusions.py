"""Confused pairs of given labels and predictions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ltcore.evaluation.confused import ConfusedPair, confused_pairs
from ltcore.evaluation.confusion_file import ConfusionCells

Ints = npt.NDArray[np.int64]


def pairs_of(labels_N: Ints, predictions_N: Ints, num_classes: int, split: str = "test") -> list[ConfusedPair]:
    """The pairs as an evaluation finds them."""
    cells_N = labels_N * num_classes + predictions_N
    counts_CC = np.bincount(cells_N, minlength=num_classes**2).reshape(num_classes, num_classes)
    return confused_pairs(ConfusionCells.of(torch.from_numpy(counts_CC)), cells_N, split)
