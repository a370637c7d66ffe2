"""LPA: local pseudo-attributes. Classes that are made of the same parts become soft positives of each other.

The vectors of the last feature map are clustered; each class is described by how often its images show each cluster; a
supervised contrastive term pulls an image to its class and, with a bounded share, to the classes with a similar
description.

    L = mean_i -(sum_j M_ij log softmax_j(q_i . v_j / T)) / sum_j M_ij
    M_ij = (1 - rho) / |S_i| for j of the same class, rho w_{y_i y_j} / sum_j w for j of a neighbor class

Source: Local Pseudo-Attributes for Long-Tailed Recognition (2022), L_PaCo + alpha L_SupCon(z, a(y)). The paper leaves
layer, clustering, scores and positives open; what is here is our definition: spherical k-means on a class-balanced
reservoir, histograms per class, cosine of centered and shrunk histograms, k nearest classes. Every other reading that we know
of is an option.
Shapes: anchors q [B, d]; contrast set [queries; keys; queue] of the global batch, [2WB + Q, d], with
``views=1`` [queries; queue], [WB + Q, d].
Cost: 2B(2WB + Q)d for the loss (shared with PaCo), 2PKD per image to assign P locations to K prototypes; with
``positives='sample'`` the assignment once more in the loss, O(CK) to describe the classes and 2BCK to find the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from ltcore.batch import Batch, ModelOutput
from ltcore.errors import at_least, different, one_of, positive, within
from ltcore.objective.contrast import SPARED, ContrastSet, mean_over_valid, supcon
from ltcore.objective.dims import FeatureDims
from ltcore.objective.embedding import EMBEDDINGS, NEEDS, query_of
from ltcore.objective.interface import LossContext, Term, TermConfig
from ltcore.objective.memory.base import MemorySpec
from ltcore.objective.memory.queue import Queue, QueueSpec
from ltcore.objective.terms.lpa.attributes import CENTERINGS, SIMILARITIES, describe, mean_class, nearest_classes
from ltcore.objective.terms.lpa.codebook import METRICS, SCORES
from ltcore.objective.terms.lpa.local_features import FINAL, needs_of
from ltcore.objective.terms.lpa.prototypes import RESERVOIRS, Prototypes, PrototypesSpec
from ltcore.stats import ClassStats

POSITIVES = ("class", "sample")


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
        layers: tuple[str, ...] | None = None
        """Whose feature maps are clustered: 'final', the last one before pooling, and earlier stages ('stage1', 'stage2'; of
        ResNet-50 also 'stage3'). Several are put side by side, each at unit length, on the coarsest grid. null: the final
        one alone."""
        scales: tuple[int, ...] = (1,)
        """Sides of the windows, in locations of the map, whose mean vectors are clustered; 1 is every location. '1,2' adds all
        blocks of 2 x 2."""
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
        views: int = 2
        """Views of each image. With 2 the keys of this step are in the contrast set, as in PaCo; with 1 a base without keys
        spares the second view: the set is the queries and the queue, whose keys are of earlier images then."""
        shrink: float = 10.0
        """Images' worth of the mean class mixed into each class description (m0), against noise in small classes. >=
        0."""
        centering: str = "centered"
        """What is compared: 'centered' (minus the mean class), 'raw', or 'pmi' (log ratio to the mean class)."""
        similarity: str = "cosine"
        """How descriptions are compared: 'cosine', or 'jaccard': the attributes that both have over those that either has,
        which are the ones above 0 in ``centering`` (above the mean class, with 'centered' and 'pmi')."""
        score: str = "hard"
        """'hard' counts the nearest prototype of each location, 'soft' a softmax over prototypes, 'presence' 1 for each
        prototype that is nearest somewhere in the image."""
        score_temperature: float = 0.1
        """Temperature of the soft score, in units of the metric; no effect with the other scores. > 0."""
        metric: str = "cosine"
        """'cosine' clusters directions, 'euclid' the raw vectors, whose norm then counts, 'whitened' the raw vectors along
        their principal axes, scaled to equal variance."""
        positives: str = "class"
        """Whose description finds an anchor's neighbor classes: 'class', that of its class, or 'sample', that of its own image
        (its second view)."""
        spare_neighbors: bool = False
        """Whether base=paco leaves out neighbor classes from its negatives, which this term pulls and it would push."""
        embedding: str = "query"
        """What is contrasted: 'query', the projection that PaCo uses as well; 'own', a second projection of the same form;
        'pooled', the features that are classified, at unit length."""
        reservoir: str = "class"
        """Which vectors are clustered: 'class' keeps as many per class, 'instance' as they come, so that head classes
        own most prototypes."""
        reservoir_per_class: int = 128
        """Vectors kept per class for clustering, >= 1. Memory on each rank: C * reservoir_per_class * D * 4 bytes."""
        locations_per_image: int = 8
        """Vectors that one image may give to the reservoir, >= 1."""
        refresh_fraction: float = 0.05
        """Fraction of training between clusterings; 0 clusters once. Rounded up to whole virtual epochs: up to 20
        epochs that is after every one, and until ``freeze_fraction`` descriptions then come from the sampled vectors
        alone, never from all."""
        freeze_fraction: float = 0.6
        """Fraction of training after which prototypes stay; class descriptions go on being counted. In (start, 1]."""
        online_rate: float = 0.0
        """How far each prototype moves, at the end of every virtual epoch without a clustering up to ``freeze_fraction``,
        towards the mean of the vectors that were nearest to it. Range [0, 1]; 0: prototypes stay between clusterings."""
        iterations: int = 20
        """Most iterations of one k-means, >= 1."""

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(0, neighbors=self.neighbors, queue_size=self.queue_size, shrink=self.shrink)
            at_least(1, reservoir_per_class=self.reservoir_per_class, locations_per_image=self.locations_per_image)
            at_least(1, iterations=self.iterations)
            at_least(2, num_attributes=self.num_attributes)
            positive(temperature=self.temperature, score_temperature=self.score_temperature)
            within("[-1, 1)", "a cosine", threshold=self.threshold)
            within("[0, 1]", "a share", neighbor_mass=self.neighbor_mass, online_rate=self.online_rate)
            within("[0, 1]", "a fraction of training", refresh_fraction=self.refresh_fraction)
            within(f"({self.start}, 1]", "a fraction of training after start,", freeze_fraction=self.freeze_fraction)
            one_of((1, 2), views=self.views)
            different("names", layers=self.layers)
            different("sides", scales=self.scales)
            at_least(1, scales=min(self.scales))
            one_of(CENTERINGS, centering=self.centering)
            one_of(SIMILARITIES, similarity=self.similarity)
            one_of(SCORES, score=self.score)
            one_of(METRICS, metric=self.metric)
            one_of(POSITIVES, positives=self.positives)
            one_of(EMBEDDINGS, embedding=self.embedding)
            one_of(RESERVOIRS, reservoir=self.reservoir)
            if self.online_rate and self.metric == "whitened":
                raise ValueError(
                    "online_rate must be 0 with metric='whitened', whose axes are those of one clustering, "
                    f"got {self.online_rate}"
                )

    cfg: Config

    @staticmethod
    def views(cfg: Config) -> int:
        """As configured."""
        return cfg.views

    def __init__(self, cfg: Config, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__(cfg, stats, dims)
        self.needs = frozenset({"key"}) | needs_of(cfg.layers or (FINAL,)) | NEEDS[cfg.embedding]
        self.counts_C: Tensor
        self.register_buffer("counts_C", stats.counts_C.clone(), persistent=False)

    @staticmethod
    def gathers(cfg: Config) -> bool:
        """The contrast set is the global batch."""
        return True

    def memories(self) -> dict[str, MemorySpec]:
        """Prototypes with the class descriptions, and the queue of keys, which is PaCo's where size and embedding agree."""
        specs: dict[str, MemorySpec] = {
            "prototypes": PrototypesSpec(**{f.name: getattr(self.cfg, f.name) for f in fields(PrototypesSpec)})
        }
        if self.cfg.queue_size:
            specs["queue"] = QueueSpec(self.cfg.queue_size, self.cfg.embedding)
        return specs

    def before_base(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> None:
        """Says which elements of a contrast set are of neighbor classes, where the base is to spare them."""
        if self.cfg.spare_neighbors and cast(Prototypes, ctx.memories["prototypes"]).num_clusters:
            by_class_BC = self._neighbor_classes(out, batch, ctx)
            ctx.shared[SPARED] = lambda labels_A: of_neighbors(labels_A, by_class_BC) > 0

    def forward(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """Scalar, this rank's share of the mean over the anchors that have a positive; 0 before the first clustering. A
        collective. Logs 'class_cosine' and 'neighbor_cosine', of an anchor and its positives of its class and of the
        neighbor classes: where the second comes near the first, classes that share parts are no longer told apart."""
        cfg = self.cfg
        if not cast(Prototypes, ctx.memories["prototypes"]).num_clusters:  # no class has a description yet
            return query_of(out, cfg.embedding).sum() * 0.0
        queue = cast("Queue | None", ctx.memories.get("queue"))
        contrast = ContrastSet.of(out, batch.labels_B, ctx, queue, cfg.embedding, keys=cfg.views == 2)
        near_BA = of_neighbors(contrast.labels_A, self._neighbor_classes(out, batch, ctx))
        positives = Positives.of(contrast, batch.labels_B, near_BA)
        loss_B, valid_B = supcon(
            contrast.cosine_BA, positives.weights(cfg.neighbor_mass), contrast.excluded_BA, cfg.temperature
        )
        cosine_BA = contrast.cosine_BA.detach()
        for kind, share_BA, has_B in [
            ("class", positives.same_BA, positives.has_same_B),
            ("neighbor", positives.near_BA, positives.has_near_B),
        ]:
            ctx.logged[f"{kind}_cosine"] = mean_over_valid(torch.linalg.vecdot(share_BA, cosine_BA), has_B)
        return mean_over_valid(loss_B, valid_B)

    def _neighbor_classes(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """float32 [B, C] similarity above the threshold of each anchor to its neighbor classes, 0 to others. Once per forward."""

        def compute() -> Tensor:
            prototypes = cast(Prototypes, ctx.memories["prototypes"])
            if self.cfg.positives == "class":
                ids_Bk, similar_Bk = prototypes.neighbors_Ck[batch.labels_B], prototypes.weights_Ck[batch.labels_B]
            else:
                ids_Bk, similar_Bk = self._of_images(out, batch.labels_B, prototypes)
            by_class_BC = similar_Bk.new_zeros(len(batch), len(self.counts_C), dtype=torch.float32)
            return by_class_BC.scatter_(1, ids_Bk, similar_Bk.float())

        by_class_BC: Tensor = ctx.once("neighbor classes", compute)
        return by_class_BC

    @torch.no_grad()
    def _of_images(self, out: ModelOutput, labels_B: Tensor, prototypes: Prototypes) -> tuple[Tensor, Tensor]:
        """As ``nearest_classes``, for the image of each anchor."""
        cfg, mass_CK = self.cfg, prototypes.mass_CK[:, : prototypes.num_clusters]
        mean_K = mean_class(mass_CK)
        vectors_CK, vectors_BK = (
            describe(mass, images, mean_K, shrink=cfg.shrink, centering=cfg.centering)
            for mass, images in [(mass_CK, self.counts_C), (prototypes.scores(out), torch.ones_like(labels_B))]
        )
        return nearest_classes(
            vectors_BK,
            labels_B,
            vectors_CK,
            neighbors=cfg.neighbors,
            threshold=cfg.threshold,
            similarity=cfg.similarity,
        )


def of_neighbors(labels_A: Tensor, by_class_BC: Tensor) -> Tensor:
    """[B, A] the column of each element's class; of no meaning for unfilled queue slots, which have label -1."""
    return by_class_BC[:, labels_A.clamp_min(0)]


@dataclass(frozen=True)
class Positives:
    """What pulls each anchor: elements of its class, all alike, and those of neighbor classes, by similarity."""

    same_BA: Tensor
    """Shares of the elements of the anchor's class. Each row sums to 1, or to 0 where there are none; so below."""
    near_BA: Tensor
    """Shares of the elements of neighbor classes."""
    has_same_B: Tensor
    """bool, whether the row has any; so below."""
    has_near_B: Tensor

    @classmethod
    def of(cls, contrast: ContrastSet, labels_B: Tensor, near_BA: Tensor) -> Positives:
        """``near_BA`` are similarities >= 0 of the elements' classes, 0 for those that are no neighbors."""
        dtype = contrast.cosine_BA.dtype
        same_BA = ((labels_B[:, None] == contrast.labels_A) & ~contrast.excluded_BA).to(dtype)
        near_BA = near_BA.to(dtype).masked_fill(contrast.excluded_BA, 0)
        num_same_B1, sum_near_B1 = same_BA.sum(1, keepdim=True), near_BA.sum(1, keepdim=True)
        return cls(
            same_BA / num_same_B1.clamp_min(1),
            near_BA / sum_near_B1.masked_fill(sum_near_B1 == 0, 1),
            (num_same_B1 > 0)[:, 0],
            (sum_near_B1 > 0)[:, 0],
        )

    def weights(self, neighbor_mass: float) -> Tensor:
        """[B, A] weights M, each row summing to 1 where it has a positive.

        Neighbor classes get ``neighbor_mass``; where either set is empty the other takes all (but without neighbor mass
        there are no neighbors).
        """
        mass_B = torch.where(self.has_same_B, neighbor_mass, float(neighbor_mass > 0)).masked_fill(~self.has_near_B, 0)
        return self.same_BA.lerp(self.near_BA, mass_B.to(self.same_BA.dtype)[:, None])
