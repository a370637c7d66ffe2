"""NCM, nearest class mean: the class whose mean training feature is nearest. Nothing is trained.

    cosine      a cosine head whose weights are the means of the unit features: argmax cos(m_c, z)
    euclidean   a linear head with w_c = m_c, b_c = -|m_c|^2 / 2: argmax w_c z + b_c = argmin |z - m_c|

Both are exact, so the result is an ordinary network. Its probabilities are a softmax of scaled cosines, or of negative
half squared distances, and are not calibrated.

Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020, section 4.2.
Differs: for 'cosine' every sample contributes its direction only, so predictions do not depend on the length of a
feature. With several experts each has its own means, and their logits are averaged as usual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore import dist
from ltcore.errors import one_of
from ltcore.objective.stage2.method import FeatureSet, Solved

METRICS = ("cosine", "euclidean")


class Ncm(Solved):
    """Class means as class weights."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        metric: str = "cosine"
        """'cosine' (model.head=cosine, with the logits' scale model.cosine_scale) or 'euclidean' (model.head=linear).
        """

        def __post_init__(self) -> None:
            one_of(METRICS, metric=self.metric)

    cfg: Config

    @staticmethod
    def result_head(cfg: Config) -> str:
        return "cosine" if cfg.metric == "cosine" else "linear"

    @staticmethod
    def rounds(cfg: Config) -> int:
        return 1

    @torch.no_grad()
    def solve_(self, index: int, data: FeatureSet) -> dict[str, float]:
        experts, device = len(self.heads), data.features_ND.device
        dim = data.features_ND.shape[1] // experts
        means = ClassMeans(self.stats.num_classes, experts, dim, unit=self.cfg.metric == "cosine")
        for features_BD, labels_B in data.chunks():
            means.add(features_BD, labels_B)
        for head, mean_CD in zip(self.classifiers, means.over_ranks(device), strict=True):
            head.weight.copy_(mean_CD)
            if self.cfg.metric == "euclidean":
                head.bias.copy_(-mean_CD.square().sum(1) / 2)
        return {}


class ClassMeans:
    """Running class means of features, or of their directions, for each expert.

    The sums are float64 [C, E, D] on the CPU, where they have a fixed order.
    """

    def __init__(self, num_classes: int, num_experts: int, dim: int, unit: bool) -> None:
        self.unit = unit
        self._sum_CED = torch.zeros(num_classes, num_experts, dim, dtype=torch.float64)
        self._seen_C = torch.zeros(num_classes, dtype=torch.float64)

    def add(self, features_BD: Tensor, labels_B: Tensor) -> None:
        """Adds features in which those of the experts lie side by side."""
        labels_B = labels_B.cpu()
        features_BED = features_BD.cpu().double().unflatten(1, self._sum_CED.shape[1:])
        self._sum_CED.index_add_(0, labels_B, F.normalize(features_BED, dim=2) if self.unit else features_BED)
        self._seen_C.index_add_(0, labels_B, torch.ones(len(labels_B), dtype=torch.float64))

    def over_ranks(self, device: torch.device) -> list[Tensor]:
        """Returns the means over all ranks for each expert, float64 [C, D] on ``device``. A collective.

        Every class must have a sample on some rank.
        """
        sum_CED, seen_C = (dist.all_reduce_sum_(own.to(device, copy=True)) for own in (self._sum_CED, self._seen_C))
        return list((sum_CED / seen_C[:, None, None]).unbind(1))
