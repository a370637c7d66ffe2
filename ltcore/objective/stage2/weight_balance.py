"""Weight balancing: class-balanced loss on the natural stream, with weight decay and MaxNorm on the classifier.

The classifier of stage 1 continues training; decay and the norm limit keep the weights of frequent classes short.

    after each step   w_c <- w_c min(1, r / |w_c|),   r = min_c |w_c| + max_norm (max_c |w_c| - min_c |w_c|) of stage 1

Source: Alshammari et al., "Long-tailed recognition via weight balancing", CVPR 2022; radius, rate, batch size and
number of epochs are those of the authors' code. Stage 1 needs a tuned weight decay as well (recipe
``cifar100_lt_ce_decay``).
Differs: the loss is the weighted cross-entropy of the paper. The authors' code takes the binary cross-entropy of the
softmax probabilities and averages it over classes too; their decay of 0.1 belongs to that loss, and drives all weights
to 0 here. The default was chosen on validation images of CIFAR-100-LT, where 5e-4 to 5e-3 gave the same result. Their
code shortens weights once per epoch, lowers the rate before the first epoch instead of after it, updates batch-norm
statistics, and keeps the epoch that is best on test images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltcore.errors import at_least
from ltcore.objective.class_weights import check_options, effective_weights, weighted
from ltcore.objective.stage2.method import SgdConfig, Trained, expert_cross_entropy, expert_logits
from ltcore.objective.stage2.sampler import shuffled_rows
from ltcore.stats import ClassStats


class WeightBalance(Trained):
    """Class-balanced loss, weight decay and MaxNorm on the linear heads of stage 1."""

    linear_only = "which divides by the length of every class weight, so that neither decay nor MaxNorm would act"

    @dataclass(frozen=True, kw_only=True)
    class Config(SgdConfig):
        batch_size: int = 64
        lr: float = 0.01
        weight_decay: float = 5e-3
        beta: float = 0.9999
        """Base of the effective number for the class weights. Range [0, 1): 0 is no weighting, towards 1 inverse
        frequency.
        """
        weight_norm: str = "batch"
        """Divide by 'batch' (the number of samples) or 'batch_sum' (the sum of their weights)."""
        max_norm: float | None = 0.1
        """Longest class weight, as a position between the shortest (0) and the longest (1) of stage 1. Range >= 0.
        null: no MaxNorm.
        """

        def __post_init__(self) -> None:
            super().__post_init__()
            check_options(self.beta, self.weight_norm)
            at_least(0, max_norm=self.max_norm)

    cfg: Config

    def __init__(self, cfg: Config, heads: nn.ModuleList, stats: ClassStats, seed: int) -> None:
        super().__init__(cfg, heads, stats, seed)
        self.weights_C: Tensor
        self.register_buffer("weights_C", effective_weights(stats.counts_C, cfg.beta), persistent=False)
        self.radius = [radius(head.weight, cfg.max_norm) for head in self.classifiers]
        """Norm limit of each expert; infinite without MaxNorm."""

    def rows(self, epoch: int, labels_N: Tensor) -> Tensor:
        return shuffled_rows(len(labels_N), seed=self.seed, epoch=epoch)

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        loss_B = expert_cross_entropy(expert_logits(self.heads, features_BD), labels_B)
        return weighted(loss_B, self.weights_C[labels_B], self.cfg.weight_norm).mean()

    @torch.no_grad()
    def project_(self) -> None:
        for head, limit in zip(self.classifiers, self.radius, strict=True):
            shorten_(head.weight, limit)


def radius(weight_CD: Tensor, max_norm: float | None) -> float:
    """Returns the norm limit that ``max_norm`` sets, from the lengths of the rows."""
    if max_norm is None:
        return float("inf")
    length_C = weight_CD.detach().norm(dim=1)
    return float(length_C.min() + max_norm * (length_C.max() - length_C.min()))


def shorten_(weight_CD: Tensor, limit: float) -> None:
    """Shortens rows that are longer than ``limit`` to that length, in place; the others keep every bit."""
    length_C1 = weight_CD.norm(dim=1, keepdim=True)
    weight_CD.copy_(torch.where(length_C1 > limit, weight_CD * (limit / length_C1), weight_CD))
