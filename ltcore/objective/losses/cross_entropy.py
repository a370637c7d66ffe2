"""Cross-entropy: -log softmax(s)_y.

Source: textbook. Its gradient is softmax(s) - onehot(y); uniform logits give log C.
Shapes: logits [B, C] -> loss [B]. With several experts, s is the mean of their logits.
Cost: O(B C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import within
from ltcore.objective.dims import widened
from ltcore.objective.interface import Base, LossContext


class CrossEntropy(Base):
    """Plain softmax cross-entropy."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        label_smoothing: float = 0.0
        """Share of the target spread evenly over all classes. Range [0, 1)."""

        def __post_init__(self) -> None:
            within("[0, 1)", label_smoothing=self.label_smoothing)

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample."""
        logits_BC = widened(out.mean_logits_BC)
        return F.cross_entropy(logits_BC, labels_B, reduction="none", label_smoothing=self.cfg.label_smoothing)
