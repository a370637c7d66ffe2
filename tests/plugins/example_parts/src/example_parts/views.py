"""Two augmentations: one of one's own, one that adds to ours."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore import Draw, plugins
from ltcore.data.augment import transforms
from ltcore.data.augment.config import AugmentConfig


@plugins.augmentation("channel_drop", summary="sets one of the three channels to 0, in half of the images")
def channel_drop(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:
    """Returns the images without one channel."""
    which, whether = draw("channel", 2)
    dropped = (torch.arange(3, device=images.device) == (which * 3).long()[:, None]) & (whether < 0.5)[:, None]
    return images.masked_fill(dropped[:, :, None, None], 0)


@plugins.augmentation("rrc_drop", summary="random square, flip, and the same", min_area=0.4, square=True)
def rrc_drop(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:
    """Returns flipped images without one channel."""
    return channel_drop(transforms.flip(images, draw, cfg), draw, cfg)
