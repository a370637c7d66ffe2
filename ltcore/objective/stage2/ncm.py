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
        means = class_means(data, self.stats.num_classes, len(self.heads), self.cfg.metric == "cosine")
        for head, mean_CD in zip(self.classifiers, means, strict=True):
            head.weight.copy_(mean_CD)
            if self.cfg.metric == "euclidean":
                head.bias.copy_(-mean_CD.square().sum(1) / 2)
        return {}


def class_means(data: FeatureSet, num_classes: int, num_experts: int, unit: bool) -> list[Tensor]:
    """Returns the class means of the features, or of their directions, for each expert.

    They are float64 [C, D], computed on the CPU, where sums have a fixed order.
    """
    dim = data.features_ND.shape[1] // num_experts
    sum_CED = torch.zeros(num_classes, num_experts, dim, dtype=torch.float64)
    for features_BD, labels_B in data.chunks():
        features_BED = features_BD.cpu().double().unflatten(1, (num_experts, dim))
        sum_CED.index_add_(0, labels_B.cpu(), F.normalize(features_BED, dim=2) if unit else features_BED)
    counts_C = data.labels_N.cpu().bincount(minlength=num_classes)
    return list((sum_CED / counts_C[:, None, None]).unbind(1))
