"""LDAM: a softmax over cosines with a margin per class, larger for rarer classes; with deferred re-weighting
(LDAM-DRW).

    L = -log softmax(scale (u - m_y e_y))_y,    m_c = max_margin (n_min / n_c)^(1/4),    u = cosines

Source: Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss", NeurIPS 2019, equations 9
to 13.
Differs: the incoming logits are already scale * u (from a cosine head of that scale, see ``cosine_scale``), so that
predictions and scores use the same logits; only the margin is scaled here. Re-weighting starts at a fraction of
training. The weighted loss is divided by the number of samples; ``weight_norm='batch_sum'`` is the published
normalization. Under IFL's environments the weights are those of the re-weighted stream (``EffectiveWeights``).
Shapes: logits [B, C] -> loss [B].
Cost: O(B C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import positive, within
from ltcore.objective.class_weights import EffectiveWeights, check_options, weighted
from ltcore.objective.dims import FeatureDims, widened
from ltcore.objective.interface import Base, LossContext
from ltcore.stats import ClassStats


class Ldam(Base):
    """Margins by class frequency on a cosine head, with class weights late in training."""

    text_order_in_glt = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        max_margin: float = 0.5
        """Margin of the rarest class, as a difference of cosines. Range [0, 2]; 0 is a normalized softmax."""
        scale: float = 30.0
        """Factor on the cosines, > 0; must equal the scale of the head."""
        beta: float = 0.9999
        """Base of the effective number for the class weights from ``drw_start`` on. Range [0, 1): 0 is no weighting."""
        drw_start: float = 0.8
        """Fraction of training before which all weights are 1. Range [0, 1)."""
        weight_norm: str = "batch"
        """Divide by 'batch' (the number of samples) or 'batch_sum' (the sum of their weights, as published)."""

        def __post_init__(self) -> None:
            check_options(self.beta, self.weight_norm)
            within("[0, 2]", "a difference of cosines", max_margin=self.max_margin)
            positive(scale=self.scale)
            within("[0, 1)", "a fraction of training", drw_start=self.drw_start)

    def __init__(self, cfg: Config, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__(cfg, stats, dims)
        counts_C = stats.counts_C.double().clamp_min(1)
        self.margin_C: Tensor
        self.register_buffer("margin_C", cfg.max_margin * (counts_C.min() / counts_C) ** 0.25, persistent=False)
        self.class_weights = EffectiveWeights(stats, cfg.beta)

    @staticmethod
    def gathers(cfg: Config) -> bool:
        """Tells whether the normalizing sum of weights is taken over the global batch."""
        return cfg.weight_norm == "batch_sum"

    @staticmethod
    def cosine_scale(cfg: Config) -> float:
        """Returns the scale of the cosine head for which the margins are meant."""
        return cfg.scale

    @staticmethod
    def balances(cfg: Config) -> str:
        return f"weighs every class by its effective number from drw_start={cfg.drw_start:g} on" if cfg.beta else ""

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample."""
        logits_BC = widened(out.mean_logits_BC)
        margin_C = (self.cfg.scale * self.margin_C).to(logits_BC.dtype)
        own_BC = F.one_hot(labels_B, logits_BC.shape[1])
        loss_B = F.cross_entropy(logits_BC - own_BC * margin_C, labels_B, reduction="none")
        if ctx.progress < self.cfg.drw_start:
            return loss_B
        return weighted(loss_B, self.class_weights(ctx.log_prior_C)[labels_B], self.cfg.weight_norm)
