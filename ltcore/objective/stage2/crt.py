"""cRT, classifier re-training: a new classifier replaces that of stage 1 and is trained on a balanced stream.

Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020; defaults of GLT
(10 epochs, learning rate 0.1 with cosine decay, 4 samples per class).
Differs: momentum is 0.9, which GLT sets and never reads; GLT ends an epoch after 4 N images (here ``max_passes``). See
also ``ltcore.objective.stage2.method``. Supports cosine heads, and several experts, each of which is re-trained by
itself (stage 2 of RIDE in GLT).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ltcore import rng
from ltcore.objective.stage2.method import ClassAware, ClassAwareConfig
from ltcore.stats import ClassStats


class Crt(ClassAware):
    """New classifiers: weights drawn under the run's seed from a normal distribution of variance 2 / D, biases 0."""

    Config = ClassAwareConfig

    def __init__(self, cfg: ClassAwareConfig, heads: nn.ModuleList, stats: ClassStats, seed: int) -> None:
        super().__init__(cfg, heads, stats, seed)
        for number, head in enumerate(heads):
            for name, parameter in head.named_parameters():
                restart_(parameter, rng.generator(seed, "stage2", number, name))


@torch.no_grad()
def restart_(parameter: Any, generator: torch.Generator) -> None:
    """Draws a weight [C, D] anew, or sets a bias [C] to zero."""
    if parameter.dim() == 1:
        parameter.zero_()
    else:
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn * math.sqrt(2 / parameter.shape[1]))
