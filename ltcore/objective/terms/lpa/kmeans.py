"""k-means for prototypes: seeded, on any device, in chunks.

Source: Lloyd (1982); greedy k-means++ (Arthur and Vassilvitskii 2007) for the initial centers. ``spherical`` keeps
centers at unit norm (Dhillon and Modha 2001) and expects unit points; the nearest center then has the largest cosine.
Shapes: R points, K centers, D dimensions.
Cost: 2RKD per iteration, 128KKD(2 + ln K) for the start. No tensor of size R x K is created. Repeatable bit for bit on
the CPU at a fixed number of threads; on CUDA the order of sums is not fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

CHUNK = 2048
"""Points whose distances to all centers are computed at a time: few enough to stay in a processor's cache."""
START_POINTS = 64
"""Points per center from which initial centers are chosen: enough to see every cluster that matters."""


@dataclass(frozen=True)
class KMeans:
    """A clustering."""

    centers_KD: Tensor
    assigned_R: Tensor
    """int64, the nearest center of each point."""
    inertia: Tensor
    """Scalar: sum of squared distances to the nearest center; 2(1 - cosine) each where points and centers are unit."""


def affinity(points_RD: Tensor, centers_KD: Tensor) -> Tensor:
    """Returns [..., K], (|x|^2 - |x - c|^2) / 2: largest for the nearest center; for unit centers the cosine less 1/2."""
    return points_RD @ centers_KD.T - centers_KD.square().sum(1) / 2


def assign(points_RD: Tensor, centers_KD: Tensor) -> Tensor:
    """Returns int64 [R], the nearest center of each point, the first of equals."""
    bias_K = -centers_KD.square().sum(1) / 2
    # addmm adds the bias in the same pass; max is faster than argmax and takes the first of equals as well.
    return torch.cat([torch.addmm(bias_K, chunk, centers_KD.T).max(1).indices for chunk in points_RD.split(CHUNK)])


def kmeans(
    points_RD: Tensor, num_centers: int, gen: torch.Generator, *, iterations: int = 20, spherical: bool = True
) -> KMeans:
    """Clusters ``points_RD`` into ``num_centers`` <= R. ``gen`` is a CPU generator; draws are equal on every device."""
    return lloyd(points_RD, spread(points_RD, num_centers, gen), iterations=iterations, spherical=spherical)


def lloyd(points_RD: Tensor, centers_KD: Tensor, *, iterations: int = 20, spherical: bool = True) -> KMeans:
    """Runs Lloyd's iterations from given centers, until nothing changes or ``iterations`` are done.

    A cluster that loses all its points restarts at the point farthest from its own center (the second such cluster at
    the second farthest, and so on).
    """
    assigned_R = assign(points_RD, centers_KD)
    for _ in range(iterations):
        centers_KD = _means(points_RD, assigned_R, centers_KD, spherical)
        before_R, assigned_R = assigned_R, assign(points_RD, centers_KD)
        if torch.equal(before_R, assigned_R):
            break
    return KMeans(centers_KD, assigned_R, _squared_distance(points_RD, centers_KD, assigned_R).sum())


def _means(points_RD: Tensor, assigned_R: Tensor, centers_KD: Tensor, spherical: bool) -> Tensor:
    sums_KD = torch.zeros_like(centers_KD).index_add_(0, assigned_R, points_RD)
    count_K = torch.bincount(assigned_R, minlength=len(centers_KD))
    empty_K = count_K == 0
    num_empty = int(empty_K.sum())
    if num_empty:
        distance_R = _squared_distance(points_RD, centers_KD, assigned_R)
        sums_KD[empty_K] = points_RD[distance_R.topk(num_empty).indices]
    return F.normalize(sums_KD, dim=1) if spherical else sums_KD / count_K.clamp_min(1)[:, None]


def _squared_distance(points_RD: Tensor, centers_KD: Tensor, assigned_R: Tensor) -> Tensor:
    chunks = zip(points_RD.split(CHUNK), assigned_R.split(CHUNK), strict=True)
    return torch.cat([(points_nD - centers_KD[assigned_n]).square().sum(1) for points_nD, assigned_n in chunks])


def spread(points_RD: Tensor, num_centers: int, gen: torch.Generator) -> Tensor:
    """Returns initial centers [K, D] by greedy k-means++.

    Draws 2 + ln K points by squared distance to the centers so far, and takes the one that reduces the distances most.
    """
    if not 1 <= num_centers <= len(points_RD):
        raise ValueError(f"num_centers must lie in 1..{len(points_RD)}, the number of points, got {num_centers}")
    if len(points_RD) > START_POINTS * num_centers:
        chosen_n = torch.randperm(len(points_RD), generator=gen)[: START_POINTS * num_centers]
        points_RD = points_RD[chosen_n.to(points_RD.device)]
    draws = torch.rand(num_centers, 2 + int(math.log(num_centers)), generator=gen, dtype=torch.float64)
    draws = draws.to(points_RD.device)
    norm_R = points_RD.square().sum(1)
    chosen_K = (draws[0, :1] * len(points_RD)).long()
    nearest_R = _distance_to(points_RD, norm_R, chosen_K)[0]
    for draw_L in draws[1:]:
        cumulative_R = nearest_R.double().cumsum(0)
        drawn_L = torch.searchsorted(cumulative_R, draw_L * cumulative_R[-1], right=True).clamp_max(len(points_RD) - 1)
        nearest_LR = _distance_to(points_RD, norm_R, drawn_L).minimum(nearest_R)
        best = nearest_LR.sum(1).argmin(keepdim=True)
        chosen_K = torch.cat([chosen_K, drawn_L[best]])
        nearest_R = nearest_LR[best].squeeze(0)
    return points_RD[chosen_K]


def _distance_to(points_RD: Tensor, norm_R: Tensor, rows_L: Tensor) -> Tensor:
    """Returns [L, R] squared distances of all points to the points in ``rows_L``."""
    return (norm_R + norm_R[rows_L, None] - 2 * points_RD[rows_L] @ points_RD.T).clamp_min(0)
