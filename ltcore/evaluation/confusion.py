"""Confusion counts: the integer tables from which every metric of an evaluation follows.

Integer sums are exact, so the counts, and with them every metric, are the same for any split of the data over ranks.
Shapes: P pairs of class and attribute (Q: and an end), C classes of predictions, B batch, K bins of confidence.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ltcore import dist
from ltcore.evaluation.calibration import NUM_BINS, SCALE
from ltcore.evaluation.catalog import TOP
from ltcore.evaluation.pairs import Ints, Pairs
from ltcore.evaluation.plugged import Scores


class Confusion:
    """Prediction counts of one evaluation. Memory: 8 P C + 368 C + 16 P bytes."""

    def __init__(self, pairs: Pairs, device: torch.device | str = "cpu") -> None:
        """Starts with nothing counted; ``pairs`` are those that samples may have, the same on every rank."""
        place, num_classes = torch.device(device), pairs.num_classes
        self.pairs = pairs
        self._labels_P = torch.tensor(pairs.labels_P, device=place)
        end = np.iinfo(np.int64).max  # so that every search ends at a row
        self._codes_Q = torch.tensor(np.append(pairs.codes_P, end), device=place)
        self.counts_PC = torch.zeros(len(pairs.codes_P), num_classes, dtype=torch.int64, device=place)
        """int64, by pair of the sample's class and attribute, and by prediction."""
        self.top_C = torch.zeros(num_classes, dtype=torch.int64, device=place)
        """int64, samples of each class whose own logit is among the five largest."""
        self.bins_CK3 = torch.zeros(num_classes, NUM_BINS, 3, dtype=torch.int64, device=place)
        """int64, per class of the label and bin: samples, correct ones, and their confidences (see ``calibration``)."""

        self.scores: Scores | None = None
        """What metrics of plugins sum of the same samples; None where nobody asks."""

    def update(self, logits_BC: Tensor, labels_B: Tensor, attributes_B: Tensor | None = None) -> None:
        """Counts one batch. Equal logits go to the lower class id; an attribute of -1, or none at all, is 'unknown'.

        Raises IndexError for a label or a pair that is not in the table.
        """
        device = self.counts_PC.device
        if attributes_B is None:
            attributes_B = torch.full_like(labels_B, -1)
        logits_BC, labels_B, attributes_B = logits_BC.to(device), labels_B.to(device), attributes_B.to(device)
        predictions_B = logits_BC.argmax(-1)
        one_B = torch.ones_like(labels_B)
        self.counts_PC.index_put_((self._rows(labels_B, attributes_B), predictions_B), one_B, accumulate=True)
        self.top_C.index_put_((labels_B,), _in_top(logits_BC, labels_B).long(), accumulate=True)
        units_B, bins_B = _confidence(logits_BC)
        sums_B3 = torch.stack([one_B, (predictions_B == labels_B).long(), units_B], 1)
        self.bins_CK3.index_put_((labels_B, bins_B), sums_B3, accumulate=True)
        if self.scores is not None:
            self.scores.update(logits_BC, labels_B)

    def _rows(self, labels_B: Tensor, attributes_B: Tensor) -> Tensor:
        """Returns the row of each sample's pair; one beyond the table where it has none."""
        slots_B = torch.where(attributes_B == -1, self.pairs.num_attributes, attributes_B)
        codes_B = slots_B * self.pairs.num_classes + labels_B
        rows_B = torch.searchsorted(self._codes_Q, codes_B)
        there_B = (self._codes_Q[rows_B] == codes_B) & (labels_B < self.pairs.num_classes)
        return torch.where(there_B, rows_B, len(self.counts_PC))

    def reduce(self) -> Tensor:
        """Sums over ranks in place, once, after the last ``update``; returns ``counts_PC``."""
        if self.scores is not None:
            self.scores.reduce()
        dist.all_reduce_sum_(self.top_C)
        dist.all_reduce_sum_(self.bins_CK3)
        return dist.all_reduce_sum_(self.counts_PC)

    @property
    def total(self) -> int:
        """Returns the number of samples counted so far.

        After ``reduce`` it must equal the size of the split; otherwise rows were lost or counted twice.
        """
        return int(self.counts_PC.sum())

    @property
    def samples_P(self) -> Ints:
        """Returns the number of samples of each pair."""
        samples_P: Ints = self.counts_PC.sum(1).cpu().numpy()
        return samples_P

    @property
    def hits_P(self) -> Ints:
        """Returns the number of samples of each pair that are predicted right."""
        hits_P: Ints = self.counts_PC.gather(1, self._labels_P[:, None])[:, 0].cpu().numpy()
        return hits_P


def _in_top(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Tells for each sample whether fewer than five classes come before its own; equal logits by class id.

    ``topk`` leaves the order of equal logits open. A label whose logit is NaN comes last.
    """
    own_B1 = logits_BC.gather(1, labels_B[:, None])
    later_BC = torch.arange(logits_BC.shape[1], device=logits_BC.device) >= labels_B[:, None]
    behind_BC = (logits_BC < own_B1) | ((logits_BC == own_B1) & later_BC)
    return logits_BC.shape[1] - behind_BC.sum(1) < TOP


def _confidence(logits_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the top-1 confidences in units of 1 / SCALE, and their bins, both int64 [B].

    NaN, which has no place among integers, counts as no confidence.
    """
    confidence_B = logits_BC.double().softmax(1).amax(1).nan_to_num(0.0)
    bins_B = ((confidence_B * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1)
    return (confidence_B * SCALE).round().long(), bins_B
