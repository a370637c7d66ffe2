"""LPA: local pseudo-attributes. Classes that are made of the same parts become soft positives of each other.

The vectors of the last feature map are clustered; each class is described by how often its images show each cluster; a
supervised contrastive term pulls an image to its class and, with a bounded share, to the classes with a similar
description.

    L = mean_i -(sum_j M_ij log softmax_j(q_i . v_j / T)) / sum_j M_ij
    M_ij = (1 - rho) / |S_i| for j of the same class, rho w_{y_i y_j} / sum_j w for j of a neighbor class

Source: Local Pseudo-Attributes for Long-Tailed Recognition (2022), L_PaCo + alpha L_SupCon(z, a(y)). The paper leaves
layer, clustering, scores and positives open; what is here is our definition: spherical k-means on a class-balanced
reservoir, histograms per class, cosine of centered and shrunk histograms, k nearest classes.
Shapes: anchors q [B, d]; contrast set [queries; keys; queue] of the global batch, [2WB + Q, d].
Cost: 2B(2WB + Q)d for the loss (shared with PaCo), 2PKD per image to assign P locations to K prototypes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from ltcore.batch import Batch, ModelOutput
from ltcore.objective.attributes import CENTERINGS
from ltcore.objective.contrast import ContrastSet, mean_over_valid, supcon
from ltcore.objective.memory.base import MemorySpec
from ltcore.objective.memory.prototypes import METRICS, RESERVOIRS, SCORES, Prototypes, PrototypesSpec
from ltcore.objective.memory.queue import Queue, QueueSpec
from ltcore.objective.term import LossContext, Term, TermConfig


class Lpa(Term):
    """Contributes from the first clustering on: the first merge (end of a virtual epoch) at or after ``start``."""

    needs = frozenset({"fmap", "query", "key"})

    @dataclass(frozen=True, kw_only=True)
    class Config(TermConfig):
        weight: float = 0.1
        """Factor of the penalty (the paper's alpha). A contrastive gradient is about 1/temperature larger than that of
        cross-entropy; useful range 0.02 to 1."""
        start: float = 0.1
        """Fraction of training of the first clustering; before it the term contributes nothing. Range [0, 1)."""
        num_attributes: int = 128
        """Prototypes of k-means, >= 2; about C/2 to C. Fewer are made where the reservoir holds fewer vectors."""
        neighbors: int = 5
        """Classes that may be neighbors of a class, >= 0."""
        threshold: float = 0.0
        """Similarity that a neighbor must exceed. Range [-1, 1)."""
        neighbor_mass: float = 0.3
        """Share of an anchor's positive weight that goes to neighbor classes (rho). 0 is plain supervised contrast;
        range [0, 1], above 0.5 a class is pulled more to others than to itself."""
        temperature: float = 0.05
        """Divides cosines. > 0."""
        queue_size: int = 1024
        """Keys of earlier steps in the contrast set; 0 is none. Shared with PaCo where the sizes agree."""
        shrink: float = 10.0
        """Images' worth of the mean class mixed into each class description (m0), against noise in small classes. >=
        0."""
        centering: str = "centered"
        """What is compared: 'centered' (minus the mean class), 'raw', or 'pmi' (log ratio to the mean class)."""
        score: str = "hard"
        """'hard' counts the nearest prototype of each location, 'soft' a softmax over prototypes."""
        score_temperature: float = 0.1
        """Temperature of the soft score; no effect with score='hard'. > 0."""
        metric: str = "cosine"
        """'cosine' clusters directions, 'euclid' the raw vectors, whose norm then counts."""
        reservoir: str = "class"
        """Which vectors are clustered: 'class' keeps as many per class, 'instance' as they come, so that head classes
        own most prototypes."""
        reservoir_per_class: int = 128
        """Vectors kept per class for clustering, >= 1. Memory on each rank: C * reservoir_per_class * D * 4 bytes."""
        locations_per_image: int = 8
        """Vectors that one image may give to the reservoir, >= 1."""
        refresh_fraction: float = 0.05
        """Fraction of training between clusterings; 0 clusters once. Rounded up to whole virtual epochs."""
        freeze_fraction: float = 0.6
        """Fraction of training after which prototypes stay; class descriptions go on being counted. In (start, 1]."""
        iterations: int = 20
        """Most iterations of one k-means, >= 1."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name, low in [
                ("num_attributes", 2),
                ("neighbors", 0),
                ("queue_size", 0),
                ("shrink", 0),
                ("reservoir_per_class", 1),
                ("locations_per_image", 1),
                ("iterations", 1),
            ]:
                if not low <= getattr(self, name) < math.inf:
                    raise ValueError(f"{name} must be a finite number >= {low}, got {getattr(self, name)}")
            for name in ("temperature", "score_temperature"):
                if not 0 < getattr(self, name) < math.inf:
                    raise ValueError(f"{name} must be a finite number > 0, got {getattr(self, name)}")
            if not -1 <= self.threshold < 1:
                raise ValueError(f"threshold is a cosine in [-1, 1), got {self.threshold}")
            if not 0 <= self.neighbor_mass <= 1:
                raise ValueError(f"neighbor_mass is a share in [0, 1], got {self.neighbor_mass}")
            if not 0 <= self.refresh_fraction <= 1:
                raise ValueError(f"refresh_fraction is a fraction of training in [0, 1], got {self.refresh_fraction}")
            if not self.start < self.freeze_fraction <= 1:
                raise ValueError(
                    f"freeze_fraction must lie in (start, 1] = ({self.start}, 1], got {self.freeze_fraction}: "
                    "there would be no clustering to freeze"
                )
            for name, allowed in [
                ("centering", CENTERINGS),
                ("score", SCORES),
                ("metric", METRICS),
                ("reservoir", RESERVOIRS),
            ]:
                if getattr(self, name) not in allowed:
                    raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    cfg: Config

    @staticmethod
    def gathers(cfg: Config) -> bool:
        """The contrast set is the global batch."""
        return True

    def memories(self) -> dict[str, MemorySpec]:
        """Prototypes with the class descriptions, and the queue of keys, which is PaCo's where the sizes agree."""
        specs: dict[str, MemorySpec] = {
            "prototypes": PrototypesSpec(**{f.name: getattr(self.cfg, f.name) for f in fields(PrototypesSpec)})
        }
        if self.cfg.queue_size:
            specs["queue"] = QueueSpec(self.cfg.queue_size)
        return specs

    def forward(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """Scalar, this rank's share of the mean over the anchors that have a positive; 0 before the first clustering. A
        collective."""
        assert out.query_Bd is not None
        prototypes = cast(Prototypes, ctx.memories["prototypes"])
        if not prototypes.num_clusters:  # no class has a description yet
            return out.query_Bd.sum() * 0.0
        contrast = ContrastSet.of(out, batch.labels_B, ctx, cast("Queue | None", ctx.memories.get("queue")))
        weights_BA = positive_weights(
            contrast, batch.labels_B, prototypes.neighbors_Ck, prototypes.weights_Ck, self.cfg.neighbor_mass
        )
        loss_B, valid_B = supcon(contrast.cosine_BA, weights_BA, contrast.excluded_BA, self.cfg.temperature)
        return mean_over_valid(loss_B, valid_B)


def positive_weights(
    contrast: ContrastSet, labels_B: Tensor, neighbors_Ck: Tensor, weights_Ck: Tensor, neighbor_mass: float
) -> Tensor:
    """[B, A] weights M, each row summing to 1 where it has a positive.

    Elements of the anchor's class share 1 - ``neighbor_mass`` equally, those of neighbor classes share
    ``neighbor_mass`` by class similarity; where either set is empty the other takes all (but without neighbor mass
    there are no neighbors). ``neighbors_Ck`` holds class ids, padded with the class's own id at weight 0.
    """
    allowed_BA = ~contrast.excluded_BA
    dtype = contrast.cosine_BA.dtype
    same_BA = ((labels_B[:, None] == contrast.labels_A) & allowed_BA).to(dtype)
    by_class_BC = torch.zeros(len(labels_B), len(neighbors_Ck), dtype=dtype, device=labels_B.device)
    by_class_BC.scatter_(1, neighbors_Ck[labels_B], weights_Ck[labels_B].to(dtype))
    near_BA = by_class_BC[:, contrast.labels_A.clamp_min(0)] * allowed_BA  # unfilled queue slots have label -1
    num_same_B1, sum_near_B1 = same_BA.sum(1, keepdim=True), near_BA.sum(1, keepdim=True)
    near_mass_B1 = torch.full_like(num_same_B1, neighbor_mass)
    near_mass_B1 = near_mass_B1.masked_fill(num_same_B1 == 0, float(neighbor_mass > 0)).masked_fill(sum_near_B1 == 0, 0)
    same_share_BA = same_BA / num_same_B1.clamp_min(1)
    near_share_BA = near_BA / sum_near_B1.masked_fill(sum_near_B1 == 0, 1)
    return same_share_BA * (1 - near_mass_B1) + near_share_BA * near_mass_B1
