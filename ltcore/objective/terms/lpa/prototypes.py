"""Prototypes of local features and the composition of each class: LPA's memory.

Every virtual epoch is a window. During a window, each rank keeps a keyed sample of local feature vectors
(``reservoir``) and, once prototypes exist, counts for each class how many of its locations are nearest to each
prototype. At its end (``merge``)

* where a clustering is due, the ranks' samples are joined, and rank 0 runs k-means and broadcasts the prototypes; class
  descriptions are computed from the sample, since the window's counts belong to the old prototypes;
* otherwise the window's counts, summed over ranks, replace the descriptions of the classes that were seen;

and both sample and counts are reset, because the features of an earlier window come from a different network. The keys
ignore the epoch, so the same locations of the same samples are kept in every window.

Between clusterings prototypes stay, or move to the means of the vectors nearest to them (``online_rate``).

Clusterings are due at ``start``, then every ``refresh_fraction`` of training up to ``freeze_fraction``, each at the
first merge at or after its point. The first one takes place even where that merge lies beyond the freeze.

Source: methods of LPA, see ``terms/lpa/term.py``.
Shapes: P locations, K prototypes, C classes, D channels, k neighbors, R sampled vectors.
Cost: 2PKD per image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.objective.dims import FeatureDims
from ltcore.objective.memory.base import Memory, MemorySpec
from ltcore.objective.terms.lpa import reservoir
from ltcore.objective.terms.lpa.attributes import class_neighbors
from ltcore.objective.terms.lpa.codebook import MIN_NORM, affinities, attribute_scores, lengths, unwhitened, whitening
from ltcore.objective.terms.lpa.kmeans import CHUNK, kmeans
from ltcore.objective.terms.lpa.local_features import FINAL, channels_of, local_vectors
from ltcore.objective.terms.lpa.reservoir import KeyedReservoir
from ltcore.rng import generator, hash64, hash_tensor
from ltcore.stats import ClassStats

RESERVOIRS = ("class", "instance")

_SLACK = 1e-9
"""Tolerance: progress is a ratio of counts, schedule points are decimal fractions."""


@dataclass(frozen=True, kw_only=True)
class PrototypesSpec(MemorySpec):
    """The fields of ``Lpa.Config`` that determine the memory, under the same names."""

    layers: tuple[str, ...] | None
    scales: tuple[int, ...]
    num_attributes: int
    neighbors: int
    threshold: float | None
    shrink: float
    centering: str
    similarity: str
    score: str
    score_temperature: float
    metric: str
    reservoir: str
    reservoir_per_class: int
    locations_per_image: int
    start: float
    refresh_fraction: float
    freeze_fraction: float
    online_rate: float
    iterations: int

    def build(self, stats: ClassStats, dims: FeatureDims, seed: int) -> Prototypes:
        """Returns the empty memory. Raises ConfigError where the network has no such layer."""
        return Prototypes(self, stats, channels_of(self.from_layers, dims), seed)

    @property
    def from_layers(self) -> tuple[str, ...]:
        """Returns ``layers``, or the final one by default."""
        return self.layers or (FINAL,)


class Prototypes(Memory):
    """``prototypes_KD``, ``mass_CK`` and the neighbor table; ``num_clusters`` is 0 until the first clustering."""

    def __init__(self, spec: PrototypesSpec, stats: ClassStats, dim: int, seed: int) -> None:
        num_classes = stats.num_classes
        self.spec, self.seed = spec, seed
        self._counts_C = stats.counts_C.clone()
        self.prototypes_KD = torch.zeros(spec.num_attributes, dim)
        """The first ``num_clusters`` rows are in use; unit norm with metric 'cosine', directions with 'whitened'."""
        self.offsets_K = torch.zeros(spec.num_attributes)
        """Added to the products with the directions; used by metric 'whitened' only."""
        self.mass_CK = torch.zeros(num_classes, spec.num_attributes, dtype=torch.int64)
        """How often locations of a class were nearest to a prototype; a row is a(y) up to its sum. 0: class not seen
        yet.
        """
        self.images_C = torch.zeros(num_classes, dtype=torch.float64)
        """How many images of a class its row of ``mass_CK`` rests on: of a sample, as large a part of them as of their
        vectors."""
        self.neighbors_Ck = torch.arange(num_classes)[:, None].repeat(1, min(spec.neighbors, num_classes - 1))
        """int64 ids of the most similar classes; padded with the class's own id."""
        self.weights_Ck = torch.zeros(self.neighbors_Ck.shape)
        """Similarity above the threshold, scaled to (0, 1]; 0 in the padding."""
        self._schedule = torch.tensor([0.0, spec.start], dtype=torch.float64)
        """(num_clusters, progress at which the next clustering is due), as saved; mirrored on the host below."""
        self.num_clusters, self.next_refresh = 0, spec.start
        self._window_CK = torch.zeros_like(self.mass_CK)
        self._shown_C = torch.zeros(num_classes, dtype=torch.int64)
        """Images of each class in this window, a repeated one as often as it came."""
        self._offered_C = torch.zeros(num_classes, dtype=torch.int64)
        """Vectors that they offered to the reservoir."""
        self._sum_KD = torch.zeros(spec.num_attributes, dim if spec.online_rate else 0, dtype=torch.float64)
        """Sum of the vectors nearest to each prototype in this window; empty where prototypes do not move."""
        self._seen_K = torch.zeros(spec.num_attributes, dtype=torch.int64)
        by_class = spec.reservoir == "class"
        groups, slots = (num_classes, 1) if by_class else (1, num_classes)
        self._reservoir = KeyedReservoir(groups, slots * spec.reservoir_per_class, dim)

    def observe(self, out: ModelOutput, batch: Batch) -> None:
        """Samples the batch's local vectors [B, P, D], and counts them once prototypes exist.

        There is nothing to sample after the last clustering.
        """
        vectors_BPD, size_BP = self._vectors(out)
        self._shown_C.index_add_(0, batch.labels_B, torch.ones_like(batch.labels_B))
        if math.isfinite(self.next_refresh):
            self._sample(vectors_BPD, size_BP, batch)
        if self.num_clusters:
            affinity_BPK = self._affinities(vectors_BPD)
            self._count_into(self._window_CK, affinity_BPK, size_BP, batch.labels_B)
            if self.spec.online_rate:
                self._add_to_nearest(affinity_BPK, vectors_BPD, size_BP)

    def scores(self, out: ModelOutput) -> Tensor:
        """Returns int64 [B, num_clusters], the attribute scores of each image."""
        vectors_BPD, size_BP = self._vectors(out)
        return self._scores(self._affinities(vectors_BPD), size_BP)

    def located(self, out: ModelOutput) -> tuple[Tensor, Tensor]:
        """Returns ``scores`` of each image, and how strongly each of its locations activates each prototype [B, P, K].

        An activation is the cosine with metric 'cosine', 0 for a vector without direction; with 'euclid' minus the squared
        distance; with 'whitened' half of what the squared distance to the mean is larger than that to the prototype.
        """
        vectors_BPD, size_BP = self._vectors(out)
        affinity_BPK = self._affinities(vectors_BPD)
        scores_BK = self._scores(affinity_BPK, size_BP)
        if self.spec.metric == "cosine":
            return scores_BK, affinity_BPK / size_BP.clamp_min(MIN_NORM)[:, :, None]
        if self.spec.metric == "euclid":
            return scores_BK, 2 * affinity_BPK - vectors_BPD.square().sum(2)[:, :, None]
        return scores_BK, affinity_BPK

    def merge(self, progress: float) -> None:
        """Clusters where that is due, otherwise publishes the window's counts. A collective."""
        shown_C = torch.minimum(dist.all_reduce_sum_(self._shown_C), self._counts_C)
        if self._due(progress):
            self._refresh(progress, shown_C)
        elif self.num_clusters:
            window_CK = dist.all_reduce_sum_(self._window_CK)
            seen_C = window_CK.sum(1) > 0
            self.mass_CK.copy_(torch.where(seen_C[:, None], window_CK, self.mass_CK))
            self.images_C.copy_(torch.where(seen_C, shown_C.double(), self.images_C))
            if self.spec.online_rate and progress <= self.spec.freeze_fraction + _SLACK:
                self._move()
        if self.num_clusters and progress > self.spec.freeze_fraction + _SLACK:
            self.next_refresh = math.inf
        self._publish()
        for window in self._sums().values():
            window.zero_()
        self._reservoir.clear()

    def published(self) -> dict[str, Tensor]:
        """Returns prototypes, attribute counts and neighbors of each class, and the state of the schedule."""
        offsets = {"offsets": self.offsets_K} if self.spec.metric == "whitened" else {}
        return {
            **offsets,
            "prototypes": self.prototypes_KD,
            "mass": self.mass_CK,
            "images": self.images_C,
            "neighbors": self.neighbors_Ck,
            "weights": self.weights_Ck,
            "schedule": self._schedule,
        }

    def pending(self) -> dict[str, Tensor]:
        """Returns the window's counts, its sums by prototype where these move, and the reservoir."""
        return {**self._sums(), **self._reservoir.state()}

    def _sums(self) -> dict[str, Tensor]:
        moving = {"sum": self._sum_KD, "seen": self._seen_K} if self.spec.online_rate else {}
        return {"window": self._window_CK, "shown": self._shown_C, "offered": self._offered_C, **moving}

    def load(self, published: dict[str, Tensor], pending_of_ranks: list[dict[str, Tensor]]) -> None:
        """Restores a checkpoint like every memory, and mirrors the schedule on the host."""
        super().load(published, pending_of_ranks)
        num_clusters, self.next_refresh = self._schedule.tolist()
        self.num_clusters = int(num_clusters)

    def join_pending(self, pending_of_ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums the counts and joins the reservoirs into one of all rows."""
        sums = {name: torch.stack([pending[name] for pending in pending_of_ranks]).sum(0) for name in self._sums()}
        return {**sums, **reservoir.join(pending_of_ranks)}

    def to(self, device: torch.device) -> None:
        """Moves all tensors, including the reservoir."""
        super().to(device)
        self._reservoir.to(device)

    def _due(self, progress: float) -> bool:
        thawed = not self.num_clusters or progress <= self.spec.freeze_fraction + _SLACK
        return thawed and progress >= self.next_refresh - _SLACK

    def _refresh(self, progress: float, shown_C: Tensor) -> None:
        points_RD, labels_R = self._reservoir.gather()
        offered_C = dist.all_reduce_sum_(self._offered_C)
        used = min(self.spec.num_attributes, len(points_RD))
        if not used:
            return  # nothing was seen yet; the clustering stays due
        self.prototypes_KD.zero_()
        self.mass_CK.zero_()
        self.num_clusters = used
        if dist.rank() == 0:
            gen = generator(self.seed, "prototypes")
            self._cluster(points_RD, used, gen)
            for vectors_nD, labels_n in zip(points_RD.split(CHUNK), labels_R.split(CHUNK), strict=True):
                size_n1 = lengths(vectors_nD[:, None], self.spec.metric)
                self._count_into(self.mass_CK, self._affinities(vectors_nD[:, None]), size_n1, labels_n)
        for found in (self.prototypes_KD, self.offsets_K, self.mass_CK):
            dist.broadcast_(found)
        sampled_C = torch.bincount(labels_R, minlength=len(shown_C))
        self.images_C.copy_(shown_C * (sampled_C / offered_C.clamp_min(1)))
        self.next_refresh = self._point_after(progress)

    def _cluster(self, points_RD: Tensor, used: int, gen: torch.Generator) -> None:
        metric, iterations = self.spec.metric, self.spec.iterations
        if metric != "whitened":
            fit = kmeans(points_RD, used, gen, iterations=iterations, spherical=metric == "cosine")
            self.prototypes_KD[:used] = fit.centers_KD
            return
        mean_D, matrix_DD = whitening(points_RD)
        white_RD = ((points_RD.double() - mean_D) @ matrix_DD).to(points_RD.dtype)
        fit = kmeans(white_RD, used, gen, iterations=iterations, spherical=False)
        self.prototypes_KD[:used], self.offsets_K[:used] = unwhitened(fit.centers_KD, mean_D, matrix_DD)

    def _move(self) -> None:
        """Moves each prototype towards the mean of the window's vectors that were nearest to it."""
        sum_KD, seen_K = dist.all_reduce_sum_(self._sum_KD), dist.all_reduce_sum_(self._seen_K)
        mean_KD = sum_KD / seen_K.clamp_min(1)[:, None]
        moved_KD = torch.lerp(self.prototypes_KD.double(), mean_KD, self.spec.online_rate)
        if self.spec.metric == "cosine":
            moved_KD = F.normalize(moved_KD, dim=1)
        moved_KD = moved_KD.to(self.prototypes_KD.dtype)
        self.prototypes_KD.copy_(torch.where(seen_K[:, None] > 0, moved_KD, self.prototypes_KD))

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
                self.images_C,
                neighbors=spec.neighbors,
                threshold=spec.threshold,
                shrink=spec.shrink,
                centering=spec.centering,
                similarity=spec.similarity,
            )
            self.neighbors_Ck.copy_(neighbors_Ck)
            self.weights_Ck.copy_(weights_Ck)

    def _sample(self, vectors_BPD: Tensor, size_BP: Tensor, batch: Batch) -> None:
        locations_1P = torch.arange(size_BP.shape[1], device=size_BP.device)[None]
        base = hash64(self.seed, "reservoir")
        keys_BP = hash_tensor(base, batch.index_B[:, None], batch.copy_B[:, None], locations_1P) & ((1 << 63) - 1)
        keys_BP = keys_BP.clamp_min(1) * (size_BP > MIN_NORM)  # the reservoir ignores key 0
        keys_BL, locations_BL = keys_BP.topk(min(self.spec.locations_per_image, keys_BP.shape[1]), dim=1)
        size_BL1 = size_BP.gather(1, locations_BL)[:, :, None].clamp_min(MIN_NORM)
        image_B1 = torch.arange(len(locations_BL), device=locations_BL.device)[:, None]
        vectors_BLD = vectors_BPD[image_B1, locations_BL] / size_BL1
        labels_n = batch.labels_B.repeat_interleave(keys_BL.shape[1])
        groups_n = labels_n if self.spec.reservoir == "class" else torch.zeros_like(labels_n)
        self._offered_C.index_add_(0, labels_n, (keys_BL.flatten() > 0).long())
        self._reservoir.add(keys_BL.flatten(), groups_n, labels_n, vectors_BLD.flatten(0, 1))

    def _vectors(self, out: ModelOutput) -> tuple[Tensor, Tensor]:
        """Returns local vectors [B, P, D] and their lengths [B, P]."""
        vectors_BPD = local_vectors(out, self.spec.from_layers, self.spec.scales)
        return vectors_BPD, lengths(vectors_BPD, self.spec.metric)

    def _affinities(self, vectors_BPD: Tensor) -> Tensor:
        used = self.num_clusters
        # Soft scores are rounded to whole units. In float32 the product of one row can differ from that row of a product
        # of many, depending on the processor, and near the middle between two units the batch size would then decide.
        if self.spec.score == "soft":
            vectors_BPD = vectors_BPD.double()
        dtype = vectors_BPD.dtype
        offsets_K = self.offsets_K[:used].to(dtype) if self.spec.metric == "whitened" else None
        return affinities(vectors_BPD, self.prototypes_KD[:used].to(dtype), self.spec.metric, offsets_K)

    def _scores(self, affinity_BPK: Tensor, size_BP: Tensor) -> Tensor:
        spec = self.spec
        return attribute_scores(affinity_BPK, size_BP, score=spec.score, score_temperature=spec.score_temperature)

    def _count_into(self, mass_CK: Tensor, affinity_BPK: Tensor, size_BP: Tensor, labels_B: Tensor) -> None:
        mass_CK[:, : self.num_clusters].index_add_(0, labels_B, self._scores(affinity_BPK, size_BP))

    def _add_to_nearest(self, affinity_BPK: Tensor, vectors_BPD: Tensor, size_BP: Tensor) -> None:
        live_BP = size_BP > MIN_NORM
        nearest_n = affinity_BPK.argmax(2)[live_BP]
        self._sum_KD.index_add_(0, nearest_n, (vectors_BPD[live_BP] / size_BP[live_BP][:, None]).double())
        self._seen_K.index_add_(0, nearest_n, torch.ones_like(nearest_n))
