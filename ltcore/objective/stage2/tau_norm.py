"""tau-normalization: w_c / |w_c|^tau.

Head classes have longer weight vectors; dividing by a power of the length removes this advantage, entirely at tau = 1.

Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020, equation 3.
Differs: nothing; the bias is dropped as in the paper (``keep_bias`` keeps it, as the bag of tricks code does). Several
candidates are tried and the best on validation is kept. A head that was trained with strong weight decay needs more
than 1 (1.9 in Alshammari et al., CVPR 2022). Experts share one tau.
Cost: one product [N, D] x [D, C] per candidate, for the loss that is logged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltcore.objective.stage2.method import FeatureSet, Solved
from ltcore.stats import ClassStats


class TauNorm(Solved):
    """Linear heads with re-scaled rows."""

    linear_only = "which divides by the length of every class weight already, so that nothing would change"
    chooses = True
    if_not_finite = "Give smaller exponents as stage2.options.tau_norm.tau"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        tau: tuple[float, ...] = (
            0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0,
        )  # fmt: skip
        """Exponents to try, each >= 0; the one with the best ``train.select`` is kept (the first of equals). A single
        one needs no validation split. 0 leaves the weights unchanged, 1 makes their lengths equal.
        """
        keep_bias: bool = False
        """Keep the bias of stage 1, unscaled; the paper drops it."""

        def __post_init__(self) -> None:
            if not self.tau or not all(0 <= tau < float("inf") for tau in self.tau):
                raise ValueError(f"tau must be one or more finite numbers >= 0, got {self.tau}")

    cfg: Config

    def __init__(self, cfg: Config, heads: nn.ModuleList, stats: ClassStats, seed: int) -> None:
        super().__init__(cfg, heads, stats, seed)
        self._first: list[Tensor] = [head.weight.detach().clone() for head in self.classifiers]

    @staticmethod
    def rounds(cfg: Config) -> int:
        return len(cfg.tau)

    @torch.no_grad()
    def solve_(self, index: int, data: FeatureSet) -> dict[str, float]:
        tau = self.cfg.tau[index]
        for head, weight_CD in zip(self.classifiers, self._first, strict=True):
            head.weight.copy_(tau_normalized(weight_CD, tau))
            if not self.cfg.keep_bias:
                head.bias.zero_()
        return {"stage2/tau": tau}


def tau_normalized(weight_CD: Tensor, tau: float) -> Tensor:
    """Divides the rows [C, D] by their length to the power ``tau``; rows of no length to speak of stay as they are."""
    length_C1 = weight_CD.norm(dim=1, keepdim=True)
    return weight_CD / torch.where(length_C1 > 1e-12, length_C1, 1) ** tau
