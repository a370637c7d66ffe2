"""Stages of an augmentation: keyed draws for a batch, handed to the operations that apply them.

A stage takes uint8 images [B, 3, S, S] (from ``jitter`` on float32 in [0, 1], until ``eight_bits``) and returns the same.
It owns its draws: their purpose is the stage's name within its view, so taking a stage out never changes the numbers of
another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltcore import hashing
from ltcore.batch import to_device
from ltcore.data.augment import ops
from ltcore.data.images.boxes import ASPECTS, ATTEMPTS, PURPOSE

if TYPE_CHECKING:
    from ltcore.data.augment.augment import AugmentConfig


@dataclass(frozen=True, slots=True)
class Draw:
    """Uniform numbers for the samples of one batch in one view, drawn on the host."""

    seed: int
    epoch: int
    index_B: Tensor
    copy_B: Tensor
    view: str
    device: torch.device | str = "cpu"
    """Where the images are."""

    def __call__(self, purpose: str, n: int) -> list[Tensor]:
        """n columns, each float32 [B] in [0, 1), beside the images."""
        return list(to_device(self._draw(purpose, n), self.device).unbind(1))

    def host(self, purpose: str, n: int) -> list[Tensor]:
        """The same on the host: for choices among operations, whose samples are looked up there."""
        return list(self._draw(purpose, n).unbind(1))

    def _draw(self, purpose: str, n: int) -> Tensor:
        key = f"augment/{self.view}/{purpose}"
        return torch.from_numpy(
            hashing.uniform(self.seed, self.epoch, self.index_B.numpy(), self.copy_B.numpy(), key, n)
        )


Stage = Callable[[Tensor, Draw, "AugmentConfig"], Tensor]


def _integer(uniform_B: Tensor, count: int | Tensor) -> Tensor:
    """int64 [B], uniform over 0 .. count - 1."""
    return (uniform_B * count).long()


def _between(uniform_B: Tensor, low: float, high: float) -> Tensor:
    return uniform_B * (high - low) + low


def _on_rows(images: Tensor, rows: Tensor, apply: Callable[..., Tensor], *parameters_B: Tensor) -> None:
    """Applies an operation in place to the samples that drew it; ``rows`` is a host index, so none costs nothing."""
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
    """Random box with ``min_area``..1 of the area and aspect 3/4..4/3, enlarged to S x S.

    As torchvision's ``RandomResizedCrop``: the first of ten draws that fits, else the whole image. For images that are not
    square: ``ltcore.data.images.boxes``.
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


def cutout(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:
    """Sets one square of ``cutout_fraction`` of the side to 0, before normalization."""
    size = images.shape[-1]
    row, col = (_integer(u, size) for u in draw("cutout", 2))
    return ops.erase(images, row, col, round(cfg.cutout_fraction * size))


# --- AutoAugment and RandAugment

AFFINE_OPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
COLOR_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": lambda images, m: ops.brightness(images, 1 + 0.9 * m),
    "color": lambda images, m: ops.saturation(images, 1 + 0.9 * m),
    "contrast": lambda images, m: ops.contrast(images, 1 + 0.9 * m),
    "sharpness": lambda images, m: ops.sharpness(images, 1 + 0.9 * m),
    "posterize": lambda images, m: ops.posterize(images, 8 - (4 * m.abs()).round()),
    "solarize": lambda images, m: ops.solarize(images, 255 * (1 - m.abs())),
    "autocontrast": lambda images, m: ops.autocontrast(images),  # noqa: ARG005
    "equalize": lambda images, m: ops.equalize(images),  # noqa: ARG005
    "invert": lambda images, m: ops.invert(images),  # noqa: ARG005
    "timm_brightness": lambda images, m: ops.brightness(images, 0.1 + 1.8 * m.abs()),
    "timm_color": lambda images, m: ops.saturation(images, 0.1 + 1.8 * m.abs()),
    "timm_contrast": lambda images, m: ops.contrast(images, 0.1 + 1.8 * m.abs()),
    "timm_sharpness": lambda images, m: ops.sharpness(images, 0.1 + 1.8 * m.abs()),
    "timm_posterize": lambda images, m: ops.posterize(images, (4 * m.abs()).floor()),
    "timm_solarize": lambda images, m: ops.solarize(images, (256 * m.abs()).floor()),
    "timm_solarize_add": lambda images, m: ops.solarize_add(images, (110 * m.abs()).floor()),
}
"""Operations by name; ``m`` in [-1, 1] is the signed share of the largest magnitude. timm's know no sign, and three of them
change an image less the larger it is."""
OPS = ("identity", *AFFINE_OPS, *COLOR_OPS)
NUM_PAPER_OPS = OPS.index("invert")
"""RandAugment's own list: the first of ``OPS``."""
NUM_TIMM_OPS = len(AFFINE_OPS) + len(OPS) - OPS.index("autocontrast")
"""timm's list: the five affine operations, and all from 'autocontrast' on."""

CIFAR10_POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)
"""(operation, probability, magnitude 0..9): Cubuk et al. 2019, arXiv:1805.09501, table 7."""
_POLICY_OP_P2 = torch.tensor([[OPS.index(name) for name, _, _ in pair] for pair in CIFAR10_POLICY])
_POLICY_PROBABILITY_P2 = torch.tensor([[p for _, p, _ in pair] for pair in CIFAR10_POLICY])
_POLICY_LEVEL_P2 = torch.tensor([[level / 9 for _, _, level in pair] for pair in CIFAR10_POLICY])


