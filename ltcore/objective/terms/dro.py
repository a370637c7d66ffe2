"""DRO-LT: per class, a softmax over the SAMPLES of the batch by their distance to the class centroid.

The loss is robust to an error of the centroid of up to a radius.

Source: Samuel and Chechik, "Distributional robustness loss for long-tail learning", ICCV 2021. For class c with
centroid mu_c and samples S_c, with d' = d + slack * eps_c for the samples of class c and d' = d = ||z - mu_c|| for the
others,

    L_c = mean_{i in S_c} [ d'_i / T + log sum_j exp(-d'_j / T) ],     L = mean over the classes present.

The paper says that the loss may act at several layers of the network. With ``layers``, L is the mean over them, each
with its own centroids, radii and distances (pooled features of a stage), so that ``weight`` keeps its meaning.

``denominator='class'`` is that form, the one of the authors' code. ``'anchor'`` adds the slack to the anchor only,
which with slack 2 is the provable upper bound on the worst centroid within the radius (the class form is not:
one-dimensional S_c = {-1, 1} and no other sample is a counterexample).

Differs: log-sum-exp instead of a sum of exponentials that underflows; the softmax runs over the global batch, so the
value does not depend on the number of ranks; centroids come from the training forward of the last virtual epoch; radii
are indexed by the class they belong to. The authors learn the radii by gradient descent, which has the wrong sign
(dL/deps >= 0 drives them to minus infinity), and pair them with samples in class-sorted order instead of batch order;
``radius_mode='learned_compat'`` reproduces both, for parity only. The minimum of L_c is log |S_c| with
``denominator='class'`` and above it with 'anchor', not 0, and L depends on the batch size: keep the global batch fixed when
comparing.
Shapes: features [B, D], centroids [C, D] -> scalar. G = global batch.
Cost: per layer one [B, G] matrix of squared distances, 2 B G D flops, as a float64 matrix product: exact near zero
distance, never rounded to TF32, and without a [B, G, D] tensor. From the square roots on, values have the features'
type, float32 at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.errors import at_least, different, one_of, positive
from ltcore.objective.dims import FeatureDims, widened
from ltcore.objective.interface import LossContext, Term, TermConfig
from ltcore.objective.memory.base import MemorySpec
from ltcore.objective.memory.centroids import ClassCentroids, features_at
from ltcore.stats import ClassStats

RADIUS_MODES = ("sqrt_n", "se", "shared", "learned_compat")
DENOMINATORS = ("class", "anchor")
FINAL = "final"


class Dro(Term):
    """Robust distance to the published class centroids; 0 until there are any."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TermConfig):
        weight: float = 0.5
        """Factor of the penalty in the objective. 0 is off. The authors' code adds it with factor 1; so does the
        paper's (1 - lambda) L_DRO + lambda L_CE at lambda = 0.5, at half the learning rate. The default of 0.5 is our
        choice for one-stage training without frozen parts.
        """
        start: float = 0.2
        """Fraction of training before which the term contributes nothing. Range [0, 1)."""
        radius: float = 1.0
        """Size of the uncertainty about a centroid, >= 0; its unit depends on ``radius_mode``. 0: plain distances."""
        radius_mode: str = "sqrt_n"
        """Radius eps_c of a class: 'sqrt_n' is radius * sigma / sqrt(n_c) with the pooled within-class deviation sigma;
        'se' the same with the deviation of the class itself; 'shared' is radius, in feature units; 'learned_compat' the
        authors' learned radii, initialized with radius, of each of ``layers`` its own.
        """
        temperature: float = 1.0
        """T, in feature units like the distance. > 0."""
        denominator: str = "class"
        """Samples that get the slack in the denominator: all samples of the class ('class') or only the anchor
        ('anchor').
        """
        slack: int = 1
        """Multiple of eps_c: 1 as in the authors' code, 2 as in the paper's bound."""
        layers: tuple[str, ...] | None = None
        """Layers at which the loss acts: 'final', the features that are classified, and earlier stages of the network
        ('stage1', 'stage2'; of ResNet-50 also 'stage3') by their pooled features. The penalty is the mean over them;
        ``radius`` and ``temperature`` apply to all. null: only the final features, as in the authors' code.
        """

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(0, radius=self.radius)
            positive(temperature=self.temperature)
            one_of(RADIUS_MODES, radius_mode=self.radius_mode)
            one_of(DENOMINATORS, denominator=self.denominator)
            one_of((1, 2), slack=self.slack)
            different("names", layers=self.layers)

    def __init__(self, cfg: Config, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__(cfg, stats, dims)
        self._stages = [None if layer == FINAL else layer for layer in cfg.layers or (FINAL,)]
        self.needs = frozenset(stage for stage in self._stages if stage is not None)
        self.reads = frozenset({"features"} if None in self._stages else ())
        self.counts_C: Tensor
        self.register_buffer("counts_C", stats.counts_C.double().clamp_min(1), persistent=False)
        if cfg.radius_mode == "learned_compat":
            # one-dimensional each, as what is exempt from weight decay
            self.learned_eps_C = nn.ParameterList(torch.full((stats.num_classes,), cfg.radius) for _ in self._stages)

    @staticmethod
    def gathers(cfg: Config) -> bool:
        """Returns True, since the softmax of a class runs over the global batch."""
        return True

    def memories(self) -> dict[str, MemorySpec]:
        """Returns the centroids of each layer; those of the final features are shared with IFL."""
        return {_memory(stage): ClassCentroids.Spec(stage) for stage in self._stages}

    def forward(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """Returns this rank's share of the mean over layers and classes, a scalar.

        The classes are those of the global batch that have a centroid. Logs 'excess', the difference to the minimum of
        the loss: the mean over those classes of log |S_c|, with ``denominator='anchor'`` of
        log(1 + (|S_c| - 1) exp(slack eps_c / T)).
        """
        labels_G = dist.gather(batch.labels_B)
        found = [
            self._at_layer(
                features_at(out, stage), batch, labels_G, cast(ClassCentroids, ctx.memories[_memory(stage)]), layer
            )
            for layer, stage in enumerate(self._stages)
        ]
        losses, floors = zip(*found, strict=True)
        loss = sum(losses[1:], losses[0]) / len(losses)
        ctx.logged["excess"] = loss.detach() - sum(floors[1:], floors[0]) / len(floors)
        return loss

    def _at_layer(
        self, features_BD: Tensor, batch: Batch, labels_G: Tensor, centroids: ClassCentroids, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Returns loss and minimum of the loss at one layer, both scalars."""
        features_GD = dist.gather_with_grad(features_BD)
        first = dist.rank() * len(batch)
        own_B = torch.arange(first, first + len(batch), device=labels_G.device)

        same_BG = batch.labels_B[:, None] == labels_G
        slackened_BG = same_BG
        if self.cfg.denominator == "anchor":
            slackened_BG = own_B[:, None] == torch.arange(len(labels_G), device=labels_G.device)
        distance_BG = _Distances.apply(centroids.mean_CD[batch.labels_B], features_GD, widened(features_BD).dtype)
        slack_G = self._slack(centroids, layer)[self._radius_labels(labels_G)].to(distance_BG.dtype)
        nearness_BG = (distance_BG + slackened_BG * slack_G) * (-1 / self.cfg.temperature)
        loss_B = F.cross_entropy(nearness_BG, own_B, reduction="none")

        # All classes weigh the same: the shares 1 / |S_c| of the samples sum to the number of classes counted.
        size_B = same_BG.sum(1)
        share_B = (centroids.count_C > 0)[batch.labels_B] / size_B.to(loss_B.dtype)
        share_B *= dist.world() / dist.all_reduce_sum_(share_B.sum()).clamp_min(1)
        if self.cfg.denominator == "anchor":
            least_B = F.softplus((size_B - 1).to(loss_B.dtype).log() + slack_G[own_B].detach() / self.cfg.temperature)
        else:
            least_B = size_B.log()
        return (share_B * loss_B).sum(), (share_B * least_B).sum()

    def _slack(self, centroids: ClassCentroids, layer: int) -> Tensor:
        """Returns slack * eps per class [C], float64, in feature units."""
        mode, factor = self.cfg.radius_mode, self.cfg.slack * self.cfg.radius
        if mode == "learned_compat":
            return self.cfg.slack * self.learned_eps_C[layer].double()
        if mode == "shared":
            return torch.full_like(self.counts_C, factor)
        pooled = centroids.pooled_var
        # The spread of a class is unknown below two observations.
        var_C = torch.where(centroids.count_C > 1, centroids.var_C, pooled) if mode == "se" else pooled
        return factor * (var_C / self.counts_C).sqrt()

    def _radius_labels(self, labels_G: Tensor) -> Tensor:
        """Returns [G] the class whose radius each sample gets: its own, except in the compat mode."""
        if self.cfg.radius_mode != "learned_compat":
            return labels_G
        # The authors' code lists the samples sorted by class and subtracts eps[labels in batch order] from that list.
        place_G = torch.empty_like(labels_G)
        place_G[labels_G.argsort(stable=True)] = torch.arange(len(labels_G), device=labels_G.device)
        return labels_G[place_G]


def _memory(stage: str | None) -> str:
    return "centroids" if stage is None else f"{stage}_centroids"


class _Distances(torch.autograd.Function):
    """Euclidean distances [B, G] of features to fixed centers, differentiable at 0.

    Squared distances are computed in float64 and then converted to ``dtype``. The backward pass is written out because
    it keeps a single matrix, (z - mu) / d, where autograd keeps five.
    """

    @staticmethod
    def forward(ctx: Any, centers_BD: Tensor, features_GD: Tensor, dtype: torch.dtype) -> Tensor:
        wide_GD = features_GD.double()
        norms_BG = centers_BD.square().sum(1)[:, None] + wide_GD.square().sum(1)
        squares_BG = torch.addmm(norms_BG, centers_BD, wide_GD.T, alpha=-2).to(dtype)
        distance_BG = squares_BG.relu_().add_(1e-12).sqrt_()  # rounding may leave values just below 0
        ctx.save_for_backward(centers_BD, features_GD, distance_BG)
        return distance_BG

    @staticmethod
    def backward(ctx: Any, grad_BG: Tensor) -> tuple[None, Tensor, None]:
        centers_BD, features_GD, distance_BG = ctx.saved_tensors
        weight_BG = (grad_BG / distance_BG).double()
        grad_GD = torch.addmm(features_GD * weight_BG.sum(0)[:, None], weight_BG.T, centers_BD, alpha=-1)
        return None, grad_GD.to(features_GD.dtype), None
