"""IFL: features that are invariant across environments, which are found from the model's own predictions.

Source: Tang et al., "Invariant feature learning for generalized long-tailed classification", ECCV 2022. The base loss
and a center loss with ONE center per class are averaged over E environments. Environment 1 is the unweighted data; the
others favor samples that are badly predicted within their class (rare attributes). Other ways to find them are in
``ltcore.objective.terms.ifl.environments``.

    L = mean_i q_i N [ base_i + weight * center_weight * center_i ],   q_i N = mean over e of the weight of i in
    environment e, whose mean over the training split is 1

An image mixed of i and j with shares lam and 1 - lam (mixup) has the weight q_i N q_j N, as the authors mix any two
images of the environments' joint batch, and is pulled to both centers:

    q_i N q_j N [ base_ij + weight * center_weight * (lam d(z_ij, c_i) + (1 - lam) d(z_ij, c_j)) ],
    base_ij = lam base(s_ij, y_i) + (1 - lam) base(s_ij, y_j)

This keeps the target of a mixed image at lam : 1 - lam, whereas one weight per label would shift it to rare classes. A
product of weights varies more than a single weight, so gradients are noisier: ``train.optim.clip_norm`` helps. The
score of i is then that of its own class in the mixed image, as in the authors' code, and noisy as well.

Differs: the environments are loss weights instead of E loaders that sample with replacement. The expected gradient is
the same. The batch statistics of BN are not, except with ``env_mode='repeat'`` (keyed repetition,
``ltcore.data.loading.sampler.drawn_copies``). An epoch shows the same number of images for any E, so runs with
different E have equal budgets, and the prior of the re-weighted stream is known (``class_shares``), which the authors'
balanced softmax ignores. Centers are the class means of the last virtual epoch, not parameters that stay random until
the pull begins. The l2 pull is the mean over D, so its weight does not depend on the width of the network: the authors'
.001 and .005 on the sum over D = 2048 are 2.048 and 10.24 here. IRMv1 is the scalar penalty per environment; the
authors' ``irm_dual`` is a vector, an absolute value, and pooled.
Controls, by which to tell what helps: ``num_envs=1`` is a plain center loss on the unweighted data; ``tail_ratio=1`` has
the same environments balanced by class and nothing else, as the scores then have no effect. 2 to 4 environments are
further points between the data and ``tail_ratio``. Where the data name an attribute of each image, ``attribute_auc``
measures whether the weights find the rare ones.
Off: one environment, and center and IRM weight 0.
Shapes: features [B, D], logits [B, C] -> sample weights [B] and a scalar penalty.
Cost: 3 B D for the center loss; scores are taken from logits that exist anyway.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.errors import at_least, one_of, positive, within
from ltcore.objective.dims import FeatureDims, widened
from ltcore.objective.interface import LossContext, Term, TermConfig
from ltcore.objective.memory.base import Memory, MemorySpec
from ltcore.objective.memory.centroids import ClassCentroids
from ltcore.objective.terms.ifl.attribute_auc import attribute_auc
from ltcore.objective.terms.ifl.environments import ENV_TYPES, SCALINGS
from ltcore.objective.terms.ifl.scores import ScoreTable
from ltcore.stats import ClassStats

ENV_MODES = ("weight", "repeat")
CENTERS = ("l2", "cosine", "triplet")
_MARGIN = 1.0  # of the triplet form, as in the authors' code


class Ifl(Term):
    """Environment weights on the base loss, plus a pull to class centers under the same weights."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TermConfig):
        weight: float = 1.0
        """Factor of the whole penalty (center and IRM); the environment weights on the base loss do not depend on it.
        """
        start: float = 0.6
        """Fraction of training at which environments are first built (from the scores of the epoch that ends there) and
        the pull to the centers begins. Range [0, 1).
        """
        milestones: tuple[float, ...] = (0.8,)
        """Later fractions of training, increasing, at which environments are rebuilt and the pull grows by
        ``center_growth``.
        """
        num_envs: int = 2
        """Number of environments, 1 to 4. 1 is the unweighted data: a plain center loss."""
        env_type: str = "intra"
        """How environments are found: 'intra' by score within each class (also balances the classes), 'inter' by score
        over all samples, 'inter_intra' by the product, 'correctness' right against wrong predictions (at most two
        environments), 'uniform' with equal weights (control). No effect with one environment.
        """
        tail_ratio: float = 4.0
        """Target weight of the worst predicted 20% relative to the rest in the last environment, >= 1; the environments
        between follow a geometric series. No effect for 'correctness' and 'uniform'. 1 ignores the scores: with 'intra'
        the second environment is then balanced by class and nothing else, the control for what the scores contribute.
        """
        env_mode: str = "weight"
        """How samples get their weights: 'weight' multiplies their losses; 'repeat' shows them more often or leaves
        them out, with the same number of images per epoch. Batch statistics and memories are then those of the
        environments. No effect with one environment.
        """
        env_scaling: str = "quantile"
        """'quantile': scores between their 2% and 98% quantiles, exponent in [0.05, 10]; 'published': minimum to
        maximum and exponent in [1, 10], where one outlier can take all the weight. No effect for 'correctness' and
        'uniform'.
        """
        center: str = "l2"
        """Pull: 'l2' squared distance, mean over D; 'cosine' 1 - cosine; 'triplet' own center against the center of the
        most probable wrong class, margin 1.
        """
        center_weight: float = 2.048
        """Factor of the pull between ``start`` and the first milestone, >= 0. The default is the authors' value for l2;
        for cosine and triplet theirs is 0.001.
        """
        center_growth: float = 5.0
        """Factor on ``center_weight`` at each milestone. > 0."""
        irm_weight: float = 0.0
        """Factor of the IRMv1 penalty (of plain cross-entropy), summed over environments, >= 0; 0 is off."""

        def __post_init__(self) -> None:
            super().__post_init__()
            marks = (self.start, *self.milestones)
            if any(later <= earlier for earlier, later in itertools.pairwise(marks)) or marks[-1] >= 1:
                raise ValueError(
                    f"milestones must rise, after start={self.start} and before 1, got {list(self.milestones)}"
                )
            one_of(ENV_TYPES, env_type=self.env_type)
            one_of(ENV_MODES, env_mode=self.env_mode)
            one_of(SCALINGS, env_scaling=self.env_scaling)
            one_of(CENTERS, center=self.center)
            within("[1, 4]", num_envs=self.num_envs)
            at_least(1, tail_ratio=self.tail_ratio)
            at_least(0, center_weight=self.center_weight, irm_weight=self.irm_weight)
            positive(center_growth=self.center_growth)
            if self.env_type == "correctness" and self.num_envs > 2:
                raise ValueError(f"num_envs must be 1 or 2 with env_type='correctness', got {self.num_envs}")
            if self.env_mode == "repeat" and self.num_envs > 1 and self.irm_weight > 0:
                raise ValueError(
                    f"irm_weight must be 0 with env_mode='repeat', got {self.irm_weight}: it needs the risk of each "
                    "environment, and a repeated image does not say in which it was drawn. Set env_mode='weight'"
                )

    def __init__(self, cfg: Config, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__(cfg, stats, dims)
        self.reads = frozenset({"features", "index"} if cfg.num_envs > 1 else {"features"})
        self.stream_C: Tensor
        stream_C = stats.counts_C if stats.stream_counts_C is None else stats.stream_counts_C
        self.register_buffer("stream_C", stream_C.double().clamp_min(0.5), persistent=False)

    @staticmethod
    def gathers(cfg: Config) -> bool:
        """Tells whether the IRM penalty is used, the only part that depends on other samples.

        It is the square of a batch mean.
        """
        return cfg.irm_weight > 0

    @staticmethod
    def mix_refusal(cfg: Config) -> str:
        """Returns why IRM is undefined for mixed images; '' without IRM.

        The center loss is defined for mixed images.
        """
        if cfg.irm_weight == 0:
            return ""
        return "an image mixed of two environments belongs to neither's risk, which irm_weight > 0 differentiates"

    @staticmethod
    def sampling_refusal(cfg: Config) -> str:
        """Returns why several environments need the natural stream; '' for one."""
        if cfg.num_envs == 1:
            return ""
        return "its environments weigh or repeat the images of the natural stream, where each comes once"

    @staticmethod
    def is_off(cfg: Config) -> bool:
        """Tells whether there is one environment and no penalty.

        With more environments, the environment weights remain even at a weight of 0.
        """
        return cfg.num_envs == 1 and (cfg.weight == 0 or (cfg.center_weight == 0 and cfg.irm_weight == 0))

    def memories(self) -> dict[str, MemorySpec]:
        """Returns centroids where there is a pull, and scores where there is more than one environment."""
        cfg = self.cfg
        specs: dict[str, MemorySpec] = {}
        if cfg.center_weight > 0:
            specs["centroids"] = ClassCentroids.Spec()
        if cfg.num_envs > 1:
            marks = (cfg.start, *cfg.milestones)
            specs["scores"] = ScoreTable.Spec(cfg.env_type, cfg.num_envs, cfg.tail_ratio, cfg.env_scaling, marks)
        return specs

    def sample_weights(self, batch: Batch, ctx: LossContext) -> Tensor | None:
        """Returns [B] weights with mean 1 over the training split: q_i N, times q_j N for an image mixed with j.

        None with one environment, and where ``draws`` repeats samples instead.
        """
        if self.cfg.num_envs == 1 or self.cfg.env_mode == "repeat":
            return None
        scores = _scores(ctx.memories)
        weight_B = scores.weights(batch).mean(0)
        if batch.mix is None:
            return weight_B
        partners = replace(batch, labels_B=batch.mix.labels_B, index_B=batch.mix.index_B)
        alone_B = batch.mix.index_B == batch.index_B  # in a batch of odd size one image has no partner
        return weight_B * torch.where(alone_B, 1.0, scores.weights(partners).mean(0))

    def draws(self, memories: Mapping[str, Memory], labels_N: Tensor) -> Tensor | None:
        """Returns [N] q_i N, how often each sample should come in an epoch; None without repetition.

        The mean is 1.
        """
        if self.cfg.num_envs == 1 or self.cfg.env_mode == "weight":
            return None
        return _scores(memories).mean_weights(labels_N)

    def class_shares(self, memories: Mapping[str, Memory]) -> Tensor | None:
        """Returns [C] the share of each class in the re-weighted stream: 1/2 pi + 1/2 uniform for two 'intra'
        environments.
        """
        if self.cfg.num_envs == 1:
            return None
        share_C = self.stream_C * _scores(memories).mean_weight_C
        return share_C / share_C.sum()

    def findings(self, memories: Mapping[str, Memory], labels_N: Tensor, attributes_N: Tensor) -> dict[str, float]:
        """Returns 'attribute_auc', how well the environment weights find minority attributes, once there are any."""
        if self.cfg.num_envs == 1 or not int(_scores(memories).passed):
            return {}
        auc = attribute_auc(_scores(memories).mean_weights(labels_N), labels_N, attributes_N)
        return {} if auc is None else {"attribute_auc": auc}

    def forward(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """Returns the weighted sum of center loss and IRM penalty, a scalar.

        The center loss is taken under the environment weights.
        """
        cfg = self.cfg
        penalty = widened(out.features_BD).new_zeros(())
        if cfg.center_weight > 0:
            passed = len([milestone for milestone in cfg.milestones if ctx.progress >= milestone])
            weight_B = self.sample_weights(batch, ctx)
            centroids = cast(ClassCentroids, ctx.memories["centroids"])
            pull_B = self._pull(out, batch.labels_B, centroids)
            if batch.mix is not None:
                lam_B = batch.mix.lam_B
                pull_B = lam_B * pull_B + (1 - lam_B) * self._pull(out, batch.mix.labels_B, centroids)
            pull = (pull_B if weight_B is None else pull_B * weight_B).mean()
            penalty = penalty + cfg.center_weight * cfg.center_growth**passed * pull
        if cfg.irm_weight > 0:
            penalty = penalty + cfg.irm_weight * self._irm(out, batch, ctx)
        return penalty

    def _pull(self, out: ModelOutput, labels_B: Tensor, centroids: ClassCentroids) -> Tensor:
        """Returns the distance [B] to the center of the label; 0 where the class has none yet."""
        features_BD = widened(out.features_BD)
        known_C = centroids.count_C > 0
        own_BD, known_B = centroids.mean_CD[labels_B].to(features_BD.dtype), known_C[labels_B]
        if self.cfg.center == "l2":
            pull_B = (features_BD - own_BD).square().mean(1)
        elif self.cfg.center == "cosine":
            pull_B = 1 - F.cosine_similarity(features_BD, own_BD, dim=1, eps=1e-6)
        else:
            own_class = F.one_hot(labels_B, len(known_C)).bool()
            rival_B = out.mean_logits_BC.detach().masked_fill(own_class, -torch.inf).argmax(1)
            rival_BD = centroids.mean_CD[rival_B].to(features_BD.dtype)
            near_B, far_B = (_distance(features_BD, center_BD) for center_BD in (own_BD, rival_BD))
            pull_B, known_B = (near_B - far_B + _MARGIN).relu(), known_B & known_C[rival_B]
        return pull_B * known_B

    def _irm(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """Returns the IRMv1 penalty summed over environments, a scalar.

        It is the squared derivative of an environment's risk by a factor on the logits, at 1.
        """
        logits_BC = widened(out.mean_logits_BC)
        error_BC = logits_BC.softmax(1) - F.one_hot(batch.labels_B, logits_BC.shape[1])
        slope_G = dist.gather_with_grad((error_BC * logits_BC).sum(1))
        if self.cfg.num_envs == 1:
            return slope_G.mean().square()
        weights_EG = dist.gather(_scores(ctx.memories).weights(batch).T).T
        return (weights_EG * slope_G).mean(1).square().sum()


def _scores(memories: Mapping[str, Memory]) -> ScoreTable:
    return cast(ScoreTable, memories["scores"])


def _distance(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """Returns [B] Euclidean distances, differentiable at 0."""
    return ((a_BD - b_BD).square().sum(1) + 1e-12).sqrt()
