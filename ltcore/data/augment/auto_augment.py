"""AutoAugment and RandAugment: their operations, policies and strengths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltcore.batch import to_device
from ltcore.data.augment import ops
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.transforms import Draw, _integer, _on_rows

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
    """Applies one operation per sample in place: ``OPS[op]`` at the signed magnitude ``m`` in [-1, 1].

    ``op_host_B`` is ``op_B`` on the host, where the samples of each operation are looked up without waiting for the
    device.
    """

    def move(picked: Tensor, op_b: Tensor, m_b: Tensor) -> Tensor:
        def only(name: str, value_b: Tensor) -> Tensor:
            return torch.where(op_b == OPS.index(name), value_b, 0.0)

        size = picked.shape[-1]
        pixels_b = (
            m_b * (150 / 331 * size)
        ).round()  # as PIL, which the authors' codes use, moves to the nearest pixel
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
    """Applies one of the 25 sub-policies that AutoAugment found on CIFAR-10.

    Signs are drawn where an operation has one. The policy with its probabilities, magnitudes and whole pixels is that of
    the code that PaCo and DRO-LT ship. Two things differ from it: shears take the nearest pixel (theirs are bicubic), and
    rotations go both ways, as in the paper (theirs are all counter-clockwise).
    """
    u = draw.host("autoaugment", 5)
    policy_B = _integer(u[0], len(CIFAR10_POLICY))
    applied_B2 = torch.stack(u[1:3], 1) < _POLICY_PROBABILITY_P2[policy_B]
    op_B2 = _POLICY_OP_P2[policy_B] * applied_B2
    m_B2 = _POLICY_LEVEL_P2[policy_B] * _sign(torch.stack(u[3:5], 1))
    return _apply_rounds(images, op_B2, m_B2, cfg.fill)


def randaugment(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:
    """Applies ``randaugment_ops`` operations of 14 in turn, each at the same magnitude.

    Source: Cubuk et al. 2020, arXiv:1909.13719. With ``randaugment_variant='timm'`` operations come from the 15 of
    timm, which PaCo uses at 224 px.

    timm's 'm10-n2-mstd0.5' is magnitude 30 with ``randaugment_std`` 1.5 and ``randaugment_probability`` 0.5. Two things
    differ from it: pixels move to the nearest place (timm draws between bilinear and bicubic), and a translation
    reaches 150/331 of the side instead of 0.45.
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
    """Applies the operations of each round in turn, to a copy; operations and magnitudes are on the host."""
    images = images.clone()
    there_BR, m_BR = to_device(op_BR, images.device), to_device(m_BR, images.device)
    for r in range(op_BR.shape[1]):
        apply_op(images, there_BR[:, r], op_BR[:, r], m_BR[:, r], fill)
    return images
