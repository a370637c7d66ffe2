"""Balanced softmax: -log( n_y e^{s_y} / sum_c n_c e^{s_c} ), cross-entropy of the logits plus the log class prior.

Source: Ren et al., "Balanced meta-softmax for long-tailed visual recognition", NeurIPS 2020, equation 4.
Differs: the prior is indexed by the integer class id and is that of the stream the model sees (``objective.prior``). A
class without samples counts as half a sample, so that no value is infinite. Predictions use the raw logits, without the
prior.
Shapes: logits [B, C] -> loss [B].
Cost: B C additions over cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.objective.dims import widened
from ltcore.objective.interface import Base, LossContext


class BalancedSoftmax(Base):
    """Softmax cross-entropy under the class prior. A uniform prior makes it plain cross-entropy."""

    text_order_in_glt = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """No options; ``logit_adjust`` is the same loss with adjustable strength."""

    @staticmethod
    def balances(cfg: Config) -> str:
        return "adds the log class prior to the logits"

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample."""
        return F.cross_entropy(widened(out.mean_logits_BC) + ctx.log_prior_C, labels_B, reduction="none")
