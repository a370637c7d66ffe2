"""From attribute counts to neighbor classes.

Shapes: C classes, K attributes, k neighbors. Cost: 2CCK, in rows of ``ROWS`` classes, so that no [C, C] exists.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

CENTERINGS = ("centered", "raw", "pmi")

ROWS = 1024
_SAME = 1e-8
"""A description this close to the mean is the mean: rounding leaves about 1e-16, one location in a million 1e-6."""
_LOG_FLOOR = 1e-12


def describe_classes(mass_CK: Tensor, images_C: Tensor, *, shrink: float, centering: str) -> Tensor:
    """float64 unit vectors [C, K] that are compared, or zero where a class is unseen or no different from the mean.

    a = mass / row sum; abar = mean of a over the classes seen; a~ = (n a + m0 abar) / (n + m0), with n images and
    m0 = ``shrink``; then a~ - abar ('centered'), a~ ('raw') or log(a~ / abar) ('pmi').
    """
    total_C1 = mass_CK.sum(1, keepdim=True).double()
    seen_C1 = total_C1 > 0
    share_CK = mass_CK / total_C1.clamp_min(1)
    mean_K = share_CK.sum(0) / seen_C1.sum().clamp_min(1)
    images_C1 = images_C[:, None].double().clamp_min(1)
    shrunk_CK = (images_C1 * share_CK + shrink * mean_K) / (images_C1 + shrink)
    if centering == "pmi":
        vectors_CK = shrunk_CK.clamp_min(_LOG_FLOOR).log() - mean_K.clamp_min(_LOG_FLOOR).log()
    else:
        vectors_CK = shrunk_CK - mean_K if centering == "centered" else shrunk_CK
    norm_C1 = vectors_CK.norm(dim=1, keepdim=True)
    return F.normalize(vectors_CK, dim=1) * (seen_C1 & (norm_C1 > _SAME))


def class_neighbors(
    mass_CK: Tensor, images_C: Tensor, *, neighbors: int, threshold: float, shrink: float, centering: str
) -> tuple[Tensor, Tensor]:
    """(int64 ids, float64 weights), both [C, min(neighbors, C - 1)]: the classes of largest cosine A above
    ``threshold``.

    weight = relu((A - t) / (1 - t)). Where there are fewer, and for an unseen or average class, the rest is padded
    with the class's own id at weight 0.
    """
    vectors_CK = describe_classes(mass_CK, images_C, shrink=shrink, centering=centering)
    described_C = vectors_CK.any(1)
    own_C1 = torch.arange(len(vectors_CK), device=mass_CK.device)[:, None]
    ids, weights = [], []
    for rows_n1 in own_C1.split(ROWS):
        rows_n = rows_n1.squeeze(1)
        cosine_nC = vectors_CK[rows_n] @ vectors_CK.T
        cosine_nC = cosine_nC.masked_fill(~(described_C & described_C[rows_n1]) | (rows_n1 == own_C1.T), -torch.inf)
        cosine_nk, ids_nk = cosine_nC.topk(min(neighbors, len(vectors_CK) - 1), dim=1)
        weight_nk = ((cosine_nk - threshold) / (1 - threshold)).clamp(0, 1)
        ids.append(torch.where(weight_nk > 0, ids_nk, rows_n1))
        weights.append(weight_nk)
    return torch.cat(ids), torch.cat(weights)
