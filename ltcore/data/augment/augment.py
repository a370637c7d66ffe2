"""Augmentation: on the device, a batch at a time, with parameters that are a function of the sample.

Every number is keyed by (seed, epoch, index, copy, view and stage), so the image a sample becomes does not depend on
the batch it is in, on the number of ranks or workers, or on the engine. Shape legend: see ``ltcore.batch``; S is the
side of a canvas.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltcore.batch import Batch
from ltcore.data.augment import ops, transforms
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.mixing import mixed
from ltcore.data.augment.policies import stacks
from ltcore.data.augment.transforms import Draw
from ltcore.data.images.boxes import least_area


class Augment:
    """Turns uint8 canvases into normalized views.

    Args:
        cfg: the stacks of the views and their strength.
        seed: of the run.
        mean, std: per channel, of pixel values in [0, 1].
        num_views: V, 1 or 2.
        counts_C: images of each class in the training split; needed to train with Remix.
        epochs: the length of training, over which crops may grow.
    """

    def __init__(
        self,
        cfg: AugmentConfig,
        *,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        num_views: int,
        counts_C: Tensor | None = None,
        epochs: int = 1,
    ) -> None:
        self._cfg = cfg
        self._epochs = epochs
        self._counts_C = counts_C
        self._seed = seed
        self._stacks = stacks(cfg, num_views)
        self._scale, self._shift = ops.scale_and_shift(mean, std)

    def __call__(self, batch: Batch, epoch: int, host: Batch | None = None) -> Batch:
        """Augments uint8 [1, B, 3, S, S] to float32 [V, B, 3, S, S] on the same device.

        Sets ``mix`` where images are mixed. CropDraws are made on the host, from what ``host``, the same batch there, knows
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
                least = least_area(stack.min_area, self._cfg.crop_schedule, epoch, self._epochs)
                crop = transforms.square_crop if stack.square else transforms.resized_crop
                images = crop(images, draw, least)
            for stage in stack.stages:
                images = stage(images, draw, self._cfg)
            views.append(self._normalize(images))
        images_VBCHW = torch.stack(views)
        batch = batch.with_images(images_VBCHW)
        if not self._cfg.mixes:
            return batch
        if self._counts_C is not None:
            self._counts_C = self._counts_C.to(images_VBCHW.device)
        return mixed(batch, self._cfg, self._counts_C, self._seed, epoch)

    def evaluate(self, batch: Batch) -> Batch:
        """Normalizes uint8 [V, B, 3, S, S] to float32 [V, B, 3, S, S], and does nothing else."""
        return batch.with_images(self._normalize(batch.images_VBCHW))

    def _normalize(self, images: Tensor) -> Tensor:
        self._scale = self._scale.to(images.device)
        self._shift = self._shift.to(images.device)
        return ops.unit_range(images) * self._scale + self._shift
