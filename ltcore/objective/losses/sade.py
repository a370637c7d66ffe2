"""SADE (TADE): three experts, for the long-tailed, the uniform and the inversely long-tailed class distribution.

    L_i = CE(s_i1) + CE(s_i2 + log pi) + CE(s_i3 + log pi - tau log rho)

pi is the class prior; rho has the same values in reverse order, so that the rarest class gets the largest.

Source: Zhang et al., "Self-supervised aggregation of diverse experts for test-agnostic long-tailed recognition",
NeurIPS 2022: the skill-diverse experts; called TADE in its first version.
Differs: no expert weights are learned from test images; predictions use the mean of the experts' logits. Classes with
equal counts share the values of their ranks in rho evenly; the published code orders them by an unstable sort, which no
definition fixes. ``ties='order'`` orders them by class number, and the loss then depends on how classes are numbered.
The prior is that of the stream the model sees (``objective.prior``), and nothing is added inside logarithms. Mixed
images, which the source does not have, mix the loss of every expert.
Shapes: logits [B, 3, C] -> loss [B].
Cost: O(B C) for each expert, and one sort of C numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import at_least, one_of
from ltcore.objective.dims import widened
from ltcore.objective.interface import Base, LossContext

NUM_EXPERTS = 3
TIES = ("mean", "order")

_SAME = (
    1e-5  # log priors closer than this are equal: shares summed in another order, or kept in float32, differ by less
)


class Sade(Base):
    """Cross-entropy, balanced softmax and inverse softmax, one per expert."""

    expert_head = True
    text_order_in_glt = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        tau: float = 2.0
        """Strength of the reversed prior in the third expert, >= 0; at 0 it has the same loss as the second. The
        authors: 2 for CIFAR and ImageNet-LT, 1 for iNaturalist and Places-LT.
        """
        ties: str = "mean"
        """Reversed prior of classes with equal counts: 'mean' gives each the mean over their ranks, 'order' assigns the
        ranks by class number, as the sort in the authors' code may.
        """

        def __post_init__(self) -> None:
            at_least(0, tau=self.tau)
            one_of(TIES, ties=self.ties)

    @staticmethod
    def balances(cfg: Config) -> str:
        return "adds log class priors to the logits of its experts"

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample, summed over experts. Raises ValueError unless there are three experts."""
        logits_BEC, prior_C = widened(out.logits_BC), ctx.log_prior_C
        if logits_BEC.dim() != 3 or logits_BEC.shape[1] != NUM_EXPERTS:
            raise ValueError(
                f"SADE needs logits [B, {NUM_EXPERTS}, C], one expert for each of its class distributions, got shape "
                f"{tuple(logits_BEC.shape)}"
            )
        inverse_C = prior_C - self.cfg.tau * reversed_log_prior(prior_C, self.cfg.ties)
        adjusted_BEC = logits_BEC + torch.stack([torch.zeros_like(prior_C), prior_C, inverse_C])
        labels_BE = labels_B[:, None].expand(-1, NUM_EXPERTS)
        return F.cross_entropy(adjusted_BEC.transpose(1, 2), labels_BE, reduction="none").sum(1)


def reversed_log_prior(log_prior_C: Tensor, ties: str = "mean") -> Tensor:
    """Returns the log prior [C] with its sorted values assigned to the classes in reverse.

    ``ties`` is described in ``Sade.Config``.
    """
    falling_C, class_C = log_prior_C.double().sort(descending=True, stable=True)
    value_C = falling_C.flip(0)
    if ties == "mean":
        starts_C = torch.ones_like(class_C)
        starts_C[1:] = falling_C.diff() < -_SAME
        group_C = starts_C.cumsum(0) - 1
        sum_C, size_C = (
            torch.zeros_like(value_C).index_add_(0, group_C, each_C)
            for each_C in (value_C.exp(), torch.ones_like(value_C))
        )
        value_C = (sum_C / size_C.clamp_min(1))[group_C].log()
    return torch.empty_like(value_C).scatter_(0, class_C, value_C).to(log_prior_C.dtype)
