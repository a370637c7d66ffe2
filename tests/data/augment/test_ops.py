"""Every operation against torchvision's, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from ltcore.data.augment import ops

B, S = 10, 32
U = torch.rand(B, generator=torch.Generator().manual_seed(7))


def pictures() -> Tensor:
    """uint8 [B, 3, S, S]: noise, smooth ramps of little contrast, and constants."""
    noise = torch.randint(0, 256, (4, 3, S, S), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(S)[None, None, :, None] * 3 + torch.arange(S) + torch.tensor([40, 20, 90])[None, :, None, None]
    ramps = torch.cat([ramp, ramp.flip(2), ramp // 4 + 60, ramp % 7]).to(torch.uint8)
    constants = torch.tensor([0, 200], dtype=torch.uint8)[:, None, None, None].expand(2, 3, S, S)
    return torch.cat([noise, ramps, constants])


def largest_difference(mine: Tensor, apply: Callable[[Tensor, float], Tensor], images: Tensor, values: Tensor) -> float:
    theirs = torch.stack([apply(image, value) for image, value in zip(images, values.tolist(), strict=True)])
    assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
    return (mine.double() - theirs.double()).abs().max().item()


@pytest.mark.parametrize(
    "mine, theirs",
    [
        (ops.brightness, tv.adjust_brightness),
        (ops.contrast, tv.adjust_contrast),
        (ops.saturation, tv.adjust_saturation),
    ],
)
def test_blends_of_both_types(
    mine: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, float], Tensor]
) -> None:
    images, factors = pictures(), U * 2
    # 1: torchvision's fused multiply-add rounds once where this rounds twice, before cutting to an integer
    assert largest_difference(mine(images, factors), theirs, images, factors) <= 1
    floats = ops.unit_range(images)
    # 2^-16: the mean of `contrast` is counted in these steps
    assert largest_difference(mine(floats, factors), theirs, floats, factors) < 2 * 2**-16


def test_sharpness() -> None:
    images, factors = pictures(), U * 2
    assert largest_difference(ops.sharpness(images, factors), tv.adjust_sharpness, images, factors) <= 1


def test_posterize_solarize_invert() -> None:
    images = pictures()
    bits = torch.arange(B) % 9
    assert largest_difference(ops.posterize(images, bits), lambda x, v: tv.posterize(x, int(v)), images, bits) == 0
    levels = (U * 255).round()
    assert largest_difference(ops.solarize(images, levels), tv.solarize, images, levels) == 0
    assert torch.equal(ops.invert(images), tv.invert(images))


def test_autocontrast_and_equalize() -> None:
    images = pictures()
    assert torch.equal(ops.equalize(images), torch.stack([tv.equalize(image) for image in images]))
    difference = ops.autocontrast(images).int() - torch.stack([tv.autocontrast(image) for image in images]).int()
    assert difference.abs().max() <= 1  # a quotient on the edge of an integer


def test_hue_and_gray() -> None:
    floats = ops.unit_range(pictures())
    turns = U - 0.5
    assert largest_difference(ops.shift_hue(floats, turns), tv.adjust_hue, floats, turns) < 1e-5
    torch.testing.assert_close(ops.grayscale(floats), tv.rgb_to_grayscale(floats, num_output_channels=3))
    torch.testing.assert_close(ops.shift_hue(floats, torch.zeros(B)), floats)


def test_blur_inside_and_at_the_border() -> None:
    floats = ops.unit_range(pictures())
    sigma = 0.1 + 1.9 * U
    mine = ops.blur(floats, sigma, radius=6)

    def theirs(image: Tensor, value: float) -> Tensor:
        padded = torch.nn.functional.pad(image[None], (12, 12, 12, 12), mode="replicate")[0]
        return tv.gaussian_blur(padded, [13, 13], [value, value])[:, 12:-12, 12:-12]

    assert largest_difference(mine, theirs, floats, sigma) < 1e-5
    torch.testing.assert_close(mine[-1], floats[-1])  # a constant image stays


@pytest.mark.parametrize("fill", [0, 128])
@pytest.mark.parametrize("kind", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_affine(kind: str, fill: int) -> None:
    images = pictures()
    amount = {"rotate": (U - 0.5) * 60, "translate_x": (U * 30).trunc() - 15, "translate_y": (U * 30).trunc() - 15}
    values = amount.get(kind, (U - 0.5) * 0.6)
    none = torch.zeros(B)
    names = {"rotate": "degrees", "translate_x": "right", "translate_y": "down"}
    arguments = {"degrees": none, "shear_x": none, "shear_y": none, "right": none, "down": none}
    arguments[names.get(kind, kind)] = values
    mine = ops.affine(images, ops.affine_map(S, **arguments), fill)
    common = {"interpolation": InterpolationMode.NEAREST, "fill": [fill] * 3}
    for b, value in enumerate(values.tolist()):
        if kind == "rotate":
            expected = tv.rotate(images[b], value, **common)
        else:
            shear = math.degrees(math.atan(value))
            expected = tv.affine(
                images[b],
                angle=0.0,
                translate=[int(value) * (kind == "translate_x"), int(value) * (kind == "translate_y")],
                scale=1.0,
                shear=[shear * (kind == "shear_x"), shear * (kind == "shear_y")],
                center=[0, 0],
                **common,
            )
        unequal = (mine[b] != expected).float().mean().item()
        # a source that lies exactly between two pixels goes either way by the last bit of float32
        assert unequal == 0 if kind.startswith("translate") else unequal < 0.005, (b, value, unequal)


def test_shift_is_a_crop_of_the_padded_image() -> None:
    images = pictures()
    down, right = torch.arange(B) % 9 - 4, torch.arange(B) * 2 % 9 - 4
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    mine = ops.shift(images, down, right)
    for b in range(B):
        top, left = 4 + int(down[b]), 4 + int(right[b])
        assert torch.equal(mine[b], padded[b, :, top : top + S, left : left + S])


def test_flip_only_where_asked() -> None:
    images = pictures()
    mine = ops.flip(images, U < 0.5)
    for b in range(B):
        assert torch.equal(mine[b], tv.horizontal_flip(images[b]) if U[b] < 0.5 else images[b])


def test_resized_crop_never_reads_outside_its_box() -> None:
    images = pictures()
    height, width = (8 + U * 25).long(), (32 - U * 25).long()
    top, left = ((S - height) * U).long(), ((S - width) * (1 - U)).long()
    mine = ops.resized_crop(images, top, left, height, width)
    assert mine.dtype == torch.uint8
    for b in range(B):
        box = [int(top[b]), int(left[b]), int(height[b]), int(width[b])]
        expected = tv.resized_crop(images[b].float(), *box, [S, S], antialias=False)
        assert (mine[b].float() - expected).abs().max() <= 0.5 + 2e-3
    whole = torch.full((B,), S)
    assert torch.equal(ops.resized_crop(images, whole * 0, whole * 0, whole, whole), images)


@pytest.mark.parametrize("side", [16, 7, 32])
def test_erase(side: int) -> None:
    images = pictures() | 1
    row, col = torch.arange(B) * 3 % S, torch.arange(B) * 7 % S
    mine = ops.erase(images, row, col, side)
    for b in range(B):
        expected = images[b].clone()
        top, left = int(row[b]) - side // 2, int(col[b]) - side // 2
        expected[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0
        assert torch.equal(mine[b], expected)
