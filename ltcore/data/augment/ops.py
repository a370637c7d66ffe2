"""Image operations on a batch, with one parameter per sample.

Images are [B, 3, S, S], uint8 in 0..255; those that say so also take float32 in [0, 1]. Parameters are [B]. The
meaning of every operation is that of ``torchvision.transforms.v2.functional`` for uint8 tensors (nearest neighbor for
affine maps, results cut towards zero), where one call treats one image.

Every operation is elementwise, a gather, an interpolation at one point, or a sum of integers, so the result for a
sample does not depend on the rest of the batch, not even in its last bit. For the same reason no fused multiply-add
(``alpha=``, ``addcmul``, ``lerp``) is used: its rounding differs between a vectorized loop and the loop's tail.
Parameters that need a transcendental function are computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, with torchvision's rounding
_FIXED_POINT = 65536  # steps per unit for exact sums of [0, 1] values


def column(parameter_B: Tensor) -> Tensor:
    """Views [B] as [B, 1, 1, 1]."""
    return parameter_B[:, None, None, None]


def unit_range(images: Tensor) -> Tensor:
    """Scales images to float32 in [0, 1]; float images pass unchanged."""
    return images if images.is_floating_point() else images.to(torch.float32) * (1 / 255)


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Returns float32 [3, 1, 1] factors and summands that normalize images in [0, 1]."""
    mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return std_C.reciprocal().float()[:, None, None], (-mean_C / std_C).float()[:, None, None]


# --- geometry


def take_pixels(images: Tensor, row: Tensor, col: Tensor, fill: int) -> Tensor:
    """Returns images[b, :, row[b, i, j], col[b, i, j]]; ``fill`` where that lies outside.

    row and col broadcast to [B, S, S].
    """
    batch, channels, size, _ = images.shape
    inside = (row >= 0) & (row < size) & (col >= 0) & (col < size)
    flat = row.clamp(0, size - 1) * size + col.clamp(0, size - 1)
    source = flat.reshape(batch, 1, size * size).expand(-1, channels, -1)
    taken = images.flatten(2).gather(2, source).view_as(images)
    return taken.masked_fill(~inside[:, None], fill)


def shift(images: Tensor, down_B: Tensor, right_B: Tensor) -> Tensor:
    """Moves the window by whole pixels: a crop of the zero-padded image at offset (down, right)."""
    at = torch.arange(images.shape[-1], device=images.device)
    return take_pixels(images, (at + down_B[:, None])[:, :, None], (at + right_B[:, None])[:, None, :], 0)


def flip(images: Tensor, flip_B: Tensor) -> Tensor:
    """Mirrors left and right where ``flip_B``."""
    return torch.where(column(flip_B), images.flip(-1), images)


