"""Stages of an augmentation: keyed draws for a batch, handed to the operations that apply them.

A stage takes uint8 images [B, 3, S, S] (from ``jitter`` on float32 in [0, 1], until ``eight_bits``) and returns the same.
It owns its draws: their purpose is the stage's name within its view, so taking a stage out never changes the numbers of
another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore import hashing
from ltcore.batch import to_device
from ltcore.data.augment import ops
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.images.boxes import ASPECTS, ATTEMPTS, PURPOSE


@dataclass(frozen=True, slots=True)
class Draw:
    """Uniform numbers for the samples of one batch in one view, drawn on the host.

    Also for images on a GPU: the numbers of a stage take 30 to 70 us there, while their integer arithmetic on the GPU
    (``rng.uniform``, the same numbers) is 90 operations, each a kernel to launch.
    """

    seed: int
    epoch: int
    index_B: Tensor
    copy_B: Tensor
    view: str
    device: torch.device | str = "cpu"
    """Where the images are."""

    def __call__(self, purpose: str, n: int) -> list[Tensor]:
        """Draws n columns, each float32 [B] in [0, 1), on the device of the images."""
        return list(to_device(self._draw(purpose, n), self.device).unbind(1))

    def host(self, purpose: str, n: int) -> list[Tensor]:
        """Draws the same columns on the host.

        They are for choices among operations, whose samples are looked up there.
        """
        return list(self._draw(purpose, n).unbind(1))

    def _draw(self, purpose: str, n: int) -> Tensor:
        key = f"augment/{self.view}/{purpose}"
        return torch.from_numpy(
            hashing.uniform(self.seed, self.epoch, self.index_B.numpy(), self.copy_B.numpy(), key, n)
        )


Stage = Callable[[Tensor, Draw, AugmentConfig], Tensor]


def _integer(uniform_B: Tensor, count: int | Tensor) -> Tensor:
    """Returns int64 [B], uniform over 0 .. count - 1."""
    return (uniform_B * count).long()


def _between(uniform_B: Tensor, low: float, high: float) -> Tensor:
    return uniform_B * (high - low) + low


def _on_rows(images: Tensor, rows: Tensor, apply: Callable[..., Tensor], *parameters_B: Tensor) -> None:
    """Applies an operation in place to the samples that drew it.

    ``rows`` is an index on the host, so an empty one costs nothing.
    """
    if len(rows):
        rows = to_device(rows, images.device)
        picked = apply(images.index_select(0, rows), *(p.index_select(0, rows) for p in parameters_B))
        images.index_copy_(0, rows, picked)


# --- geometry


def crop(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:  # noqa: ARG001
    """Pads S/8 zeros on each side (4 for 32 px) and crops S x S at random."""
    pad = images.shape[-1] // 8
    down, right = (_integer(u, 2 * pad + 1) - pad for u in draw("crop", 2))
    return ops.shift(images, down, right)


def flip(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:  # noqa: ARG001
    """Mirrors half of the images."""
    (u,) = draw("flip", 1)
    return ops.flip(images, u < 0.5)


def rotate15(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:
    """Rotates by up to 15 degrees either way (RIDE, SADE)."""
    (u,) = draw("rotate", 1)
    none = torch.zeros_like(u)
    degrees = _between(u, -15, 15)
    source = ops.affine_map(images.shape[-1], degrees=degrees, shear_x=none, shear_y=none, right=none, down=none)
    return ops.affine(images, source, cfg.fill)


def resized_crop(images: Tensor, draw: Draw, min_area: float) -> Tensor:
    """Enlarges a random box with ``min_area``..1 of the area and aspect 3/4..4/3 to S x S.

    Like torchvision's ``RandomResizedCrop``, it takes the first of ten draws that fits, else the whole image. For
    images that are not square: ``ltcore.data.images.boxes``.
    """
    size = images.shape[-1]
    columns = draw(PURPOSE, 2 * ATTEMPTS + 2)
    area = _between(torch.stack(columns[:ATTEMPTS], 1).double(), min_area, 1) * size**2
    aspect = _between(torch.stack(columns[ATTEMPTS:-2], 1).double(), *map(math.log, ASPECTS)).exp()
    width, height = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.long().argmax(1, keepdim=True)
    found = fits.any(1)
    width_B = torch.where(found, width.gather(1, first)[:, 0], size)
    height_B = torch.where(found, height.gather(1, first)[:, 0], size)
    top_B, left_B = _integer(columns[-2], size - height_B + 1), _integer(columns[-1], size - width_B + 1)
    return ops.resized_crop(images, top_B, left_B, height_B, width_B)


def square_crop(images: Tensor, draw: Draw, min_area: float) -> Tensor:
    """Enlarges a random square with ``min_area``..1 of the area to S x S."""
    size = images.shape[-1]
    columns = draw(PURPOSE, 2 * ATTEMPTS + 2)
    area_B = _between(columns[0].double(), min_area, 1) * size**2
    side_B = area_B.sqrt().round().long().clamp(1, size)
    top_B, left_B = _integer(columns[-2], size - side_B + 1), _integer(columns[-1], size - side_B + 1)
    return ops.resized_crop(images, top_B, left_B, side_B, side_B)


def cutout(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:
    """Sets one square of ``cutout_fraction`` of the side to 0, before normalization."""
    size = images.shape[-1]
    row, col = (_integer(u, size) for u in draw("cutout", 2))
    return ops.erase(images, row, col, round(cfg.cutout_fraction * size))


# --- the second view of SimCLR, MoCo v2 and PaCo


def color_jitter(*, hue: float, probability: float) -> Stage:
    """Returns a stage that changes brightness, contrast and saturation (0.6..1.4), and hue.

    Hue changes by up to +-``hue`` turns, where that is not 0. Each sample has its own order of these operations.
    """

    def stage(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:  # noqa: ARG001
        images = ops.unit_range(images).clone()
        host = draw.host("jitter", 9)
        u = to_device(torch.stack(host[:4], 1), images.device).unbind(1)
        changes: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = [
            (ops.brightness, _between(u[0], 0.6, 1.4)),
            (ops.contrast, _between(u[1], 0.6, 1.4)),
            (ops.saturation, _between(u[2], 0.6, 1.4)),
        ]
        if hue:
            changes.append((ops.shift_hue, _between(u[3], -hue, hue)))
        order_B4 = torch.stack(host[4:8], 1).argsort(dim=1, stable=True)
        host_B4 = torch.where((host[8] < probability)[:, None], order_B4, -1)
        for turn in range(4):
            for i, (change, parameter_B) in enumerate(changes):
                _on_rows(images, (host_B4[:, turn] == i).nonzero()[:, 0], change, parameter_B)
        return images

    return stage


jitter = color_jitter(hue=0.1, probability=0.8)
"""Of SimCLR and MoCo v2."""
jitter_no_hue = color_jitter(hue=0.0, probability=1.0)
"""Of the codes for ImageNet-LT: always, and the hue stays."""


def eight_bits(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:  # noqa: ARG001
    """Converts images back to uint8, for operations that need it; images that are uint8 stay as they are."""
    return images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)


def gray(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:  # noqa: ARG001
    """Makes images gray with probability 0.2."""
    (u,) = draw("gray", 1)
    images = ops.unit_range(images)
    return torch.where(ops.column(u < 0.2), ops.grayscale(images), images)


def blur(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:  # noqa: ARG001
    """Blurs images with probability 0.5, by a Gaussian with sigma 0.1..2 pixels."""
    u = draw.host("blur", 2)
    images = ops.unit_range(images).clone()
    sigma_B = to_device(_between(u[0], 0.1, 2.0), images.device)
    rows = (u[1] < 0.5).nonzero()[:, 0]
    _on_rows(images, rows, lambda picked, sigma_b: ops.blur(picked, sigma_b, radius=6), sigma_B)
    return images
