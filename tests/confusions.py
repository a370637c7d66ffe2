"""Confusion counts that are given, and the confused pairs of given labels and predictions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ltcore.evaluation.confused import ConfusedPair, confused_pairs
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.confusion_file import ConfusionCells
from ltcore.evaluation.pairs import Pairs

Ints = npt.NDArray[np.int64]


def confusion_of(counts_ACC: torch.Tensor) -> Confusion:
    """Counts by attribute, of which the last is the unknown one, label and prediction."""
    found = Confusion(Pairs.every(counts_ACC.shape[1], len(counts_ACC) - 1))
    found.counts_PC += counts_ACC.flatten(0, 1)
    return found


def pairs_of(labels_N: Ints, predictions_N: Ints, num_classes: int, split: str = "test") -> list[ConfusedPair]:
    """The pairs as an evaluation finds them."""
    cells_N = labels_N * num_classes + predictions_N
    counts_CC = np.bincount(cells_N, minlength=num_classes**2).reshape(num_classes, num_classes)
    return confused_pairs(ConfusionCells.of(confusion_of(torch.from_numpy(counts_CC)[None])), cells_N, split)