def affine_map(size: int, *, degrees: Tensor, shear_x: Tensor, shear_y: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Returns float32 [B, 2, 3]: the source of each output pixel, in pixels from the image center.

    Rotation is counter-clockwise about the center, shear keeps the top left corner, translation is in pixels; only one
    of the three kinds may differ from 0 in a sample.
    """
    angle = torch.deg2rad(degrees.double())
    cos, sin, half = angle.cos(), angle.sin(), size / 2
    x = torch.stack((cos, shear_x - sin, shear_x * half - right), 1)
    y = torch.stack((sin + shear_y, cos, shear_y * half - down), 1)
    return torch.stack((x, y), 1).float()


def affine(images: Tensor, map_B23: Tensor, fill: int) -> Tensor:
    """Resamples each image to the nearest neighbor at ``map @ (x, y, 1)``."""
    size = images.shape[-1]
    center = (size - 1) / 2
    at = torch.arange(size, device=images.device, dtype=torch.float32) - center
    m = map_B23[:, :, :, None, None]
    col = at * m[:, 0, 0] + at[:, None] * m[:, 0, 1] + m[:, 0, 2] + center
    row = at * m[:, 1, 0] + at[:, None] * m[:, 1, 1] + m[:, 1, 2] + center
    return take_pixels(images, row.round().long(), col.round().long(), fill)


def resized_crop(images: Tensor, top_B: Tensor, left_B: Tensor, height_B: Tensor, width_B: Tensor) -> Tensor:
    """Enlarges the box of each image to S x S, bilinearly and rounded to uint8.

    Nothing outside the box is read.
    """
    size = images.shape[-1]
    center = torch.arange(size, device=images.device) + 0.5

    def sources(start_B: Tensor, length_B: Tensor) -> Tensor:
        """[B, S] source coordinates in [-1, 1], kept between the first and the last pixel center of the span."""
        length = length_B[:, None]
        inside = torch.minimum((center * (length / size) - 0.5).clamp_min(0), length - 1.0)
        return ((inside + start_B[:, None]) * 2 + 1) / size - 1

    row, col = sources(top_B, height_B)[:, :, None], sources(left_B, width_B)[:, None, :]
    grid = torch.stack(torch.broadcast_tensors(col, row), -1)
    return F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False).round().to(torch.uint8)


def erase(images: Tensor, row_B: Tensor, col_B: Tensor, side: int) -> Tensor:
    """Sets a square to 0. (row, col) is its center; what lies outside the image is lost (Cutout, arXiv:1708.04552)."""
    at = torch.arange(images.shape[-1], device=images.device)
    low = side // 2

    def inside(center_B: Tensor) -> Tensor:
        offset = at - center_B[:, None]
        return (offset >= -low) & (offset < side - low)

    hole = inside(row_B)[:, None, :, None] & inside(col_B)[:, None, None, :]
    return images.masked_fill(hole, 0)


# --- color, uint8 or float


def _blend(images: Tensor, other: Tensor | float, factor_B: Tensor) -> Tensor:
    """Returns factor * images + (1 - factor) * other, in the range and the type of ``images``."""
    top = 1.0 if images.is_floating_point() else 255.0
    factor = column(factor_B)
    return (images * factor + (1 - factor) * other).clamp(0, top).to(images.dtype)


def luma(images: Tensor) -> Tensor:
    """Returns the brightness as float32 [B, 1, S, S], in the range of the images."""
    red, green, blue = images.to(torch.float32).split(1, 1)
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def brightness(images: Tensor, factor_B: Tensor) -> Tensor:
    """Changes the brightness of uint8 or float images: 0 is black, 1 the image itself."""
    return _blend(images, 0.0, factor_B)


def contrast(images: Tensor, factor_B: Tensor) -> Tensor:
    """Changes the contrast of uint8 or float images: 0 is the mean gray, 1 the image itself.

    The mean is a sum of integers (for float images of 2^-16 steps), so the result does not depend on the order of
    summation.
    """
    steps = _FIXED_POINT if images.is_floating_point() else 1
    total_B = (luma(images) * steps).floor().long().sum((1, 2, 3))
    mean_B = total_B.float() / (steps * images.shape[-1] * images.shape[-2])
    return _blend(images, column(mean_B), factor_B)


def saturation(images: Tensor, factor_B: Tensor) -> Tensor:
    """Changes the saturation of uint8 or float images: 0 is gray, 1 the image itself."""
    gray = luma(images)
    return _blend(images, gray if images.is_floating_point() else gray.floor(), factor_B)


# --- color, uint8


def sharpness(images: Tensor, factor_B: Tensor) -> Tensor:
    """Changes the sharpness: 0 is the smoothed image, 1 the image itself.

    The smoothing kernel is [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; the outermost pixels stay.
    """
    exact = images.float()
    rows = exact[:, :, :-2] + exact[:, :, 1:-1] + exact[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = images[:, :, 1:-1, 1:-1]
    out = images.clone()
    out[:, :, 1:-1, 1:-1] = _blend(inner, ((box + inner * 4.0) / 13).round(), factor_B)
    return out


def posterize(images: Tensor, bits_B: Tensor) -> Tensor:
    """Keeps the ``bits`` highest bits of every value."""
    mask_B = (255 << (8 - bits_B.long())) & 255
    return images & column(mask_B.to(torch.uint8))


def solarize(images: Tensor, threshold_B: Tensor) -> Tensor:
    """Inverts values from ``threshold`` on."""
    return torch.where(images >= column(threshold_B), 255 - images, images)


def solarize_add(images: Tensor, add_B: Tensor) -> Tensor:
    """Adds ``add`` to values below 128, at most to 255."""
    brighter = (images.to(torch.int16) + column(add_B.to(torch.int16))).clamp(max=255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


def invert(images: Tensor) -> Tensor:
    return 255 - images


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel to 0..255; a constant channel stays."""
    low, high = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()
    constant = high == low
    scale = ((high - low) * (1 / 255)).masked_fill(constant, 1)
    return ((images - low.masked_fill(constant, 0)) / scale).clamp(0, 255).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Equalizes each channel's histogram by PIL's integer table; a channel too flat for a table stays."""
    values = images.flatten(2).long()  # [B, 3, P]
    ones = torch.ones((), dtype=torch.int64, device=images.device).expand_as(values)
    counts = values.new_zeros((*values.shape[:2], 256)).scatter_add_(2, values, ones)
    brightest = values.amax(2, keepdim=True)
    step = (values.shape[2] - counts.gather(2, brightest)) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp_min(1)).clamp_max(255)
    equalized = table.gather(2, values).to(torch.uint8)
    return torch.where(step > 0, equalized, images.flatten(2)).view_as(images)


# --- color and blur, float32 in [0, 1]


def grayscale(images: Tensor) -> Tensor:
    """Returns three equal channels."""
    return luma(images).expand_as(images)


def shift_hue(images: Tensor, turns_B: Tensor) -> Tensor:
    """Rotates the hue by a fraction of the color circle; saturation and value of HSV are kept.

    Uses value - range * clamp(min(k, 4 - k), 0, 1) with k = (n + 6 h) mod 6 for n = 5, 3, 1, the closed form of HSV to
    RGB.
    """
    red, green, blue = images.split(1, 1)
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    spread = value - low
    divisor = spread.masked_fill(spread == 0, 1)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    start = (5 - 2 * torch.arange(3, device=images.device, dtype=images.dtype))[None, :, None, None]
    k = start + sixths + column(turns_B * 6)
    k = k - (k / 6).floor() * 6
    return value - spread * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(images: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
    """Applies a Gaussian blur, cut at ``radius`` pixels; the border is continued by its last pixel."""
    distance = torch.arange(radius + 1, device=images.device, dtype=torch.float64)
    weights = (-0.5 * (distance / sigma_B.double()[:, None]).square()).exp()
    weights = (weights / (2 * weights.sum(1, keepdim=True) - 1)).float()  # the center counts once
    size = images.shape[-1]
    for dim in (2, 3):
        padded = F.pad(images, (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0), mode="replicate")
        total = images * column(weights[:, 0])
        for d in range(1, radius + 1):
            pair = padded.narrow(dim, radius - d, size) + padded.narrow(dim, radius + d, size)
            total = total + pair * column(weights[:, d])
        images = total
    return images
