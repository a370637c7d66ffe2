"""The mean squared length of the features, as a penalty.

Source: none, an example.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ltcore import Batch, LossContext, ModelOutput, Term, TermConfig, plugins


@plugins.term("feature_norm", summary="short features")
class FeatureNorm(Term):
    """Penalizes long features."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TermConfig):
        weight: float = 0.01
        scale: float = 1.0
        """Length that counts as 1. Range > 0."""

    def forward(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """Returns the penalty."""
        return (out.features_BD / self.cfg.scale).square().sum(1).mean()
