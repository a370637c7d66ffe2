"""Class weights by the effective number of samples, and the normalization of a weighted loss.

Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019; the deferred schedule (DRW)
is that of Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss", NeurIPS 2019.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ltcore import dist
from ltcore.errors import one_of, within
from ltcore.stats import ClassStats

WEIGHT_NORMS = ("batch", "batch_sum")


def effective_weights(counts_C: Tensor, beta: float) -> Tensor:
    """Returns float64 [C] weights (1 - beta) / (1 - beta^n_c), scaled to sum to C.

    beta = 0 gives all ones, beta -> 1 the inverse counts.
    """
    if beta == 0:
        return torch.ones_like(counts_C, dtype=torch.float64)
    # -expm1(n log beta) is 1 - beta^n without cancellation for beta near 1.
    weights_C = -1 / torch.expm1(counts_C.double().clamp_min(1) * math.log(beta))
    return weights_C * len(weights_C) / weights_C.sum()


class EffectiveWeights(nn.Module):
    """Class weights of ``effective_weights``, corrected for the stream that the model sees.

    Where IFL's environments change the class shares from pi to s, the weight is w_c pi_c / s_c: each class then
    contributes as much to the loss as without environments, instead of being balanced twice. With ``objective.prior:
    dataset`` w_c is not corrected, as in GLT's code. With ``beta`` 0 there is nothing to correct, and all weights stay
    1.
    """

    def __init__(self, stats: ClassStats, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.weights_C: Tensor
        self.log_share_C: Tensor
        self.register_buffer("weights_C", effective_weights(stats.counts_C, beta), persistent=False)
        self.register_buffer("log_share_C", stats.log_prior_C("dataset", torch.float64), persistent=False)

    def forward(self, log_prior_C: Tensor) -> Tensor:
        """Returns the weights [C] for a stream with log class shares ``log_prior_C`` [C], in its type."""
        if self.beta == 0:
            return self.weights_C.to(log_prior_C.dtype)
        return self.weights_C.to(log_prior_C.dtype) * (self.log_share_C.to(log_prior_C.dtype) - log_prior_C).exp()


def weighted(loss_B: Tensor, weights_B: Tensor, norm: str) -> Tensor:
    """Multiplies the losses [B] by their weights, normalized by ``norm``.

    The mean of the result over the global batch is the weighted loss. ``norm='batch'`` divides by the number of
    samples. ``'batch_sum'`` divides by the sum of the weights in the global batch, as
    ``torch.nn.CrossEntropyLoss(weight)`` and the authors' codes do: the step then depends on which samples share the
    batch. Weights that IFL applies afterwards are not part of that sum.
    """
    weights_B = weights_B.to(loss_B.dtype)
    if norm == "batch_sum":
        weights_B = weights_B * len(weights_B) * dist.world() / dist.all_reduce_sum_(weights_B.sum())
    return loss_B * weights_B


def check_options(beta: float, weight_norm: str) -> None:
    """Raises ValueError that starts with the name of the wrong option."""
    within("[0, 1)", beta=beta)
    one_of(WEIGHT_NORMS, weight_norm=weight_norm)
