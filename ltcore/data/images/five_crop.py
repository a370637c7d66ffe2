"""Five crops of one image, for predictions that are averaged over them: its four corners and its center.

Sizes, for canvases of S px: the short side of the image is resized to S + 3/28 S (24 px more at S = 224), and of that the
crops are S px wide and high. The corners are those of the whole image, not of its centered square.

Source: LIFT, Shi et al., ICML 2024, arXiv:2309.10019, and its code ('tte': Resize(S + 24), FiveCrop(S), mean of the logits).
Differs: LIFT adds 24 px at every S, here it is the same share of it. An image that is not square is not resized as a whole,
which a line of pixels would make too large: the squares at both of its ends and in its middle are resized, each as the
centered square is in plain evaluation. For square images the crops are torchvision's, bit by bit.
"""

from __future__ import annotations

import numpy as np

from ltcore.data.images.boxes import centered_square
from ltcore.data.images.decode import Pixels, decode_image, size_of, to_canvas
from ltcore.framing import OWN_WAY, Framing

NUM_CROPS = 5
_MARGIN = 3 / 28


def enlarged(image_size: int) -> int:
    """Returns the side of which crops of ``image_size`` px are cut: 248 for 224, and at least one pixel more."""
    return image_size + max(1, round(image_size * _MARGIN))


def five_crops(image_3HW: Pixels, image_size: int, framing: Framing = OWN_WAY) -> Pixels:
    """Returns [5, 3, S, S]: top left, top right, bottom left, bottom right, center.

    Of ``framing`` the interpolation counts; crop fraction and crop mode say how a single crop would be cut.
    """
    size, side = image_size, enlarged(image_size)
    height, width = size_of(image_3HW)
    resized = Framing(framing.interpolation)
    short, low, middle = min(height, width), side - size, round((side - size) / 2)

    def square(top: int, left: int) -> Pixels:
        return to_canvas(image_3HW[:, top : top + short, left : left + short], side, resized)

    first = square(0, 0)
    last = first if height == width else square(height - short, width - short)
    top, left, *_ = centered_square((height, width))
    center = first if height == width else square(top, left)
    right, bottom = (last, first) if width > height else (first, last)  # where the other ends of the first corner are
    crops = (
        first[:, :size, :size],
        right[:, :size, low:],
        bottom[:, low:, :size],
        last[:, low:, low:],
        center[:, middle : middle + size, middle : middle + size],
    )
    return np.stack(crops)


def decode_five(data: bytes, image_size: int, where: str, framing: Framing = OWN_WAY) -> Pixels:
    """Decodes an image to its five crops [5, 3, S, S]; ``where`` names it in the DataError that a bad one raises."""
    return five_crops(decode_image(data, where), image_size, framing)