def apply_op(images: Tensor, op_B: Tensor, op_host_B: Tensor, m_B: Tensor, fill: int) -> None:
    """In place, one operation per sample: ``OPS[op]`` at the signed magnitude ``m`` in [-1, 1].

    ``op_host_B`` is ``op_B`` on the host, where the samples of each operation are looked up without waiting for the
    device.
    """

    def move(picked: Tensor, op_b: Tensor, m_b: Tensor) -> Tensor:
        def only(name: str, value_b: Tensor) -> Tensor:
            return torch.where(op_b == OPS.index(name), value_b, 0.0)

        size = picked.shape[-1]
        pixels_b = (m_b * (150 / 331 * size)).trunc()
        source = ops.affine_map(
            size,
            degrees=only("rotate", m_b * 30),
            shear_x=only("shear_x", m_b * 0.3),
            shear_y=only("shear_y", m_b * 0.3),
            right=only("translate_x", pixels_b),
            down=only("translate_y", pixels_b),
        )
        return ops.affine(picked, source, fill)

    _on_rows(images, ((op_host_B >= 1) & (op_host_B <= len(AFFINE_OPS))).nonzero()[:, 0], move, op_B, m_B)
    for name, apply in COLOR_OPS.items():
        _on_rows(images, (op_host_B == OPS.index(name)).nonzero()[:, 0], apply, m_B)


def autoaugment(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:
    """One of the 25 sub-policies that AutoAugment found on CIFAR-10; signs are drawn where an operation has one."""
    u = draw.host("autoaugment", 5)
    policy_B = _integer(u[0], len(CIFAR10_POLICY))
    applied_B2 = torch.stack(u[1:3], 1) < _POLICY_PROBABILITY_P2[policy_B]
    op_B2 = _POLICY_OP_P2[policy_B] * applied_B2
    m_B2 = _POLICY_LEVEL_P2[policy_B] * _sign(torch.stack(u[3:5], 1))
    return _apply_rounds(images, op_B2, m_B2, cfg.fill)


def randaugment(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:
    """``randaugment_ops`` operations out of 14 in turn, each at the same magnitude (Cubuk et al. 2020,
    arXiv:1909.13719); with ``randaugment_variant='timm'`` out of the 15 of timm, which PaCo uses at 224 px.

    timm's 'm10-n2-mstd0.5' is magnitude 30 with ``randaugment_std`` 1.5 and ``randaugment_probability`` 0.5. Differs from it:
    pixels move to the nearest place (timm draws between bilinear and bicubic), and a translation reaches 150/331 of the side
    instead of 0.45.
    """
    n = cfg.randaugment_ops
    u_B2n = torch.stack(draw.host("randaugment", 2 * n), 1)
    if cfg.randaugment_variant == "timm":
        choice_Bn = _integer(u_B2n[:, :n], NUM_TIMM_OPS)
        first_other = OPS.index("autocontrast") - len(AFFINE_OPS)
        op_Bn = torch.where(choice_Bn < len(AFFINE_OPS), choice_Bn + 1, choice_Bn + first_other)
    else:
        op_Bn = _integer(u_B2n[:, :n], NUM_PAPER_OPS)
    m_Bn = torch.full_like(u_B2n[:, :n], cfg.randaugment_magnitude)
    if cfg.randaugment_std:
        u_B2n_noise = torch.stack(draw.host("randaugment_std", 2 * n), 1).double()
        radius_Bn, turn_Bn = (-2 * (1 - u_B2n_noise[:, :n]).log()).sqrt(), u_B2n_noise[:, n:]
        normal_Bn = radius_Bn * (2 * torch.pi * turn_Bn).cos()  # Box and Muller
        m_Bn = (m_Bn + cfg.randaugment_std * normal_Bn).clamp(0, 30).float()
    if cfg.randaugment_probability < 1:
        op_Bn = op_Bn * (torch.stack(draw.host("randaugment_probability", n), 1) < cfg.randaugment_probability)
    return _apply_rounds(images, op_Bn, _sign(u_B2n[:, n:]) * (m_Bn / 30), cfg.fill)


def _sign(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _apply_rounds(images: Tensor, op_BR: Tensor, m_BR: Tensor, fill: int) -> Tensor:
    """Operations and magnitudes are on the host."""
    images = images.clone()
    there_BR, m_BR = to_device(op_BR, images.device), to_device(m_BR, images.device)
    for r in range(op_BR.shape[1]):
        apply_op(images, there_BR[:, r], op_BR[:, r], m_BR[:, r], fill)
    return images


# --- the second view of SimCLR, MoCo v2 and PaCo


def color_jitter(*, hue: float, probability: float) -> Stage:
    """Brightness, contrast and saturation (0.6..1.4), and hue (+-``hue`` turns) where it is not 0, in an order of its
    own."""

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
    """Back to uint8, for operations that need it."""
    return (images * 255).round().to(torch.uint8)


def gray(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:  # noqa: ARG001
    """Gray with probability 0.2."""
    (u,) = draw("gray", 1)
    images = ops.unit_range(images)
    return torch.where(ops.column(u < 0.2), ops.grayscale(images), images)


def blur(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:  # noqa: ARG001
    """Gaussian blur with sigma 0.1..2 pixels, with probability 0.5."""
    u = draw.host("blur", 2)
    images = ops.unit_range(images).clone()
    sigma_B = to_device(_between(u[0], 0.1, 2.0), images.device)
    rows = (u[1] < 0.5).nonzero()[:, 0]
    _on_rows(images, rows, lambda picked, sigma_b: ops.blur(picked, sigma_b, radius=6), sigma_B)
    return images
