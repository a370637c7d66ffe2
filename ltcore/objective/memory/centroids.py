"""Class centroids: mean and spread of the pooled features of each class over one virtual epoch, at one layer.

Source: methods of DRO-LT (robust distance to the empirical class mean) and IFL (one center per class for all
environments), which share this table.
Differs: the authors of DRO-LT run two extra passes over the data per epoch, and those of IFL learn centers with an
optimizer of their own whose rate is the share of the class in the batch. Here the features of the training forward are
summed, and the means of the last virtual epoch are published for the next one, until the end of training. The features
are those of the first view by the trained network, even where there is a key encoder. A class that did not occur in the
epoch keeps its values. A run that starts from another one has the means of its training images in its first epoch
(``training.init_from.start_centroids``). The features of a mixed image count for both of its classes, by their shares, as
in the gradient of GLT's mixup centers. Sums are float64, so the published values depend on the number of ranks by at most 1e-15.
Cost: O(B D) per step; three all-reduces of C (D + 2) numbers together per virtual epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.errors import pick
from ltcore.objective.dims import FeatureDims
from ltcore.objective.memory.base import Memory, MemorySpec
from ltcore.stats import ClassStats


def features_at(out: ModelOutput, stage: str | None) -> Tensor:
    """Returns the pooled features [B, D] after an earlier stage, or the final ones for None."""
    if stage is None:
        return out.features_BD
    assert out.stage_features_BD is not None, f"a loss that reads features of {stage} must list it in its needs"
    return out.stage_features_BD[stage]


class ClassCentroids(Memory):
    """Published ``mean_CD``, ``var_C``, ``count_C`` and ``pooled_var``, all float64.

    A count of 0 marks a class that was never seen.
    """

    @dataclass(frozen=True)
    class Spec(MemorySpec):
        """A layer; all losses that ask for its centroids share one memory."""

        stage: str | None = None
        """Name of an earlier stage of the network; None: the final features."""

        def build(self, stats: ClassStats, dims: FeatureDims, seed: int) -> ClassCentroids:
            """Returns the empty memory. Raises ConfigError where the network has no such stage."""
            num_features = dims.features if self.stage is None else pick(dims.stages, self.stage, "layers")
            return ClassCentroids(stats.num_classes, num_features, self.stage)

    def __init__(self, num_classes: int, num_features: int, stage: str | None = None) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        self.stage = stage
        self.mean_CD = zeros(num_classes, num_features)
        self.var_C = zeros(num_classes)
        """Unbiased total variance: squared distance to the centroid, summed over D; 0 for a class seen only once."""
        self.count_C = zeros(num_classes)
        """Observations behind the published mean; 0 for a class that was never seen and has no centroid yet."""
        self.pooled_var = zeros()
        """Scalar: within-class total variance over all classes, sum of (n_c - 1) var_c over sum of (n_c - 1)."""
        self._sum_CD = zeros(num_classes, num_features)
        self._sumsq_C = zeros(num_classes)
        self._seen_C = zeros(num_classes)

    def observe(self, out: ModelOutput, batch: Batch) -> None:
        """Adds the features [B, D] to the sums of their classes.

        A mixed image counts for both of its classes, by their shares.
        """
        features_BD = features_at(out, self.stage).detach().double()
        square_B = features_BD.square().sum(1)
        if batch.mix is None:
            self._add(features_BD, square_B, torch.ones_like(square_B), batch.labels_B)
        else:
            lam_B = batch.mix.lam_B.double()
            for share_B, labels_B in [(lam_B, batch.labels_B), (1 - lam_B, batch.mix.labels_B)]:
                self._add(features_BD * share_B[:, None], square_B * share_B, share_B, labels_B)

    def _add(self, sum_BD: Tensor, sumsq_B: Tensor, seen_B: Tensor, labels_B: Tensor) -> None:
        self._sum_CD.index_add_(0, labels_B, sum_BD)
        self._sumsq_C.index_add_(0, labels_B, sumsq_B)
        self._seen_C.index_add_(0, labels_B, seen_B)

    def merge(self, progress: float) -> None:
        """Publishes mean, variance and count of the classes seen since the last merge. A collective."""
        for pending in self.pending().values():
            dist.all_reduce_sum_(pending)
        seen_C = self._seen_C > 0
        mean_CD = self._sum_CD / self._seen_C.clamp_min(1)[:, None]
        scatter_C = (self._sumsq_C - self._seen_C * mean_CD.square().sum(1)).clamp_min(0)
        self.mean_CD.copy_(torch.where(seen_C[:, None], mean_CD, self.mean_CD))
        self.var_C.copy_(torch.where(seen_C, scatter_C / (self._seen_C - 1).clamp_min(1), self.var_C))
        self.count_C.copy_(torch.where(seen_C, self._seen_C, self.count_C))
        freedom_C = (self.count_C - 1).clamp_min(0)
        self.pooled_var.copy_((self.var_C * freedom_C).sum() / freedom_C.sum().clamp_min(1))
        for pending in self.pending().values():
            pending.zero_()

    def published(self) -> dict[str, Tensor]:
        return {
            "mean_CD": self.mean_CD,
            "var_C": self.var_C,
            "count_C": self.count_C,
            "pooled_var": self.pooled_var,
        }

    def pending(self) -> dict[str, Tensor]:
        return {"sum_CD": self._sum_CD, "sumsq_C": self._sumsq_C, "seen_C": self._seen_C}
