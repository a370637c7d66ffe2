"""Cross-entropy: -log softmax(s)_y.

Source: textbook. Its gradient is softmax(s) - onehot(y); uniform logits give log C.
Shapes: logits [B, C] -> loss [B]. With several experts, s is the mean of their logits.
Weights by class (``WeightedConfig``) multiply the loss of a sample by the weight of its own class, label smoothing included;
``torch.nn.CrossEntropyLoss`` takes the weight of the target's class for every part of a smoothed target.
Cost: O(B C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import within
from ltcore.objective.class_weights import WeightedBase, WeightedConfig
from ltcore.objective.dims import widened
from ltcore.objective.interface import LossContext


class CrossEntropy(WeightedBase):
    """Plain softmax cross-entropy, weighted by class where that is asked for."""

    @dataclass(frozen=True, kw_only=True)
    class Config(WeightedConfig):
        label_smoothing: float = 0.0
        """Share of the target spread evenly over all classes. Range [0, 1)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            within("[0, 1)", label_smoothing=self.label_smoothing)

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample."""
        logits_BC = widened(out.mean_logits_BC)
        loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none", label_smoothing=self.cfg.label_smoothing)
        return self.weigh(loss_B, labels_B, ctx)
