"""Augmentation: on the device, a batch at a time, with parameters that are a function of the sample.

Every number is keyed by (seed, epoch, index, copy, view and stage), so the image a sample becomes does not depend on
the batch it is in, on the number of ranks or workers, or on the engine. Shape legend: see ``ltcore.batch``; S is the
side of a canvas.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltcore import rng
from ltcore.batch import Batch, Mix
from ltcore.data.augment import ops, transforms
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.policies import stacks
from ltcore.data.augment.transforms import Draw


class Augment:
    """Turns uint8 canvases into normalized views.

    Args:
        cfg: the stacks of the views and their strength.
        seed: of the run.
        mean, std: per channel, of pixel values in [0, 1].
        num_views: V, 1 or 2.
    """

    def __init__(
        self, cfg: AugmentConfig, *, seed: int, mean: Sequence[float], std: Sequence[float], num_views: int
    ) -> None:
        self._cfg = cfg
        self._seed = seed
        self._stacks = stacks(cfg, num_views)
        self._scale, self._shift = ops.scale_and_shift(mean, std)

    def __call__(self, batch: Batch, epoch: int, host: Batch | None = None) -> Batch:
        """Augments uint8 [1, B, 3, S, S] to float32 [V, B, 3, S, S] on the same device.

        Sets ``mix`` where mixup is on. CropDraws are made on the host, from what ``host``, the same batch there, knows
        of its samples; without it a batch on a GPU has to be read back, which waits for all pending work of the GPU. A
        batch that the reader cropped (``boxes_VB4``) has all V views already, and is not cropped again.
        """
        views = []
        known = host or batch
        index_B, copy_B = known.index_B.cpu(), known.copy_B.cpu()
        cropped = batch.boxes_VB4 is not None
        for number, (view, stack) in enumerate(self._stacks.items()):
            images = batch.images_VBCHW[number if cropped else 0]
            draw = Draw(self._seed, epoch, index_B, copy_B, view, images.device)
            if stack.min_area is not None and not cropped:
                images = transforms.resized_crop(images, draw, stack.min_area)
            for stage in stack.stages:
                images = stage(images, draw, self._cfg)
            views.append(self._normalize(images))
        images_VBCHW = torch.stack(views)
        if self._cfg.mixup_alpha == 0:
            return batch.with_images(images_VBCHW)
        return _mixup(batch.with_images(images_VBCHW), self._cfg.mixup_alpha, self._seed, epoch)

    def evaluate(self, batch: Batch) -> Batch:
        """Normalizes uint8 [1, B, 3, S, S] to float32 [1, B, 3, S, S], and does nothing else."""
        return batch.with_images(self._normalize(batch.images_VBCHW[0])[None])

    def _normalize(self, images: Tensor) -> Tensor:
        self._scale = self._scale.to(images.device)
        self._shift = self._shift.to(images.device)
        return ops.unit_range(images) * self._scale + self._shift


def _mixup(batch: Batch, alpha: float, seed: int, epoch: int) -> Batch:
    """Mixes rows 2k and 2k + 1 with each other, both by the same keyed share.

    An odd last row stays as it is. Published codes permute the whole batch, which no split over ranks could repeat.
    Neighbors are the same for every number of ranks whose rank-local batch is even, because a rank's rows are a
    contiguous piece of the global batch; and as rows of a batch are in random order, a neighbor is as good a partner as
    any.
    """
    rows = torch.arange(len(batch), device=batch.labels_B.device)
    partner_B = torch.where((rows ^ 1) < len(batch), rows ^ 1, rows)
    lam_B = mix_share(batch.index_B, batch.copy_B, partner_B, alpha, seed, epoch)
    lam = lam_B[:, None, None, None]
    images = batch.images_VBCHW
    mixed = images * lam + images[:, partner_B] * (1 - lam)
    return batch.with_images(mixed, Mix(batch.labels_B[partner_B], lam_B, batch.index_B[partner_B]))


def mix_share(index_B: Tensor, copy_B: Tensor, partner_B: Tensor, alpha: float, seed: int, epoch: int) -> Tensor:
    """Returns float32 [B] from Beta(alpha, alpha), equal for both rows of a pair.

    It is 1 for a row that is its own partner. The sum of two uniforms modulo 1 is uniform and symmetric in the pair.
    Beta(a, a) is (1 + t / sqrt(2a + t^2)) / 2 for t of Student's distribution with 2a degrees of freedom, and t has a
    closed form in two uniforms (Bailey 1994, Math. Comp. 62:779), so no rejection loop is needed.
    """
    u_B2 = rng.uniform(seed, epoch, index_B, copy_B, "augment/mixup", 2).double()
    shared_B2 = (u_B2 + u_B2[partner_B]) % 1.0
    radial = (1 - shared_B2[:, 0]).pow(1 / alpha)
    cos = (2 * torch.pi * shared_B2[:, 1]).cos()
    spread = (1 - radial) * cos.square()
    share = (1 + cos.sign() * (spread / (radial + spread)).sqrt()) / 2
    own = partner_B == torch.arange(len(partner_B), device=partner_B.device)
    return torch.where(own, 1.0, share).float()
