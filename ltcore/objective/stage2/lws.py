"""LWS, learnable weight scaling: logits f_c (w_c z + b_c), where only the factor f_c of each class is learned, from 1
on.

Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020, section 4.3. The
form with the bias inside is that of their code, the schedule is GLT's (whose LWS has no bias).
Differs: see ``ltcore.objective.stage2.method``. The result is a linear head with rows f_c w_c and biases f_c b_c.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.objective.stage2.method import ClassAware, ClassAwareConfig, expert_logits
from ltcore.stats import ClassStats


class Lws(ClassAware):
    """Linear heads with learned row scales."""

    linear_only = "which divides by the length of every class weight, and with it by any scale of it"
    Config = ClassAwareConfig

    def __init__(self, cfg: ClassAwareConfig, heads: nn.ModuleList, stats: ClassStats, seed: int) -> None:
        super().__init__(cfg, heads, stats, seed)
        heads.requires_grad_(False)
        self.frozen = copy.deepcopy(heads)
        self.scale_EC = nn.Parameter(torch.ones(len(heads), stats.num_classes))

    def logits(self, features_BD: Tensor) -> Tensor:
        return self.scale_EC * expert_logits(self.frozen, features_BD)

    @torch.no_grad()
    def export_(self) -> None:
        first: Any
        for head, first, scale_C in zip(self.classifiers, self.frozen, self.scale_EC, strict=True):
            head.weight.copy_(scale_C[:, None] * first.weight)
            head.bias.copy_(scale_C * first.bias)
