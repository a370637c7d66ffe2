"""Boxes of random resized crops over whole original images, as functions of (seed, epoch, index, copy, view) and size.

A canvas holds the centered square of a photograph, and a crop of it less. So for large images the box of each view is
drawn over the original, from the same keyed numbers by which ``augment.transforms.resized_crop`` draws over a canvas: for a
square image of the canvas' size both give the same box.

Two forms: torchvision's ``RandomResizedCrop``, and the squares of LIFT+ (Shi et al. 2025, arXiv:2504.13282, and its code),
whose least area may grow to the whole image over training, by the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ATTEMPTS = 10
"""CropDraws of area and aspect, of which the first that fits is taken."""
ASPECTS = (3 / 4, 4 / 3)
PURPOSE = "resized_crop"
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 0.0,  # noqa: ARG005
    "linear": lambda t: t,
    "convex": lambda t: 1 - math.sqrt(1 - t**2),
    "concave": lambda t: math.sqrt(1 - (1 - t) ** 2),
}
"""Name -> how far the least area of a crop has grown to 1 when the share t of training is over: quarter circles and a line."""

Size = tuple[int, int]
"""(height, width) in pixels."""
Box = tuple[int, int, int, int]
"""(top, left, height, width) in whole pixels of the image it belongs to."""


@dataclass(frozen=True)
class Crop:
    """What one view shows of an original."""

    view: str
    min_area: float | None
    """Least share of the original's area; None is the largest centered square, always."""
    square: bool = False
    """Squares in place of aspects from 3/4 to 4/3."""
    schedule: str = "constant"
    """How ``min_area`` grows to 1 over training."""


def least_area(min_area: float, schedule: str, epoch: int, epochs: int) -> float:
    """Returns the least share of the area in an epoch: ``min_area`` in the first, and 1 in the last where it grows.

    A training of one epoch has ``min_area``. Whoever measures its speed may read further epochs, which are like the last.
    """
    return min_area + SCHEDULES[schedule](min(1.0, epoch / max(1, epochs - 1))) * (1 - min_area)


def random_square(numbers_n: Sequence[float], min_area: float, original: Size) -> Box:
    """Returns a random square with ``min_area``..1 of the area, at most as large as the shorter side.

    It is computed from the first and the last two of 22 numbers in [0, 1).
    """
    height, width = original
    most = min(original) ** 2 / (height * width)
    least = min(min_area, most)
    share = numbers_n[0] * (most - least) + least
    side = min(max(1, round(math.sqrt(share * (height * width)))), *original)
    top, left = int(numbers_n[-2] * (height - side + 1)), int(numbers_n[-1] * (width - side + 1))
    return top, left, side, side


def random_box(numbers_n: Sequence[float], min_area: float, original: Size) -> Box:
    """Returns a random box with ``min_area``..1 of the area and an aspect of 3/4..4/3.

    It is computed from 22 numbers in [0, 1). Like torchvision's ``RandomResizedCrop``, it is the first of ten draws
    that fits; else the largest centered box of an aspect in that range.
    """
    height, width = original
    low, high = map(math.log, ASPECTS)
    for area_share, aspect_share in zip(numbers_n[:ATTEMPTS], numbers_n[ATTEMPTS : 2 * ATTEMPTS], strict=True):
        area = (area_share * (1 - min_area) + min_area) * (height * width)
        aspect = math.exp(aspect_share * (high - low) + low)
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(numbers_n[-2] * (height - box_height + 1)), int(numbers_n[-1] * (width - box_width + 1))
            return top, left, box_height, box_width
    box_height, box_width = min(height, round(width / ASPECTS[0])), min(width, round(height * ASPECTS[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def centered_square(original: Size) -> Box:
    """Returns the largest centered square."""
    height, width = original
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def scaled(box: Box, original: Size, stored: Size) -> Box:
    """Returns the box on a copy of another size.

    Each edge is at the nearest pixel, and the box is at least one pixel high and wide.
    """
    (top, bottom), (left, right) = (
        _span(start, length, original[axis], stored[axis])
        for axis, (start, length) in enumerate(((box[0], box[2]), (box[1], box[3])))
    )
    return top, left, bottom - top, right - left


def _span(start: int, length: int, original: int, stored: int) -> tuple[int, int]:
    first = min(round(start * stored / original), stored - 1)
    return first, max(first + 1, round((start + length) * stored / original))
