"""Cross-entropy of logits over a temperature, alone and with a margin.

Source: Hinton et al., "Distilling the knowledge in a neural network", 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from example_parts import shared
from ltcore import Base, LossContext, ModelOutput, plugins
from ltcore.errors import at_least
from ltcore.objective.dims import widened


@plugins.loss("tempered", summary="cross-entropy of logits over a temperature", paper="Hinton et al., 2015")
class TemperedLoss(Base):
    """Softmax at another temperature."""

    @dataclass(frozen=True, kw_only=True)
    class Config(shared.Tempered):
        squared: bool = True
        """Times the temperature squared, so that gradients keep their size."""

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample."""
        t = self.cfg.temperature
        return F.cross_entropy(widened(out.mean_logits_BC) / t, labels_B, reduction="none") * (
            t * t if self.cfg.squared else 1
        )


@plugins.loss("tempered_margin", summary="the same with a margin for the true class")
class TemperedMargin(TemperedLoss):
    """Subtracts a margin from the logit of the true class."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TemperedLoss.Config):
        margin: float = 0.5
        """Subtracted from the true logit. Range >= 0."""

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(0, margin=self.margin)

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample."""
        logits_BC = widened(out.mean_logits_BC)
        logits_BC = logits_BC - self.cfg.margin * F.one_hot(labels_B, logits_BC.shape[1]).to(logits_BC.dtype)
        return F.cross_entropy(logits_BC / self.cfg.temperature, labels_B, reduction="none")
