"""Prototypes of local features and what each class is made of: LPA's memory.

Every virtual epoch is a window. While it runs, each rank keeps a keyed sample of local feature vectors (``reservoir``)
and, once prototypes exist, counts for each class how often its locations fall to each prototype. At its end (``merge``)

* where a clustering is due, the ranks' samples are joined, rank 0 runs k-means and broadcasts the prototypes; class
  descriptions come from the sample at once, since the window's counts belong to the old prototypes;
* otherwise the window's counts, summed over ranks, replace the descriptions of the classes that were seen;

and both sample and counts start anew. They have to: the features of an earlier window come from another network. The
keys ignore the epoch, so the same locations of the same samples are kept in every window.

Clusterings are due at ``start``, then every ``refresh_fraction`` of training up to ``freeze_fraction``, each at the
first merge at or after its point; the first is made up for even where that merge lies beyond the freeze.
Source: methods of LPA, see ``terms/lpa.py``.
Shapes: P locations, K prototypes, C classes, D channels, k neighbors, R sampled vectors. Cost: 2PKD per image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.objective.attributes import class_neighbors
from ltcore.objective.kmeans import CHUNK, affinity, kmeans
from ltcore.objective.memory import reservoir
from ltcore.objective.memory.base import Memory, MemorySpec
from ltcore.objective.memory.reservoir import KeyedReservoir
from ltcore.objective.term import FeatureDims, widened
from ltcore.rng import generator, hash64, hash_tensor
from ltcore.stats import ClassStats

SCORES = ("hard", "soft")
METRICS = ("cosine", "euclid")
RESERVOIRS = ("class", "instance")

_SOFT_UNIT = 1 << 20
"""Soft scores are counted in integer steps of 1/_SOFT_UNIT, so that their sums do not depend on the order of adding."""
_MIN_NORM = 1e-6
_SLACK = 1e-9
"""Progress is a ratio of counts; schedule points are decimal fractions."""


@dataclass(frozen=True, kw_only=True)
class PrototypesSpec(MemorySpec):
    """The fields of ``Lpa.Config`` that the memory is made by, under the same names."""

    num_attributes: int
    neighbors: int
    threshold: float
    shrink: float
    centering: str
    score: str
    score_temperature: float
    metric: str
    reservoir: str
    reservoir_per_class: int
    locations_per_image: int
    start: float
    refresh_fraction: float
    freeze_fraction: float
    iterations: int

    def build(self, stats: ClassStats, dims: FeatureDims, seed: int) -> Prototypes:
        return Prototypes(self, stats, dims.features, seed)


class Prototypes(Memory):
    """``prototypes_KD``, ``mass_CK`` and the neighbor table; ``num_clusters`` is 0 until the first clustering."""

    def __init__(self, spec: PrototypesSpec, stats: ClassStats, dim: int, seed: int) -> None:
        num_classes = stats.num_classes
        self.spec, self.seed = spec, seed
        self._images_C = stats.counts_C.clone()
        self.prototypes_KD = torch.zeros(spec.num_attributes, dim)
        """The first ``num_clusters`` rows are in use; unit norm with metric 'cosine'."""
        self.mass_CK = torch.zeros(num_classes, spec.num_attributes, dtype=torch.int64)
        """How often locations of a class fell to a prototype; a row is a(y) up to its sum. 0: class not seen yet."""
        self.neighbors_Ck = torch.arange(num_classes)[:, None].repeat(1, min(spec.neighbors, num_classes - 1))
        """int64 ids of the most similar classes; padded with the class's own id."""
        self.weights_Ck = torch.zeros(self.neighbors_Ck.shape)
        """Similarity above the threshold, scaled to (0, 1]; 0 in the padding."""
        self._schedule = torch.tensor([0.0, spec.start], dtype=torch.float64)
        """(num_clusters, progress at which the next clustering is due), as saved; mirrored on the host below."""
        self.num_clusters, self.next_refresh = 0, spec.start
        self._window_CK = torch.zeros_like(self.mass_CK)
        by_class = spec.reservoir == "class"
        groups, slots = (num_classes, 1) if by_class else (1, num_classes)
        self._reservoir = KeyedReservoir(groups, slots * spec.reservoir_per_class, dim)

    def observe(self, out: ModelOutput, batch: Batch) -> None:
        assert out.fmap_BDhw is not None, "whoever declares prototypes needs 'fmap'"
        vectors_BPD = widened(out.fmap_BDhw).flatten(2).transpose(1, 2)
        size_BP = lengths(vectors_BPD, self.spec.metric)
        if math.isfinite(self.next_refresh):
            self._sample(vectors_BPD, size_BP, batch)
        if self.num_clusters:
            self._count_into(self._window_CK, vectors_BPD, size_BP, batch.labels_B)

    def merge(self, progress: float) -> None:
        if self._due(progress):
            self._refresh(progress)
        elif self.num_clusters:
            window_CK = dist.all_reduce_sum_(self._window_CK)
            self.mass_CK = torch.where(window_CK.sum(1, keepdim=True) > 0, window_CK, self.mass_CK)
        if self.num_clusters and progress > self.spec.freeze_fraction + _SLACK:
            self.next_refresh = math.inf
        self._publish()
        self._window_CK.zero_()
        self._reservoir.clear()

    def published(self) -> dict[str, Tensor]:
        return {
            "prototypes": self.prototypes_KD,
            "mass": self.mass_CK,
            "neighbors": self.neighbors_Ck,
            "weights": self.weights_Ck,
            "schedule": self._schedule,
        }

    def pending(self) -> dict[str, Tensor]:
        return {"window": self._window_CK, **self._reservoir.state()}

    def load(self, published: dict[str, Tensor], pending_of_ranks: list[dict[str, Tensor]]) -> None:
        super().load(published, pending_of_ranks)
        num_clusters, self.next_refresh = self._schedule.tolist()
        self.num_clusters = int(num_clusters)

    def join_pending(self, pending_of_ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        window_CK = torch.stack([pending["window"] for pending in pending_of_ranks]).sum(0)
        return {"window": window_CK, **reservoir.join(pending_of_ranks)}

    def to(self, device: torch.device) -> None:
        super().to(device)
        self._reservoir.to(device)

    def _due(self, progress: float) -> bool:
        thawed = not self.num_clusters or progress <= self.spec.freeze_fraction + _SLACK
        return thawed and progress >= self.next_refresh - _SLACK

    def _refresh(self, progress: float) -> None:
        points_RD, labels_R = self._reservoir.gather()
        used = min(self.spec.num_attributes, len(points_RD))
        if not used:
            return  # nothing seen yet: due again at the next merge
        self.prototypes_KD.zero_()
        self.mass_CK.zero_()
        self.num_clusters = used
        if dist.rank() == 0:
            gen = generator(self.seed, "prototypes")
            spherical = self.spec.metric == "cosine"
            fit = kmeans(points_RD, used, gen, iterations=self.spec.iterations, spherical=spherical)
            self.prototypes_KD[:used] = fit.centers_KD
            for vectors_nD, labels_n in zip(points_RD.split(CHUNK), labels_R.split(CHUNK), strict=True):
                size_n1 = lengths(vectors_nD[:, None], self.spec.metric)
                self._count_into(self.mass_CK, vectors_nD[:, None], size_n1, labels_n)
        dist.broadcast_(self.prototypes_KD)
        dist.broadcast_(self.mass_CK)
        self.next_refresh = self._point_after(progress)

    def _point_after(self, progress: float) -> float:
        spec = self.spec
        if not spec.refresh_fraction:
            return math.inf
        done = math.floor((progress - spec.start) / spec.refresh_fraction + _SLACK)
        return spec.start + (done + 1) * spec.refresh_fraction

    def _publish(self) -> None:
        spec = self.spec
        self._schedule.copy_(torch.tensor([self.num_clusters, self.next_refresh], dtype=torch.float64))
        if self.num_clusters:
            neighbors_Ck, weights_Ck = class_neighbors(
                self.mass_CK[:, : self.num_clusters],
                self._images_C,
                neighbors=spec.neighbors,
                threshold=spec.threshold,
                shrink=spec.shrink,
                centering=spec.centering,
            )
            self.neighbors_Ck.copy_(neighbors_Ck)
            self.weights_Ck.copy_(weights_Ck)

    def _sample(self, vectors_BPD: Tensor, size_BP: Tensor, batch: Batch) -> None:
        locations_1P = torch.arange(size_BP.shape[1], device=size_BP.device)[None]
        base = hash64(self.seed, "reservoir")
        keys_BP = hash_tensor(base, batch.index_B[:, None], batch.copy_B[:, None], locations_1P) & ((1 << 63) - 1)
        keys_BP = keys_BP.clamp_min(1) * (size_BP > _MIN_NORM)  # 0 is what the reservoir ignores
        keys_BL, locations_BL = keys_BP.topk(min(self.spec.locations_per_image, keys_BP.shape[1]), dim=1)
        size_BL1 = size_BP.gather(1, locations_BL)[:, :, None].clamp_min(_MIN_NORM)
        image_B1 = torch.arange(len(locations_BL), device=locations_BL.device)[:, None]
        vectors_BLD = vectors_BPD[image_B1, locations_BL] / size_BL1
        labels_n = batch.labels_B.repeat_interleave(keys_BL.shape[1])
        groups_n = labels_n if self.spec.reservoir == "class" else torch.zeros_like(labels_n)
        self._reservoir.add(keys_BL.flatten(), groups_n, labels_n, vectors_BLD.flatten(0, 1))

    def _count_into(self, mass_CK: Tensor, vectors_BPD: Tensor, size_BP: Tensor, labels_B: Tensor) -> None:
        scores_BK = attribute_scores(
            vectors_BPD,
            size_BP,
            self.prototypes_KD[: self.num_clusters].to(vectors_BPD.dtype),
            metric=self.spec.metric,
            score=self.spec.score,
            score_temperature=self.spec.score_temperature,
        )
        mass_CK[:, : self.num_clusters].index_add_(0, labels_B, scores_BK)


def lengths(vectors_BPD: Tensor, metric: str) -> Tensor:
    """[B, P] norms to divide by: 1 with 'euclid'. A vector shorter than 1e-6 has no direction and is left out."""
    if metric == "euclid":
        return torch.ones_like(vectors_BPD[..., 0])
    return torch.linalg.vector_norm(vectors_BPD, dim=2)


def attribute_scores(
    vectors_BPD: Tensor,
    size_BP: Tensor,
    prototypes_KD: Tensor,
    *,
    metric: str,
    score: str,
    score_temperature: float,
) -> Tensor:
    """int64 [B, K], r_i up to its sum: 'hard' counts locations by nearest prototype, 'soft' adds their softmax.

    ``size_BP`` are the vectors' :func:`lengths`. Vectors are not normalized: unit prototypes rank by the dot product
    whatever the length of the vector.
    """
    live_BP = size_BP > _MIN_NORM
    if metric == "euclid":
        affinity_BPK = affinity(vectors_BPD, prototypes_KD)
    else:
        affinity_BPK = vectors_BPD @ prototypes_KD.T
    if score == "soft":
        logits_BPK = affinity_BPK / (size_BP.clamp_min(_MIN_NORM) * score_temperature)[..., None]
        soft_BK = (logits_BPK.softmax(2) * live_BP[..., None]).mean(1)
        return (soft_BK * _SOFT_UNIT).round().long()
    counts_BK = live_BP.new_zeros(len(live_BP), len(prototypes_KD), dtype=torch.int64)
    return counts_BK.scatter_add_(1, affinity_BPK.max(2).indices, live_BP.long())
