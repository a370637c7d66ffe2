"""Random resized crops of large images, cut by the reader: one canvas per view, out of the original.

The boxes (``ltcore.data.images.boxes``) are the same in every loader. Pixels come from the original where it is decoded anew
(threads, ray) and from the copy that the cache keeps, which may be smaller: then the box's edges move to that copy's
nearest pixels. Where the copy has the original's size both are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ltcore.data.images.boxes import (
    ATTEMPTS,
    PURPOSE,
    Box,
    Crop,
    Size,
    centered_square,
    least_area,
    random_box,
    random_square,
    scaled,
)
from ltcore.data.images.decode import Pixels, decode_image, resample, size_of, to_canvas
from ltcore.data.loading.sampler import Rows
from ltcore.data.loading.samples import BadSamples, RowReader, decode_each
from ltcore.framing import OWN_WAY, Framing
from ltcore.hashing import uniform


@dataclass(frozen=True)
class Cropped:
    """Canvases as a reader delivers them, and where they come from."""

    canvases_VB3SS: Pixels
    boxes_VB4: npt.NDArray[np.int64]
    """(top, left, height, width) in pixels of the originals."""


def cut(
    images: Iterable[tuple[Pixels, Size]],
    draws: CropDraws,
    num_rows: int,
    image_size: int,
    framing: Framing = OWN_WAY,
) -> Cropped:
    """Cuts one canvas per view out of each image.

    The images are in batch order, each with the size of its original. Random crops take only the interpolation of
    ``framing``.
    """
    made = Cropped(
        np.empty((draws.num_views, num_rows, 3, image_size, image_size), np.uint8),
        np.empty((draws.num_views, num_rows, 4), np.int64),
    )
    for position, (image_3hw, original) in enumerate(images):
        for view, box in enumerate(draws.boxes(position, original)):
            if framing != OWN_WAY and draws.is_whole(view):
                canvas_3SS = to_canvas(image_3hw, image_size, framing)
            else:
                here = scaled(box, original, size_of(image_3hw))
                canvas_3SS = resample(image_3hw, here, (image_size, image_size), framing.interpolation)
            made.canvases_VB3SS[view, position] = canvas_3SS
            made.boxes_VB4[view, position] = box
    return made


def decode_crops(
    store: RowReader,
    split: str,
    index_n: npt.NDArray[np.int64],
    image_size: int,
    draws: CropDraws,
    bad: BadSamples | None,
    framing: Framing = OWN_WAY,
) -> Cropped:
    """Cuts one canvas per view of each sample out of its original; ``bad`` as for ``decode_each``."""
    images = decode_each(store, split, index_n, decode_image, bad)
    sized = ((image_3HW, size_of(image_3HW)) for image_3HW in images)
    return cut(sized, draws, len(index_n), image_size, framing)


class CropDraws:
    """The boxes of one batch: numbers drawn at once, boxes made one by one as the sizes of the originals become known."""

    def __init__(self, crops: Sequence[Crop], seed: int, epoch: int, rows: Rows, *, epochs: int = 1) -> None:
        """Draws the numbers of ``rows``; ``epochs`` is the length of training, by which least areas grow."""
        self._crops = crops
        self._least = [
            None if crop.min_area is None else least_area(crop.min_area, crop.schedule, epoch, epochs) for crop in crops
        ]
        self._numbers_VBn = [
            uniform(seed, epoch, rows.index_B, rows.copy_B, f"augment/{crop.view}/{PURPOSE}", 2 * ATTEMPTS + 2)
            for crop in crops
        ]

    @property
    def num_views(self) -> int:
        return len(self._crops)

    def is_whole(self, view: int) -> bool:
        """Tells whether a view is the canvas of the whole image."""
        return self._crops[view].min_area is None

    def boxes(self, position: int, original: Size) -> list[Box]:
        """Returns one box per view, for the sample at ``position`` of the batch."""
        boxes = []
        for crop, least, numbers_Bn in zip(self._crops, self._least, self._numbers_VBn, strict=True):
            if least is None:
                boxes.append(centered_square(original))
            else:
                draw = random_square if crop.square else random_box
                boxes.append(draw(numbers_Bn[position].tolist(), least, original))
        return boxes
