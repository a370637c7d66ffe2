"""Classifiers on pooled features, and the projection for contrastive losses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ltcore.errors import ConfigError, at_least, within
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


@dataclass(frozen=True, kw_only=True)
class TdeConfig:
    """Options of the classifier 'tde'. No effect with another one."""

    parts: int = 2
    """Equal parts into which features and class weights are cut, each compared on its own; >= 1, a divisor of the number of
    features."""
    gamma: float = 0.03125
    """Added to the length by which a class weight is divided, so that short ones count less; >= 0."""
    alpha: float = 1.5
    """How much of the mean feature's direction is taken out of a feature in evaluation, >= 0; 0 is none. The authors: 1.5 for
    CIFAR-100-LT, 3 for ImageNet-LT; GLT's code: 2 for ImageNet-GLT, 1 for MSCOCO-GLT, 0 where the classes are balanced."""
    decay: float = 0.995
    """Decay per forward pass of the mean feature, in [0, 1)."""

    def __post_init__(self) -> None:
        at_least(1, parts=self.parts)
        at_least(0, gamma=self.gamma, alpha=self.alpha)
        within("[0, 1)", decay=self.decay)


class TdeHead(nn.Module):
    """Cosine classifier by parts that takes the mean feature's direction out of the features in evaluation; [B, D] -> [B, C].

        s_c = scale / K sum_k u_k . w_ck / (|w_ck| + gamma),    u_k = z_k / |z_k|
        in evaluation    u_k - alpha cos(z_k, m_k) m_k / |m_k|    instead of u_k
        m <- decay m + (1 - decay) mean(z)    at every forward pass in training

    z_k, w_ck and m_k are the K parts of feature, class weight and mean feature. The mean begins at zero, where nothing is
    taken out.

    Source: TDE, Tang et al., "Long-tailed classification by keeping the good and removing the bad momentum causal effect",
    NeurIPS 2020, and its code: the drift that momentum gives all features counts as a confounder, of which the total direct
    effect is free.
    Differs: a feature part of length zero gives zero (NaN in their code); class weights begin He normal, where theirs are
    uniform with a length of 0.58. With several ranks the mean is averaged at the end of an epoch, as statistics of batch norm
    are; that is exact, because training does not read it. With gradient accumulation it moves once per pass.
    """

    running_mean: Tensor

    def __init__(self, features: int, num_classes: int, scale: float, cfg: TdeConfig) -> None:
        """Raises ConfigError where the parts do not divide the features."""
        super().__init__()
        if features % cfg.parts:
            raise ConfigError(
                f"model.tde.parts={cfg.parts} does not divide the {features} features of this network. Choose a divisor."
            )
        self.weight = nn.Parameter(torch.empty(num_classes, features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.scale, self.cfg = scale, cfg

    def forward(self, features_BD: Tensor) -> Tensor:
        """Returns the logits [B, C] of training or of evaluation, and moves the mean in training."""
        parts_BKd, weight_CKd = self._parts(features_BD), self._parts(self.weight)
        unit_BKd = unit(parts_BKd)
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(features_BD.mean(0).to(self.running_mean.dtype), 1 - self.cfg.decay)
        else:
            mean_Kd = unit(self._parts(self.running_mean))
            unit_BKd = unit_BKd - self.cfg.alpha * (unit_BKd * mean_Kd).sum(-1, keepdim=True) * mean_Kd
        weight_CKd = weight_CKd / (weight_CKd.norm(dim=-1, keepdim=True) + self.cfg.gamma)
        return self.scale / self.cfg.parts * F.linear(unit_BKd.flatten(1), weight_CKd.flatten(1))

    def _parts(self, vectors: Tensor) -> Tensor:
        return vectors.unflatten(-1, (self.cfg.parts, -1))


@dataclass(frozen=True)
class HeadRow:
    """A registered classifier, ``build(features, num_classes, scale, tde)``."""

    build: Callable[[int, int, float, TdeConfig], nn.Module]
    summary: str
    paper: str
    in_training: str = ""
    """What it does in training alone, as the end of 'which ...'; '' where training and evaluation are the same function."""


HEADS: dict[str, HeadRow] = {
    "linear": HeadRow(lambda features, num_classes, _scale, _tde: nn.Linear(features, num_classes), "W z + b", "-"),
    "cosine": HeadRow(
        lambda features, num_classes, scale, _tde: CosineHead(features, num_classes, scale),
        "scaled cosine between features and class weights, no bias",
        "Wang et al., ACM MM 2017",
    ),
    "tde": HeadRow(
        TdeHead,
        "cosine by parts; evaluation takes the mean feature's direction out",
        "Tang et al., NeurIPS 2020",
        in_training="averages features that evaluation takes out",
    ),
}


class Projection(nn.Module):
    """Maps [B, D] to unit vectors [B, d] by ``hidden`` layers of Linear, batch norm and ReLU, then Linear.

    Without ``norm`` the batch norm is left out.

    Source: PaCo, Cui et al. 2021, arXiv:2107.12028, with one hidden layer of D units; GPaCo has two, without batch norm.
    """

    def __init__(self, features: int, dim: int, hidden: int, norm: NormFactory | None) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(hidden):
            layers[f"linear{i}"] = nn.Linear(features, features)
            if norm is not None:
                layers[f"bn{i}"] = norm(features)
            layers[f"relu{i}"] = nn.ReLU()
        layers["out"] = nn.Linear(features, dim)
        self.layers = nn.Sequential(layers)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Returns unit rows [B, d]."""
        return unit(self.layers(features_BD))
