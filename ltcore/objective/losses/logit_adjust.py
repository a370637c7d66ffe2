"""Logit adjustment: cross-entropy of s + tau log pi in training, or argmax of s - tau log pi after plain training.

Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equations 9 (post hoc) and 10 (training).
Differs: nothing. Using both forms at once balances twice; ``posthoc_logits`` is for models trained without a prior.
Shapes: logits [B, C] -> loss [B].
Cost: B C additions over cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import at_least
from ltcore.objective.dims import widened
from ltcore.objective.interface import Base, LossContext


class LogitAdjust(Base):
    """Training-time logit adjustment. tau = 1 is balanced softmax, tau = 0 cross-entropy."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        tau: float = 1.0
        """Strength of the prior, >= 0. Above 1 it favors rare classes more than a balanced test set rewards."""

        def __post_init__(self) -> None:
            at_least(0, tau=self.tau)

    @staticmethod
    def balances(cfg: Config) -> str:
        return "adds a multiple of the log class prior to the logits" if cfg.tau else ""

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample."""
        adjusted_BC = widened(out.mean_logits_BC) + self.cfg.tau * ctx.log_prior_C
        return F.cross_entropy(adjusted_BC, labels_B, reduction="none")


def posthoc_logits(logits_BC: Tensor, log_prior_C: Tensor, tau: float = 1.0) -> Tensor:
    """Returns adjusted logits [B, C] for predictions of a model trained with plain cross-entropy (``--posthoc-tau``).

    ``log_prior_C`` is that of the stream the model was trained on; tau = 1 is the optimum for a balanced test set.
    """
    return logits_BC - tau * log_prior_C
