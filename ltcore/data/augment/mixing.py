"""Mixed images: mixup, CutMix, and Remix's labels, for pairs of neighbors in a batch.

Source: mixup, Zhang et al., ICLR 2018; CutMix, Yun et al., "CutMix: regularization strategy to train strong classifiers
with localizable features", ICCV 2019, and its code: a box with sides sqrt(1 - lambda) of the image's, lambda from
Beta(alpha, alpha), around a uniform pixel, clipped at the border; the share is then that of the pixels. Remix, Chou et
al., "Remix: rebalanced mixup", ECCV-W 2020, equation 5: images are mixed with share lambda, labels with

    lambda_y = 0        where n_i / n_j >= kappa and lambda < tau       (the rarer class gets the whole label)
    lambda_y = 1        where n_i / n_j <= 1 / kappa and 1 - lambda < tau
    lambda_y = lambda   otherwise

Differs: rows 2k and 2k + 1 are mixed with each other, both with the same share and box. Published codes permute the
whole batch, which no split over ranks could repeat. Neighbors are the same for every number of ranks whose rank-local
batch is even, because a rank's rows are a contiguous piece of the global batch; and where rows of a batch are in random
order, a neighbor is as good a partner as any. Images of one class in a row, as of ``class_aware`` sampling, would mix with
themselves, which is refused. Tars of others that lie sorted by class are read in their order, so that neighbors share a
class where a batch takes several rows of each of ``data.lanes``. An odd last row stays as it is. Shares and boxes are drawn
per pair, keyed by both samples, where published codes draw one for the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore import rng
from ltcore.batch import Batch, Mix
from ltcore.data.augment.config import AugmentConfig


def mixed(batch: Batch, cfg: AugmentConfig, counts_C: Tensor | None, seed: int, epoch: int) -> Batch:
    """Mixes float32 images [V, B, 3, S, S] as ``cfg`` says, all views of a pair alike.

    ``counts_C``: images of each class in the training split, for Remix.
    """
    rows = torch.arange(len(batch), device=batch.labels_B.device)
    pairs = _Pairs(batch.index_B, batch.copy_B, torch.where((rows ^ 1) < len(batch), rows ^ 1, rows), seed, epoch)
    blend_B, cut_B = _chosen(cfg, pairs)
    images, lam_B = batch.images_VBCHW, None
    theirs = images[:, pairs.partner_B]
    if blend_B is not None:
        lam_B = torch.where(blend_B, pairs.share(cfg.mixup_alpha, "augment/mixup"), 1.0).float()
        lam = lam_B[:, None, None, None]
        images = images * lam + theirs * (1 - lam)
    if cut_B is not None:
        inside_BHW = pairs.boxes(cfg.cutmix_alpha, images.shape[-2], images.shape[-1]) & cut_B[:, None, None]
        images = torch.where(inside_BHW[:, None], theirs, images)
        cut_B = inside_BHW.any(2).any(1)  # the smallest boxes are empty
        kept_B = (~inside_BHW).double().mean((1, 2)).float()  # the exact share of pixels
        lam_B = kept_B if lam_B is None else torch.where(cut_B, kept_B, lam_B)
    assert lam_B is not None, "called where something is mixed"
    touched_B = torch.stack([chosen_B for chosen_B in (blend_B, cut_B) if chosen_B is not None]).any(0)
    other_B = torch.where(touched_B, pairs.partner_B, rows)  # an image that is left as it is has no partner
    labels_B = batch.labels_B[other_B]
    if cfg.remix_kappa is not None:
        assert counts_C is not None, "given to whoever trains"
        lam_B = label_share(lam_B, counts_C[batch.labels_B], counts_C[labels_B], cfg.remix_kappa, cfg.remix_tau)
    return batch.with_images(images, Mix(labels_B, lam_B, batch.index_B[other_B]))


def label_share(lam_B: Tensor, own_B: Tensor, other_B: Tensor, kappa: float, tau: float) -> Tensor:
    """Returns Remix's share [B] of a sample's own label.

    ``lam_B`` is the share of its image, ``own_B`` the size of its class, ``other_B`` that of its partner's.
    """
    own_B, other_B = own_B.double(), other_B.double()
    lost_B = (own_B >= kappa * other_B) & (lam_B < tau)
    won_B = (other_B >= kappa * own_B) & (1 - lam_B < tau)
    return torch.where(lost_B, 0.0, torch.where(won_B, 1.0, lam_B))


def _chosen(cfg: AugmentConfig, pairs: _Pairs) -> tuple[Tensor | None, Tensor | None]:
    """Returns bool [B], which rows are blended and which get a box; None where that is never done."""
    u_B2 = pairs.shared("augment/mix", 2)
    mixed_B = (u_B2[:, 0] < cfg.mix_probability) & ~pairs.alone_B
    if cfg.cutmix_alpha == 0:
        return mixed_B, None
    if cfg.mixup_alpha == 0:
        return None, mixed_B
    cut_B = u_B2[:, 1] < cfg.cutmix_probability
    return mixed_B & ~cut_B, mixed_B & cut_B


class _Pairs:
    """Pairs of rows, and the numbers that both rows of a pair draw alike."""

    def __init__(self, index_B: Tensor, copy_B: Tensor, partner_B: Tensor, seed: int, epoch: int) -> None:
        self.index_B, self.copy_B, self.partner_B, self.seed, self.epoch = index_B, copy_B, partner_B, seed, epoch
        self.alone_B = partner_B == torch.arange(len(partner_B), device=partner_B.device)

    def shared(self, purpose: str, n: int) -> Tensor:
        """Returns float64 [B, n] uniform numbers in [0, 1), equal for both rows of a pair.

        The sum of two uniforms modulo 1 is uniform and symmetric in the pair.
        """
        u_Bn = rng.uniform(self.seed, self.epoch, self.index_B, self.copy_B, purpose, n).double()
        return (u_Bn + u_Bn[self.partner_B]) % 1.0

    def share(self, alpha: float, purpose: str) -> Tensor:
        """Returns float64 [B] from Beta(alpha, alpha).

        Beta(a, a) is (1 + t / sqrt(2a + t^2)) / 2 for t of Student's distribution with 2a degrees of freedom, and t has
        a closed form in two uniforms (Bailey 1994, Math. Comp. 62:779), so no rejection loop is needed.
        """
        shared_B2 = self.shared(purpose, 2)
        radial = (1 - shared_B2[:, 0]).pow(1 / alpha)
        cos = (2 * torch.pi * shared_B2[:, 1]).cos()
        spread = (1 - radial) * cos.square()
        return (1 + cos.sign() * (spread / (radial + spread)).sqrt()) / 2

    def boxes(self, alpha: float, height: int, width: int) -> Tensor:
        """Returns bool [B, H, W], CutMix's box of each pair."""
        side_B = (1 - self.share(alpha, "augment/cutmix")).sqrt()
        center_B2 = self.shared("augment/cutmix/center", 2)
        inside = []
        for axis, size in enumerate((height, width)):
            half_B = (side_B * size).long() // 2
            middle_B = (center_B2[:, axis] * size).long()
            at_S = torch.arange(size, device=side_B.device)
            inside.append((at_S >= (middle_B - half_B)[:, None]) & (at_S < (middle_B + half_B)[:, None]))
        return inside[0][:, :, None] & inside[1][:, None, :]
