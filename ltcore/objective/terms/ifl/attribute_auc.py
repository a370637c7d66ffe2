"""How well weights of samples find the rare attributes of each class, where these are known. For measurement only.

Source: IFL gives large weights to badly predicted samples because these are assumed to have rare attributes (Tang et
al., ECCV 2022); the area under the ROC curve tells how far that holds, whatever the scale of the weights.
Cost: two sorts of N numbers, once per epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attribute_auc(weight_N: Tensor, label_N: Tensor, attribute_N: Tensor) -> float | None:
    """Returns the probability that a sample of a minority attribute weighs more than one of the majority attribute.

    Both are of the same class, ties count half, and the probabilities are averaged over the classes that have both: 0.5 is
    chance, 1 that every minority sample weighs more. The majority attribute of a class is the most frequent one, of equals
    the first; all others are minorities. Samples of unknown attribute (-1) do not count. None where no class has both.
    """
    known_N = attribute_N >= 0
    weight_n, label_n, attribute_n = weight_N[known_N].double(), label_N[known_N], attribute_N[known_N]
    if not len(label_n):
        return None
    num_classes, num_attributes = int(label_n.max()) + 1, int(attribute_n.max()) + 1
    counts = torch.bincount(label_n * num_attributes + attribute_n, minlength=num_classes * num_attributes)
    majority_C = counts.view(num_classes, num_attributes).argmax(1)
    minor_n = attribute_n != majority_C[label_n]
    rank_n = _ranks(weight_n, label_n)
    num_C = torch.bincount(label_n, minlength=num_classes).double()
    minor_C = torch.bincount(label_n[minor_n], minlength=num_classes).double()
    rank_sum_C = torch.zeros_like(num_C).index_add_(0, label_n[minor_n], rank_n[minor_n])
    pairs_C = minor_C * (num_C - minor_C)
    wins_C = rank_sum_C - minor_C * (minor_C + 1) / 2  # Mann and Whitney's U
    both_C = pairs_C > 0
    return float((wins_C[both_C] / pairs_C[both_C]).mean()) if both_C.any() else None


def _ranks(weight_n: Tensor, label_n: Tensor) -> Tensor:
    """Returns float64 [n], the rank of each weight in its class, from 1; equal weights share the mean of their ranks."""
    order_n = weight_n.argsort(stable=True)
    order_n = order_n[label_n[order_n].argsort(stable=True)]
    label_n, weight_n = label_n[order_n], weight_n[order_n]
    other_n = (label_n[1:] != label_n[:-1]) | (weight_n[1:] != weight_n[:-1])
    tie_n = torch.cat([torch.zeros_like(label_n[:1]), other_n.cumsum(0)])
    count_T, size_C = torch.bincount(tie_n), torch.bincount(label_n)
    first_T, first_C = count_T.cumsum(0) - count_T, size_C.cumsum(0) - size_C
    mean_n = 1 + first_T[tie_n] + (count_T[tie_n] - 1).double() / 2 - first_C[label_n]
    return torch.empty_like(weight_n).scatter_(0, order_n, mean_n)
