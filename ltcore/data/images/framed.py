"""Whole images on a canvas as timm's evaluation has them, pixel for pixel: torch would round up to 2 levels otherwise."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from ltcore.framing import Framing

Pixels = npt.NDArray[np.uint8]
MOST_ASPECT = 16
"""Longer images are cut to it at their center first: resized whole, a line of pixels would take gigabytes."""
_BY_PIL = {None: Image.Resampling.BILINEAR, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def framed(image_3HW: Pixels, side: int, framing: Framing) -> Pixels:
    """Returns the canvas [3, S, S] of a whole image, equal to that of ``timm.data.create_transform``'s evaluation."""
    height, width = image_3HW.shape[1:]
    most = MOST_ASPECT * min(height, width)
    if framing.crop_mode == "center" and max(height, width) > most:
        image_3HW = _center(image_3HW, (min(height, most), min(width, most)))
        height, width = image_3HW.shape[1:]
    resized_3hw = _resized(image_3HW, _resized_size((height, width), side, framing), framing.interpolation)
    return np.ascontiguousarray(_center(_filled(resized_3hw, side, framing.fill), (side, side)))


def _resized(image_3HW: Pixels, size: tuple[int, int], interpolation: str | None) -> Pixels:
    """Returns the image at another (height, width), resized by PIL with antialiasing."""
    height, width = size
    image = Image.fromarray(np.ascontiguousarray(image_3HW.transpose(1, 2, 0)))
    return np.asarray(image.resize((width, height), _BY_PIL[interpolation])).transpose(2, 0, 1)


def _resized_size(size: tuple[int, int], side: int, framing: Framing) -> tuple[int, int]:
    """Returns the (height, width) to which the whole image is resized; roundings are those of torchvision and timm."""
    target = max(1, math.floor(side / framing.crop_fraction))
    if framing.crop_mode == "squash":
        return target, target
    height, width = size
    if framing.crop_mode == "border":
        ratio = max(height, width) / target
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    if height <= width:
        return target, int(target * width / height)
    return int(target * height / width), target


def _filled(image_3HW: Pixels, side: int, fill: tuple[int, int, int]) -> Pixels:
    """Adds borders where the image is smaller than the canvas; of an odd number of pixels, one more at the end."""
    missing = [max(0, side - length) for length in image_3HW.shape[1:]]
    if not any(missing):
        return image_3HW
    height, width = (length + more for length, more in zip(image_3HW.shape[1:], missing, strict=True))
    filled_3HW = np.empty((3, height, width), np.uint8)
    filled_3HW[:] = np.array(fill, np.uint8)[:, None, None]
    top, left = missing[0] // 2, missing[1] // 2
    filled_3HW[:, top : top + image_3HW.shape[1], left : left + image_3HW.shape[2]] = image_3HW
    return filled_3HW


def _center(image_3HW: Pixels, size: tuple[int, int]) -> Pixels:
    """Returns the center, rounded as torchvision's CenterCrop does."""
    top, left = (round((length - wanted) / 2) for length, wanted in zip(image_3HW.shape[1:], size, strict=True))
    return image_3HW[:, top : top + size[0], left : left + size[1]]
