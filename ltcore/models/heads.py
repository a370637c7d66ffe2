"""Classifiers on pooled features, and the projection for contrastive losses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ltcore.models.norm import NormFactory

_EPS = 1e-6


def unit(vectors: Tensor) -> Tensor:
    """Scales vectors along the last dimension to length 1: x / sqrt(|x|^2 + 1e-12).

    A zero vector stays zero with a finite gradient (dividing by a clamped norm gives 1e12 there with torch's default).
    """
    return vectors * (vectors.square().sum(-1, keepdim=True) + _EPS**2).rsqrt()


class CosineHead(nn.Module):
    """Cosine classifier, logits = scale * cos(w_c, z); [B, D] -> [B, C], no bias. Features of length zero give logits
    0.

    Source: NormFace, Wang et al. 2017, arXiv:1704.06369; LDAM and RIDE use it with scale 30.
    Differs: class weights are initialized He normal, with length about 1.41; in their codes the length is 1. The
    gradient is divided by this length.
    """

    def __init__(self, features: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, features))
        self.scale = scale

    def forward(self, features_BD: Tensor) -> Tensor:
        """Returns the scaled cosines [B, C]."""
        return self.scale * F.linear(unit(features_BD), unit(self.weight))


@dataclass(frozen=True)
class HeadRow:
    """A registered classifier, ``build(features, num_classes, scale)``."""

    build: Callable[[int, int, float], nn.Module]
    summary: str


HEADS: dict[str, HeadRow] = {
    "linear": HeadRow(lambda features, num_classes, _scale: nn.Linear(features, num_classes), "W z + b"),
    "cosine": HeadRow(CosineHead, "scaled cosine between features and class weights, no bias"),
}


class Projection(nn.Module):
    """Maps [B, D] to unit vectors [B, d] by ``hidden`` layers of Linear, batch norm and ReLU, then Linear.

    Source: PaCo, Cui et al. 2021, arXiv:2107.12028, with one hidden layer of D units.
    """

    def __init__(self, features: int, dim: int, hidden: int, norm: NormFactory) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(hidden):
            layers[f"linear{i}"] = nn.Linear(features, features)
            layers[f"bn{i}"] = norm(features)
            layers[f"relu{i}"] = nn.ReLU()
        layers["out"] = nn.Linear(features, dim)
        self.layers = nn.Sequential(layers)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Returns unit rows [B, d]."""
        return unit(self.layers(features_BD))
