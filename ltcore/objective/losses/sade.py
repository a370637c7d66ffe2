"""SADE (TADE): three experts, made for the long-tailed, the uniform and the inversely long-tailed class distribution.

    L_i = CE(s_i1) + CE(s_i2 + log pi) + CE(s_i3 + log pi - tau log rho)

pi is the class prior and rho the same with its values in reverse order: the rarest class gets the largest.

Source: Zhang et al., "Self-supervised aggregation of diverse experts for test-agnostic long-tailed recognition",
NeurIPS 2022: the skill-diverse experts; called TADE in its first version.
Differs: no weights of experts are learned from test images, predictions use the mean of their logits. Classes with
equal counts share the values of their places in rho evenly; the published code orders them in a way that no
definition fixes (an unstable sort), ``ties='order'`` by class number: the loss then depends on how classes are
numbered. The prior is that of the stream the model sees (``objective.prior``), and nothing is added inside
logarithms. Mixed images, which the source does not have, mix the loss of every expert.
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

_SAME = 1e-5  # difference of log priors that is rounding: equal shares summed in another order, or kept in float32


class Sade(Base):
    """Cross-entropy, balanced softmax and inverse softmax, one for each expert."""

    expert_head = True
    text_order_in_glt = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        tau: float = 2.0
        """Strength of the reversed prior in the third expert, >= 0; 0 makes it the second once more. The authors: 2 for
        CIFAR and ImageNet-LT, 1 for iNaturalist and Places-LT."""
        ties: str = "mean"
        """What classes with equal counts get of the reversed prior: 'mean' each the mean of their places, or 'order' the
        places by class number, as a sort like that of the authors' code gives them."""

        def __post_init__(self) -> None:
            at_least(0, tau=self.tau)
            one_of(TIES, ties=self.ties)

    @staticmethod
    def balances(cfg: Config) -> str:
        return "adds log class priors to the logits of its experts"

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """[B] loss per sample, summed over experts. Raises ValueError unless there are three."""
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
    """[C] log of the prior whose sorted values are assigned to the classes in reverse. ``ties``: see ``Sade.Config``."""
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
