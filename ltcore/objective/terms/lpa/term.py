"""LPA, local pseudo-attributes: classes that consist of the same parts become soft positives of each other.

The vectors of the last feature map are clustered, and each class is described by how often its images show each
cluster. A supervised contrastive term pulls an image to its class and, with a bounded share, to the classes with a
similar description.

    L = mean_i -sum_j M_ij log softmax_j(q_i . v_j / T)
    M_ij = (1 - rho_i) / |S_i| for j of the same class, rho_i w_{y_i y_j} / sum_j w for j of a neighbor class,
    rho_i = rho max_j w_{y_i y_j}

An anchor without an element of its own class keeps its neighbors' rho_i alone, so that weak relatives pull weakly.

Source: Local Pseudo-Attributes for Long-Tailed Recognition (2022), L_PaCo + alpha L_SupCon(z, a(y)). The paper leaves
layer, clustering, scores and positives open. The defaults here are our definition: spherical k-means on a
class-balanced reservoir, histograms per class, cosine of centered histograms, k nearest classes above what unrelated
classes have in common by chance. Every other reading known to us is an option.
Control: ``neighbor_mass=0``, supervised contrast without attributes. We have not seen attributes add to it: on the embedded
digits, whose classes share colors rather than parts, rows with and without neighbors differ by less than seeds do. On
CIFAR-100-LT (ResNet-8, 5 epochs) half of the classes find neighbors, and a third of their weight is within the superclass,
where chance is 4%; fine-tuned there, and trained on CIFAR-100-GLT, the rows cannot be told apart either.
Shapes: anchors q [B, d]; contrast set [queries; keys; queue] of the global batch, [2WB + Q, d], with ``views=1``
[queries; queue], [WB + Q, d].
Cost: 2B(2WB + Q)d for the loss, with d of the pooled features unless ``embedding`` is PaCo's, which then shares it; 2PKD
per image to assign P locations to K prototypes. With ``positives='sample'`` the loss assigns once more, and needs O(CK) to
describe the classes and 2BCK to find the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from ltcore.batch import Batch, ModelOutput
from ltcore.errors import at_least, different, one_of, positive, within
from ltcore.objective.contrast import ContrastSet, mean_over_valid, supcon
from ltcore.objective.dims import FeatureDims
from ltcore.objective.embedding import EMBEDDINGS, NEEDS, POOLED, query_of
from ltcore.objective.interface import LossContext, Term, TermConfig
from ltcore.objective.memory.base import MemorySpec
from ltcore.objective.memory.queue import Queue, QueueSpec
from ltcore.objective.terms.lpa.attributes import (
    CENTERINGS,
    SIMILARITIES,
    chance_deviations,
    describe,
    mean_class,
    nearest_classes,
)
from ltcore.objective.terms.lpa.codebook import METRICS, SCORES
from ltcore.objective.terms.lpa.local_features import FINAL, needs_of
from ltcore.objective.terms.lpa.prototypes import RESERVOIRS, Prototypes, PrototypesSpec
from ltcore.stats import ClassStats

POSITIVES = ("class", "sample")


class Lpa(Term):
    """Contrastive term with neighbor classes, active from the first clustering on.

    The first clustering takes place at the first merge (end of a virtual epoch) at or after ``start``.
    """

    needs = frozenset({"fmap", "query", "key"})

    @dataclass(frozen=True, kw_only=True)
    class Config(TermConfig):
        weight: float = 0.3
        """Factor of the penalty (the paper's alpha), useful range 0.1 to 3. At 0.3 its gradient is 0.2 to 0.6 of balanced
        softmax's, and 0.1 of PaCo's, which is contrastive itself."""
        start: float = 0.1
        """Fraction of training of the first clustering, before which the term contributes nothing. Range [0, 1)."""
        layers: tuple[str, ...] | None = None
        """Layers whose feature maps are clustered: 'final', the last one before pooling, and earlier stages ('stage1',
        'stage2'; of ResNet-50 also 'stage3'). Several are concatenated, each at unit length, on the coarsest grid.
        null: only the final one.
        """
        scales: tuple[int, ...] = (1,)
        """Sides of the windows, in locations of the map, whose mean vectors are clustered. 1 is every location; '1,2'
        adds all blocks of 2 x 2.
        """
        num_attributes: int = 128
        """Number of k-means prototypes, >= 2; about C/2 to C. Fewer are made where the reservoir holds fewer vectors.
        """
        neighbors: int = 5
        """Largest number of neighbor classes of a class, >= 0."""
        threshold: float | None = None
        """Similarity that a neighbor must exceed. Range [-1, 1). null: for each class the level that the largest similarity
        of as many unrelated classes would reach with a probability of 5% (``attributes.chance_level``).
        """
        neighbor_mass: float = 0.3
        """Largest share of an anchor's positive weight that goes to neighbor classes (rho), reached by one that is just the
        same. Range [0, 1]. 0 is plain supervised contrast; above 0.5 a class can be pulled more to others than to itself.
        """
        temperature: float = 0.05
        """Divides cosines. > 0."""
        queue_size: int = 1024
        """Keys of earlier steps in the contrast set; 0 is none. PaCo uses the same queue where size and ``embedding``
        agree."""
        views: int = 2
        """Views of each image. With 2 the keys of this step are in the contrast set, as in PaCo. With 1, and a base
        without keys, no second view is computed: the set is the queries and the queue, whose keys are then of earlier
        images.
        """
        shrink: float = 10.0
        """Weight of the mean class in each class description (m0), in images that were counted, against noise in small
        classes. Range >= 0. No effect with centering='centered': it shortens the difference to the mean class, and neither
        the cosine nor the signs depend on the length. There the threshold keeps out noise.
        """
        centering: str = "centered"
        """Form of the descriptions that are compared: 'centered' (minus the mean class), 'raw', or 'pmi' (log ratio to
        the mean class).
        """
        similarity: str = "cosine"
        """How descriptions are compared: 'cosine', or 'jaccard': the attributes that both have over those that either
        has, which are the ones above 0 in ``centering`` (above the mean class, with 'centered' and 'pmi').
        """
        score: str = "hard"
        """'hard' counts the nearest prototype of each location, 'soft' a softmax over prototypes, 'presence' 1 for each
        prototype that is nearest somewhere in the image; a clustering counts single vectors of images, so there it counts
        as 'hard' does."""
        score_temperature: float = 0.1
        """Temperature of the soft score, in units of the metric, > 0. No effect with the other scores."""
        metric: str = "cosine"
        """'cosine' clusters directions, 'euclid' the raw vectors, including their norms, 'whitened' the raw vectors
        along their principal axes, scaled to equal variance.
        """
        positives: str = "class"
        """Description that determines an anchor's neighbor classes: 'class', that of its class, or 'sample', that of
        its own image (its second view).
        """
        spare_neighbors: bool = False
        """Leave neighbor classes out of the negatives of base=paco, which would push away what this term pulls."""
        embedding: str = "pooled"
        """Vectors that are contrasted: 'pooled', the features that are classified, at unit length, which is the paper's z;
        'query', the projection that PaCo uses as well; 'own', a second projection of the same form.
        """
        reservoir: str = "class"
        """Vectors that are clustered: 'class' keeps equally many per class, 'instance' keeps them as they come, so that
        head classes own most prototypes.
        """
        reservoir_per_class: int = 128
        """Vectors kept per class for clustering, >= 1. Memory on each rank: C * reservoir_per_class * D * 4 bytes."""
        locations_per_image: int = 8
        """Vectors that one image may give to the reservoir, >= 1."""
        refresh_fraction: float = 0.05
        """Fraction of training between clusterings; 0 clusters once. Rounded up to whole virtual epochs: with up to 20
        epochs a clustering follows every one, and until ``freeze_fraction`` descriptions then come from the sampled
        vectors only, never from all.
        """
        freeze_fraction: float = 0.6
        """Fraction of training after which prototypes stay fixed; class descriptions continue to be counted. Range
        (start, 1].
        """
        online_rate: float = 0.0
        """How far each prototype moves towards the mean of the vectors nearest to it, at the end of every virtual epoch
        without a clustering up to ``freeze_fraction``. Range [0, 1]; 0: prototypes stay fixed between clusterings.
        """
        iterations: int = 20
        """Largest number of iterations of one k-means, >= 1."""

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
    deviations_n: Tensor

    @staticmethod
    def views(cfg: Config) -> int:
        """Returns the configured number of views."""
        return cfg.views

    def __init__(self, cfg: Config, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__(cfg, stats, dims)
        self.reads = frozenset({"index", "features"} if cfg.embedding == POOLED else {"index"})
        self.needs = frozenset({"key"}) | needs_of(cfg.layers or (FINAL,)) | NEEDS[cfg.embedding]
        if cfg.threshold is None and cfg.positives == "sample":  # else no step needs them
            self.register_buffer("deviations_n", chance_deviations(stats.num_classes), persistent=False)

    @staticmethod
    def gathers(cfg: Config) -> bool:
        """Returns True, since the contrast set is the global batch."""
        return True

    def memories(self) -> dict[str, MemorySpec]:
        """Returns the prototypes with the class descriptions, and the queue of keys.

        PaCo uses the same queue where size and embedding agree.
        """
        specs: dict[str, MemorySpec] = {"prototypes": prototypes_spec(self.cfg)}
        if self.cfg.queue_size:
            specs["queue"] = QueueSpec(self.cfg.queue_size, self.cfg.embedding)
        return specs

    def before_base(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> None:
        """Tells the base which contrast elements to spare because they belong to neighbor classes."""
        if self.cfg.spare_neighbors and cast(Prototypes, ctx.memories["prototypes"]).num_clusters:
            by_class_BC = self._neighbor_classes(out, batch, ctx)
            ctx.shared.spared = lambda labels_A: of_neighbors(labels_A, by_class_BC) > 0

    def forward(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """Returns this rank's share of the mean over the anchors with a positive, a scalar.

        0 before the first clustering. A collective. Logs means over the anchors: 'neighbor_mass', the share of the pull
        that goes to neighbor classes, and 'neighbors', how many an anchor has; 'class_cosine' and 'neighbor_cosine', the
        mean cosines of an anchor with its positives of the own class and of neighbor classes. Where the second
        approaches the first, classes that share parts are no longer told apart.
        """
        cfg = self.cfg
        if not cast(Prototypes, ctx.memories["prototypes"]).num_clusters:  # no class has a description yet
            return query_of(out, cfg.embedding).sum() * 0.0
        queue = cast("Queue | None", ctx.memories.get("queue"))
        contrast = ContrastSet.of(out, batch.labels_B, ctx, queue, cfg.embedding, keys=cfg.views == 2)
        near_BA = of_neighbors(contrast.labels_A, self._neighbor_classes(out, batch, ctx))
        positives = Positives.of(contrast, batch.labels_B, near_BA)
        weights_BA = positives.weights(cfg.neighbor_mass)
        loss_B, valid_B = supcon(contrast.cosine_BA, weights_BA, contrast.excluded_BA, cfg.temperature)
        loss_B = loss_B * weights_BA.sum(1)  # without an element of the own class, weak relatives pull weakly
        cosine_BA = contrast.cosine_BA.detach()
        ctx.logged["neighbor_mass"] = (cfg.neighbor_mass * positives.closest_B).mean()
        ctx.logged["neighbors"] = (self._neighbor_classes(out, batch, ctx) > 0).sum(1).to(loss_B.dtype).mean()
        for kind, share_BA, has_B in [
            ("class", positives.same_BA, positives.has_same_B),
            ("neighbor", positives.near_BA, positives.has_near_B),
        ]:
            ctx.logged[f"{kind}_cosine"] = mean_over_valid(torch.linalg.vecdot(share_BA, cosine_BA), has_B)
        return mean_over_valid(loss_B, valid_B)

    def _neighbor_classes(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """Returns float32 [B, C], each anchor's similarity above the threshold to its neighbor classes, 0 elsewhere.

        Computed once per forward.
        """

        def compute() -> Tensor:
            prototypes = cast(Prototypes, ctx.memories["prototypes"])
            if self.cfg.positives == "class":
                ids_Bk, similar_Bk = prototypes.neighbors_Ck[batch.labels_B], prototypes.weights_Ck[batch.labels_B]
            else:
                ids_Bk, similar_Bk = self._of_images(out, batch.labels_B, prototypes)
            by_class_BC = similar_Bk.new_zeros(len(batch), ctx.stats.num_classes, dtype=torch.float32)
            return by_class_BC.scatter_(1, ids_Bk, similar_Bk.float())

        by_class_BC: Tensor = ctx.once("neighbor classes", compute)
        return by_class_BC

    @torch.no_grad()
    def _of_images(self, out: ModelOutput, labels_B: Tensor, prototypes: Prototypes) -> tuple[Tensor, Tensor]:
        """Returns ``nearest_classes`` of the image of each anchor."""
        cfg, mass_CK = self.cfg, prototypes.mass_CK[:, : prototypes.num_clusters]
        mean_K = mean_class(mass_CK)
        vectors_CK, vectors_BK = (
            describe(mass, images, mean_K, shrink=cfg.shrink, centering=cfg.centering)
            for mass, images in [(mass_CK, prototypes.images_C), (prototypes.scores(out), torch.ones_like(labels_B))]
        )
        return nearest_classes(
            vectors_BK,
            labels_B,
            vectors_CK,
            neighbors=cfg.neighbors,
            threshold=self.deviations_n if cfg.threshold is None else cfg.threshold,
            similarity=cfg.similarity,
        )


def prototypes_spec(cfg: Lpa.Config) -> PrototypesSpec:
    """Returns the description of the prototypes that the term remembers."""
    return PrototypesSpec(**{f.name: getattr(cfg, f.name) for f in fields(PrototypesSpec)})


def of_neighbors(labels_A: Tensor, by_class_BC: Tensor) -> Tensor:
    """Returns [B, A], the column of each element's class.

    Values are meaningless for unfilled queue slots, which have label -1.
    """
    return by_class_BC[:, labels_A.clamp_min(0)]


@dataclass(frozen=True)
class Positives:
    """Weights by which elements pull each anchor: equal ones in its class, by similarity in neighbor classes."""

    same_BA: Tensor
    """Shares of the elements of the anchor's class. Each row sums to 1, or to 0 where there are none."""
    near_BA: Tensor
    """Shares of the elements of neighbor classes, with the same row sums."""
    has_same_B: Tensor
    """bool, whether ``same_BA`` has any in this row."""
    has_near_B: Tensor
    """bool, whether ``near_BA`` has any in this row."""
    closest_B: Tensor
    """Largest similarity of an element of a neighbor class, in [0, 1]; 0 where there are none."""

    @classmethod
    def of(cls, contrast: ContrastSet, labels_B: Tensor, near_BA: Tensor) -> Positives:
        """Returns the positives of a contrast set.

        ``near_BA`` are similarities >= 0 of the elements' classes, 0 for classes that are not neighbors.
        """
        dtype = contrast.cosine_BA.dtype
        same_BA = ((labels_B[:, None] == contrast.labels_A) & ~contrast.excluded_BA).to(dtype)
        near_BA = near_BA.to(dtype).masked_fill(contrast.excluded_BA, 0)
        num_same_B1, sum_near_B1 = same_BA.sum(1, keepdim=True), near_BA.sum(1, keepdim=True)
        return cls(
            same_BA / num_same_B1.clamp_min(1),
            near_BA / sum_near_B1.masked_fill(sum_near_B1 == 0, 1),
            (num_same_B1 > 0)[:, 0],
            (sum_near_B1 > 0)[:, 0],
            near_BA.amax(1),
        )

    def weights(self, neighbor_mass: float) -> Tensor:
        """Returns weights M [B, A].

        Neighbor classes get ``neighbor_mass`` times the similarity of the closest, the own class the rest. An anchor
        without an element of its class has the neighbors' mass only.
        """
        mass_B1 = (neighbor_mass * self.closest_B)[:, None]
        return (1 - mass_B1) * self.same_BA + mass_B1 * self.near_BA
