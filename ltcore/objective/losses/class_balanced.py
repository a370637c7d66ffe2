"""Class-balanced loss: cross-entropy (or focal loss) times the inverse effective number of samples of the class.

Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019; deferred re-weighting (DRW),
which starts late in training, Cao et al., NeurIPS 2019.
Differs: the weighted loss is divided by the number of samples, so that a step does not depend on which other samples
are in the batch; ``weight_norm='batch_sum'`` is the published normalization. Under IFL's environments the weights are
those of the re-weighted stream (``EffectiveWeights``). The focal factor uses the unweighted probability.
Shapes: logits [B, C] -> loss [B].
Cost: O(B C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import at_least, within
from ltcore.objective.class_weights import EffectiveWeights, check_options, weighted
from ltcore.objective.dims import FeatureDims, widened
from ltcore.objective.interface import Base, LossContext
from ltcore.objective.losses.focal import focal
from ltcore.stats import ClassStats


class ClassBalanced(Base):
    """Cross-entropy with class weights from the start or, deferred, from a later point of training."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        beta: float = 0.9999
        """Base of the effective number. Range [0, 1): 0 is no weighting, towards 1 inverse frequency."""
        drw_start: float = 0.0
        """Fraction of training before which all weights are 1. Range [0, 1); DRW is 0.8."""
        focal_gamma: float = 0.0
        """Exponent of the focal factor, >= 0. 0 is cross-entropy."""
        weight_norm: str = "batch"
        """Divide by 'batch' (the number of samples) or 'batch_sum' (the sum of their weights, as published)."""

        def __post_init__(self) -> None:
            check_options(self.beta, self.weight_norm)
            within("[0, 1)", "a fraction of training", drw_start=self.drw_start)
            at_least(0, focal_gamma=self.focal_gamma)

    @staticmethod
    def balances(cfg: Config) -> str:
        return "weighs every class by its effective number" if cfg.beta else ""

    def __init__(self, cfg: Config, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__(cfg, stats, dims)
        self.class_weights = EffectiveWeights(stats, cfg.beta)

    @staticmethod
    def gathers(cfg: Config) -> bool:
        """Tells whether the normalizing sum of weights is taken over the global batch."""
        return cfg.weight_norm == "batch_sum"

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample."""
        log_p_B = F.log_softmax(widened(out.mean_logits_BC), 1).gather(1, labels_B[:, None])[:, 0]
        loss_B = focal(log_p_B, self.cfg.focal_gamma)
        if ctx.progress < self.cfg.drw_start:
            return loss_B
        return weighted(loss_B, self.class_weights(ctx.log_prior_C)[labels_B], self.cfg.weight_norm)
