"""Five crops of an image: equal to torchvision's for squares, the corners of the whole image for all others."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from ltcore.data.images.five_crop import decode_five, enlarged, five_crops
from ltcore.errors import BadImageError


def smooth(height: int, width: int) -> np.ndarray:
    """Red rises from left to right, green from top to bottom."""
    image_3HW = np.zeros((3, height, width), np.uint8)
    image_3HW[0] = np.linspace(0, 255, width).round()[None]
    image_3HW[1] = np.linspace(0, 255, height).round()[:, None]
    return image_3HW


def of_torchvision(image_3HW: np.ndarray, image_size: int) -> np.ndarray:
    resized = tv.resize(torch.from_numpy(image_3HW), [enlarged(image_size)], antialias=True)
    return torch.stack(tv.five_crop(resized, [image_size])).numpy()


@pytest.mark.parametrize(("image_size", "side"), [(224, 248), (32, 35), (384, 425), (28, 31), (4, 5)])
def test_the_larger_copy_has_lifts_size_at_224_and_the_same_share_elsewhere(image_size: int, side: int) -> None:
    assert enlarged(image_size) == side


@pytest.mark.parametrize("side", [32, 224, 301])
def test_crops_of_a_square_are_torchvisions(side: int) -> None:
    image_3HW = np.random.default_rng(side).integers(0, 256, (3, side, side), dtype=np.uint8)
    for image_size in (32, 224):
        np.testing.assert_array_equal(five_crops(image_3HW, image_size), of_torchvision(image_3HW, image_size))


@pytest.mark.parametrize("size", [(120, 200), (200, 120), (96, 97)])
def test_crops_of_other_shapes_are_of_the_whole_image(size: tuple[int, int]) -> None:
    image_3HW = smooth(*size)
    crops = five_crops(image_3HW, 56)
    assert crops.shape == (5, 3, 56, 56) and crops.dtype == np.uint8
    difference = np.abs(crops.astype(int) - of_torchvision(image_3HW, 56).astype(int))
    assert difference.max() <= 3, "a fraction of a pixel: the whole copy has a whole number of them"
    left, right = crops[[0, 2], 0, :, 0], crops[[1, 3], 0, :, -1]
    top, bottom = crops[[0, 1], 1, 0], crops[[2, 3], 1, -1]
    assert left.max() <= 3 and top.max() <= 3 and right.min() >= 252 and bottom.min() >= 252


def test_a_line_of_pixels_takes_no_memory() -> None:
    crops = five_crops(np.zeros((3, 1, 60_000), np.uint8), 224)
    assert crops.shape == (5, 3, 224, 224)


def test_what_is_no_image_is_named() -> None:
    out = io.BytesIO()
    Image.fromarray(smooth(40, 30).transpose(1, 2, 0)).save(out, "PNG")
    np.testing.assert_array_equal(decode_five(out.getvalue(), 16, "x"), five_crops(smooth(40, 30), 16))
    with pytest.raises(BadImageError, match=r"photo 7: the image has 0 bytes"):
        decode_five(b"", 16, "photo 7")
