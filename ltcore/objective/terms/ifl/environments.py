"""Environments from per-sample scores: sample weights that form further training distributions with more badly
predicted samples.

Source: Tang et al., "Invariant feature learning for generalized long-tailed classification", ECCV 2022, and its code
(``train_center_dual.py``, ``train_center_triple.py``). Environment 1 is the unweighted data. In environment e a sample
has weight v^x: v = 1 - score after scaling to [0, 1], and the exponent x is chosen such that the worst predicted 20%
weigh about t_e times as much per sample as the other 80%, t_e = tail_ratio^((e-1)/(E-1)): {1, 4} for two environments,
{1, 2, 4} for three. The two environments of 'correctness' are the correctly and the wrongly predicted samples.
Differs: weights are relative (mean 1 in their group) and multiply the loss instead of driving a sampler with
replacement, which has the same expectation; a sample without a score is neutral instead of never drawn; scores are
scaled by their 2% and 98% quantiles and x may fall to 0.05, because min-max scaling with x >= 1 gives nearly all weight
to a single outlier, such as a mislabeled sample (``scaling='published'`` is the published form).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ENV_TYPES = ("intra", "inter", "inter_intra", "correctness", "uniform")
SCALINGS = ("quantile", "published")

_TAIL, _HEAD = 0.2, 0.8  # the Pareto split of the source; groups below 5 samples have no tail and stay uniform
_MIN_GROUP = 5


def tail_weights(score_n: Tensor, group_n: Tensor, num_groups: int, tail_ratio: float, scaling: str) -> Tensor:
    """Returns float64 weights [n] with mean 1 in each group, larger for lower scores.

    ``score_n``: probability of the own class, in [0, 1]; ``group_n``: int64 group of each sample (its class). With a
    ``tail_ratio`` of 1 the scores have no effect: all weights are 1.
    """
    if len(score_n) == 0 or tail_ratio == 1:
        return torch.ones_like(score_n, dtype=torch.float64)
    quantile, low_exponent = (0.02, 0.05) if scaling == "quantile" else (0.0, 1.0)
    by_score = score_n.double().argsort(stable=True)
    order = by_score[group_n[by_score].argsort(stable=True)]  # by group, then by rising score: worst first
    score, group = score_n.double()[order], group_n[order]

    size_G = torch.bincount(group, minlength=num_groups)
    first_G = size_G.cumsum(0) - size_G
    rank, size = torch.arange(len(score), device=score.device) - first_G[group], size_G[group]

    def group_mean(keep: Tensor, value: Tensor) -> Tensor:
        def total(x: Tensor) -> Tensor:
            return torch.zeros(num_groups, dtype=torch.float64, device=score.device).index_add_(0, group, x)

        return total(keep * value) / total(keep.double()).clamp_min(1)

    low_G = _sorted_quantile(score, first_G, size_G, quantile)
    high_G = _sorted_quantile(score, first_G, size_G, 1 - quantile)
    scaled = ((score - low_G[group]) / (high_G - low_G + 1e-9)[group]).clamp(0, 1)
    value = 1 - scaled + 1e-5
    tail_G = group_mean(rank < (_TAIL * size.double()).floor(), value)
    head_G = group_mean(rank >= size - (_HEAD * size.double()).floor(), value)
    ratio_G = tail_G / head_G.clamp_min(1e-5) + 1e-5
    exponent_G = (math.log(tail_ratio) / ratio_G.clamp_min(1 + 1e-5).log()).clamp(low_exponent, 10.0)
    weight = value ** exponent_G[group] + 1e-12
    relative = weight / group_mean(torch.ones_like(weight), weight)[group]
    return torch.empty_like(relative).scatter_(0, order, torch.where(size < _MIN_GROUP, 1.0, relative))


def _sorted_quantile(value: Tensor, first_G: Tensor, size_G: Tensor, quantile: float) -> Tensor:
    """Returns [groups] the linearly interpolated quantile of values sorted within each group; 0 for an empty group."""
    place_G = quantile * (size_G - 1).clamp_min(0).double()
    below_G, last_G = place_G.floor(), (first_G + size_G - 1).clamp_min(0)
    start_G = (first_G + below_G.long()).clamp_max(len(value) - 1)
    at_G, next_G = value[start_G], value[torch.minimum(start_G + 1, last_G)]
    return torch.where(size_G > 0, at_G + (place_G - below_G) * (next_G - at_G), 0.0)


def environment_weights(
    score_N: Tensor,
    correct_N: Tensor,
    seen_N: Tensor,
    label_N: Tensor,
    counts_C: Tensor,
    *,
    env_type: str,
    num_envs: int,
    tail_ratio: float,
    scaling: str,
) -> tuple[Tensor, Tensor]:
    """Returns relative weights [E, N] and class factors [E, C], float64: sample i of class c weighs their product.

    The product has mean 1 over the N samples of the split in every environment. A sample outside ``seen_N`` has
    relative weight 1, so that its weight is the neutral one of its class. ``label_N`` and ``score_N`` matter only where
    seen. ``correct_N``: True where at least one prediction was right; used by 'correctness' only.
    """
    num_samples, num_classes = len(score_N), len(counts_C)
    relative_EN = torch.ones(num_envs, num_samples, dtype=torch.float64, device=score_N.device)
    factor_EC = torch.ones(num_envs, num_classes, dtype=torch.float64, device=score_N.device)
    score, label = score_N[seen_N], label_N[seen_N]
    balanced_C = num_samples / (num_classes * counts_C.double().clamp_min(1))
    for env in range(1, num_envs):
        ratio = tail_ratio ** (env / (num_envs - 1))
        if env_type in ("intra", "inter_intra"):
            relative_EN[env, seen_N] *= tail_weights(score, label, num_classes, ratio, scaling)
            factor_EC[env] = balanced_C
        if env_type in ("inter", "inter_intra"):
            relative_EN[env, seen_N] *= tail_weights(score, torch.zeros_like(label), 1, ratio, scaling)
    if env_type == "correctness":
        right = correct_N & seen_N
        wrong = ~correct_N & seen_N
        if right.any() and wrong.any():  # otherwise there is one environment, and every sample is neutral
            for env, members in enumerate((right, wrong)):
                relative_EN[env, seen_N] = members[seen_N] * (seen_N.sum().double() / members.sum())
    mean_E = class_totals(relative_EN, factor_EC, seen_N, label_N, counts_C).sum(1) / num_samples
    return relative_EN, factor_EC / mean_E[:, None]


def class_totals(relative_EN: Tensor, factor_EC: Tensor, seen_N: Tensor, label_N: Tensor, counts_C: Tensor) -> Tensor:
    """Returns [E, C] the summed weights of all samples of a class, including those without a score."""
    seen_C = torch.bincount(label_N[seen_N], minlength=len(counts_C))
    scored_EC = torch.zeros_like(factor_EC).index_add_(1, label_N[seen_N], relative_EN[:, seen_N])
    return factor_EC * (scored_EC + (counts_C - seen_C))
