"""Focal loss, -(1 - p_y)^gamma log p_y: cross-entropy in which well predicted samples count less.

Source: Lin et al., "Focal loss for dense object detection", ICCV 2017. Three losses share the name in long-tail codes:
``form='softmax'`` with the gradient through the factor (LDAM-DRW), the same without it (``detach``, GLT), and
``form='sigmoid'``, one binary problem per class, summed over classes (the original, bag of tricks).
Differs: p is always the probability of the plain prediction. Codes that apply the factor to a weighted loss take exp(-w
CE) for p, which is another number wherever w is not 1. Weights by class (alpha of the paper) are ``WeightedConfig``.
Shapes: logits [B, C] -> loss [B].
Cost: O(B C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import at_least, one_of
from ltcore.objective.class_weights import WeightedBase, WeightedConfig
from ltcore.objective.dims import widened
from ltcore.objective.interface import LossContext

FORMS = ("softmax", "sigmoid")


class Focal(WeightedBase):
    """Cross-entropy with a factor that emphasizes hard samples."""

    @dataclass(frozen=True, kw_only=True)
    class Config(WeightedConfig):
        gamma: float = 2.0
        """Exponent of the factor, >= 0. 0 is cross-entropy (softmax) or its binary sum (sigmoid)."""
        form: str = "softmax"
        """'softmax': one distribution over the classes; 'sigmoid': one binary problem per class."""
        detach: bool = False
        """Treat the factor as a constant in the gradient, as in GLT's code."""

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(0, gamma=self.gamma)
            one_of(FORMS, form=self.form)

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample."""
        cfg, logits_BC = self.cfg, widened(out.mean_logits_BC)
        if cfg.form == "softmax":
            log_p_B = F.log_softmax(logits_BC, 1).gather(1, labels_B[:, None])[:, 0]
            return self.weigh(focal(log_p_B, cfg.gamma, cfg.detach), labels_B, ctx)
        sign_BC = 2 * F.one_hot(labels_B, logits_BC.shape[1]) - 1
        loss_B = focal(F.logsigmoid(sign_BC * logits_BC), cfg.gamma, cfg.detach).sum(1)
        return self.weigh(loss_B, labels_B, ctx)


def focal(log_p: Tensor, gamma: float, detach: bool = False) -> Tensor:
    """Computes -(1 - p)^gamma log p elementwise."""
    if gamma == 0:
        return -log_p
    # At base 0 the gradient of the power is infinite for gamma < 1, so the base is kept above 0.
    miss = -log_p.expm1().clamp_max(-1e-12)
    return -((miss.detach() if detach else miss) ** gamma) * log_p
