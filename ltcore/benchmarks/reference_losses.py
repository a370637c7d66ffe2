"""Each loss in the form of its paper or its authors' code: clear and dense, without our optimizations.

Every function returns the mean over the batch, a scalar. Shape legend: see ``ltcore.batch``; A = 2B + Q contrast
elements, N rows of the feature bank, K prototypes, P locations of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def one_hot(labels_B: Tensor, num_classes: int) -> Tensor:
    """Returns float one-hot labels [B, C]."""
    return F.one_hot(labels_B, num_classes).float()


def cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Computes -log softmax of the own class."""
    p_BC = logits_BC.exp() / logits_BC.exp().sum(1, keepdim=True)
    return -(one_hot(labels_B, logits_BC.shape[1]) * p_BC.log()).sum(1).mean()


def balanced_softmax(logits_BC: Tensor, labels_B: Tensor, counts_C: Tensor) -> Tensor:
    """Computes equation 4 of Ren et al."""
    scaled_BC = counts_C * logits_BC.exp()
    p_BC = scaled_BC / scaled_BC.sum(1, keepdim=True)
    return -(one_hot(labels_B, logits_BC.shape[1]) * p_BC.log()).sum(1).mean()


def logit_adjust(logits_BC: Tensor, labels_B: Tensor, counts_C: Tensor, tau: float) -> Tensor:
    """Computes equation 10 of Menon et al."""
    prior_C = counts_C / counts_C.sum()
    own_B = logits_BC[torch.arange(len(labels_B)), labels_B]
    ratio_BC = (prior_C / prior_C[labels_B][:, None]) ** tau * (logits_BC - own_B[:, None]).exp()
    return (1 + ratio_BC.sum(1) - 1).log().mean()  # the sum over y' != y lacks the own class, whose ratio is 1


def class_balanced(logits_BC: Tensor, labels_B: Tensor, counts_C: Tensor, beta: float) -> Tensor:
    """Follows Cui et al.'s code: weights computed at every call, spread over [B, C], and a softmax."""
    weights_C = (1 - beta) / (1 - beta ** counts_C.double())
    weights_C = weights_C / weights_C.sum() * len(counts_C)
    target_BC = one_hot(labels_B, len(counts_C))
    weights_BC = (weights_C * target_BC).sum(1, keepdim=True).repeat(1, len(counts_C))
    return -(weights_BC * target_BC * logits_BC.softmax(1).log()).sum(1).mean()


def focal(logits_BC: Tensor, labels_B: Tensor, gamma: float) -> Tensor:
    """Computes the softmax form with the gradient through the factor."""
    p_B = logits_BC.softmax(1)[torch.arange(len(labels_B)), labels_B]
    return (-((1 - p_B) ** gamma) * p_B.log()).mean()


def ldam(
    logits_BC: Tensor,
    labels_B: Tensor,
    counts_C: Tensor,
    max_margin: float,
    scale: float,
    weights_C: Tensor | None,
) -> Tensor:
    """Follows Cao et al.'s code, on logits that are scaled cosines."""
    margin_C = 1 / counts_C.double().sqrt().sqrt()
    margin_C = (margin_C * max_margin / margin_C.max()).to(logits_BC.dtype)
    index_BC = torch.zeros_like(logits_BC, dtype=torch.bool).scatter_(1, labels_B[:, None], True)
    margin_B1 = (margin_C[None] @ index_BC.to(logits_BC.dtype).T).T
    moved_BC = torch.where(index_BC, logits_BC / scale - margin_B1, logits_BC / scale)
    loss_B = F.cross_entropy(scale * moved_BC, labels_B, reduction="none")
    return (loss_B if weights_C is None else loss_B * weights_C[labels_B]).mean()


def ride(
    logits_BEC: Tensor,
    labels_B: Tensor,
    counts_C: Tensor,
    max_margin: float,
    scale: float,
    diversity_weight: float,
    temperature: float,
) -> Tensor:
    """Follows Wang et al.'s code before its weights start: LDAM of each expert minus its divergence from the mean."""
    total = logits_BEC.new_zeros(())
    mean_BC = F.softmax(logits_BEC.mean(1) / temperature, dim=1)
    for e in range(logits_BEC.shape[1]):
        total = total + ldam(logits_BEC[:, e], labels_B, counts_C, max_margin, scale, None)
        log_p_BC = F.log_softmax(logits_BEC[:, e] / temperature, dim=1)
        total = total - diversity_weight * temperature**2 * F.kl_div(log_p_BC, mean_BC, reduction="batchmean")
    return total


