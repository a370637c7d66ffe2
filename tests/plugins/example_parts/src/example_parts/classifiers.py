"""A method of stage 2: every row of the classifier is shortened to the mean length.

Source: none, an example.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ltcore import plugins
from ltcore.errors import within
from ltcore.objective.stage2.method import FeatureSet, Solved


@plugins.stage2("mean_rows", summary="rows of one length")
class MeanRows(Solved):
    """Rows of one length, without bias."""

    linear_only = "whose rows have one length already"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        share: float = 1.0
        """How far each row goes to the mean length. Range [0, 1]."""

        def __post_init__(self) -> None:
            within("[0, 1]", share=self.share)

    @staticmethod
    def rounds(cfg: Config) -> int:
        """Returns 1."""
        return 1

    @torch.no_grad()
    def solve_(self, index: int, data: FeatureSet) -> dict[str, float]:
        """Sets the rows."""
        for head in self.classifiers:
            length_C1 = head.weight.norm(dim=1, keepdim=True).clamp_min(1e-12)
            head.weight.mul_((length_C1.mean() / length_C1) ** self.cfg.share)
            head.bias.zero_()
        return {}