def sade(logits_BEC: Tensor, labels_B: Tensor, counts_C: Tensor, tau: float) -> Tensor:
    """Follows Zhang et al.'s code, with the mean rank for classes that are equally frequent."""
    prior_C = counts_C / counts_C.sum()
    rising_C = prior_C.sort().values
    same_CC = (prior_C[:, None] == prior_C).float()
    place_CC = (prior_C.sort(descending=True).values == prior_C[:, None]).float()
    inverse_C = (place_CC @ rising_C) / same_CC.sum(1)
    shifts = (torch.zeros_like(prior_C), prior_C.log(), prior_C.log() - tau * inverse_C.log())
    return torch.stack([F.cross_entropy(logits_BEC[:, e] + shift, labels_B) for e, shift in enumerate(shifts)]).sum()


def paco(
    logits_BC: Tensor,
    elements_Ad: Tensor,
    element_labels_A: Tensor,
    labels_B: Tensor,
    counts_C: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """Follows Cui et al.'s code; the queries are the first B elements."""
    size = len(labels_B)
    adjusted_BC = logits_BC + (counts_C / counts_C.sum()).log()
    mask_BA = (labels_B[:, None] == element_labels_A).float()
    both_BM = torch.cat([adjusted_BC, elements_Ad[:size] @ elements_Ad.T / temperature], 1)
    both_BM = both_BM - both_BM.max(1, keepdim=True).values.detach()
    others_BA = torch.ones_like(mask_BA).scatter_(1, torch.arange(size)[:, None].to(labels_B.device), 0)
    mask_BM = torch.cat([one_hot(labels_B, len(counts_C)) * beta, mask_BA * others_BA * alpha], 1)
    exp_BM = both_BM.exp() * torch.cat([torch.ones_like(adjusted_BC), others_BA], 1)
    log_p_BM = both_BM - (exp_BM.sum(1, keepdim=True) + 1e-12).log()
    return -((mask_BM * log_p_BM).sum(1) / mask_BM.sum(1)).mean()


def lpa(
    elements_Ad: Tensor,
    element_labels_A: Tensor,
    labels_B: Tensor,
    similarity_CC: Tensor,
    *,
    neighbor_mass: float,
    temperature: float,
) -> Tensor:
    """Computes the SupCon term with soft positives of a dense class similarity, whose largest scales their mass.

    The queries are the first B elements.
    """
    size = len(labels_B)
    others_BA = 1 - torch.eye(size, len(elements_Ad), device=labels_B.device)
    exp_BA = (elements_Ad[:size] @ elements_Ad.T / temperature).exp() * others_BA
    log_p_BA = (exp_BA / exp_BA.sum(1, keepdim=True) + (1 - others_BA)).log()
    same_BA = (labels_B[:, None] == element_labels_A) * others_BA
    near_BA = similarity_CC[labels_B][:, element_labels_A] * others_BA
    near_B1 = near_BA.sum(1, keepdim=True)
    mass_B1 = neighbor_mass * near_BA.amax(1, keepdim=True)
    weight_BA = (1 - mass_B1) * same_BA / same_BA.sum(1, keepdim=True) + mass_B1 * near_BA / near_B1.clamp_min(1e-12)
    return -(weight_BA * log_p_BA).sum(1).mean()


def lpa_scores(vectors_BPD: Tensor, prototypes_KD: Tensor) -> Tensor:
    """Returns histograms [B, K] by the Euclidean distance of every location to every prototype."""
    nearest_BP = torch.cdist(F.normalize(vectors_BPD, dim=2), prototypes_KD).argmin(2)
    return F.one_hot(nearest_BP, len(prototypes_KD)).sum(1)


def dro(features_BD: Tensor, labels_B: Tensor, mean_CD: Tensor, eps_C: Tensor, temperature: float) -> Tensor:
    """Follows Samuel and Chechik, class by class over the classes of the batch."""
    losses = []
    for c in labels_B.unique():
        own_B = labels_B == c
        distance_B = ((features_BD - mean_CD[c]).norm(dim=1) + own_B * eps_C[c]) / temperature
        losses.append(distance_B[own_B].mean() + (-distance_B).exp().sum().log())
    return torch.stack(losses).mean()


def bank_means(bank_ND: Tensor, bank_labels_N: Tensor, num_classes: int) -> Tensor:
    """Returns the class means [C, D] of the features of all samples.

    The authors' DRO-LT computes them at every step.
    """
    empty_D = bank_ND.new_zeros(bank_ND.shape[1])
    means = []
    for c in range(num_classes):
        rows = torch.where(bank_labels_N == c)[0]
        means.append(bank_ND[rows].mean(0) if len(rows) else empty_D)
    return torch.stack(means)


def ifl(
    logits_BC: Tensor, features_BD: Tensor, labels_B: Tensor, weights_EB: Tensor, mean_CD: Tensor, center_weight: float
) -> Tensor:
    """Follows Tang et al.: base and center loss of one environment after another, then their mean."""
    losses = []
    for weights_B in weights_EB:
        base_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
        center_B = ((features_BD - mean_CD[labels_B]) ** 2).sum(1) / features_BD.shape[1]
        losses.append((weights_B * (base_B + center_weight * center_B)).mean())
    return torch.stack(losses).mean()
