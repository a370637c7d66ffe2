"""Canvases as timm's evaluation has them, pixel for pixel, and which of them are ours."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ltcore.data.config import DataConfig
from ltcore.data.images.decode import decode_canvas, resample, to_canvas
from ltcore.data.images.framed import MOST_ASPECT, framed
from ltcore.data.images.given import canvas_of
from ltcore.data.prep import framing_of
from ltcore.framing import OWN_WAY, Framing

SIZES = [(37, 53), (101, 64), (33, 33), (64, 131), (97, 20), (240, 179)]
MEAN = (0.485, 0.456, 0.406)


def noise(height: int, width: int) -> np.ndarray:
    """Smooth enough that a wrong place of a pixel shows, and a wrong filter too."""
    coarse = np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8
    )
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fraction", [1.0, 0.95, 0.875, 1.15])
def test_equals_timm(mode: str, interpolation: str, fraction: float) -> None:
    data = pytest.importorskip("timm.data")
    framing = framing_of(DataConfig(interpolation=interpolation, crop_fraction=fraction, crop_mode=mode), MEAN)
    for side in (32, 71):
        theirs = data.create_transform(
            side, interpolation=interpolation, mean=MEAN, crop_pct=fraction, crop_mode=mode, normalize=False
        )
        for size in SIZES:
            pixels = noise(*size)
            expected = theirs(Image.fromarray(pixels)).numpy()
            np.testing.assert_array_equal(to_canvas(pixels.transpose(2, 0, 1), side, framing), expected, str(size))


def test_every_way_to_give_an_image_gives_the_same_canvas() -> None:
    pixels, framing, out = noise(61, 45), Framing("bicubic", 0.875, "border", (9, 8, 7)), io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    expected = framed(pixels.transpose(2, 0, 1), 24, framing)
    np.testing.assert_array_equal(decode_canvas(out.getvalue(), 24, "x", framing), expected)
    for number, image in enumerate((out.getvalue(), Image.fromarray(pixels), pixels)):
        np.testing.assert_array_equal(canvas_of(image, 24, number, framing), expected)


def test_without_keys_it_is_our_way() -> None:
    assert framing_of(DataConfig(), MEAN) == OWN_WAY
    assert framing_of(DataConfig(crop_fraction=1.0, crop_mode="center"), MEAN) == OWN_WAY
    pixels = noise(50, 40).transpose(2, 0, 1)
    np.testing.assert_array_equal(to_canvas(pixels, 16, OWN_WAY), resample(pixels, (5, 0, 40, 40), (16, 16)))


def test_framings_have_names_of_their_own() -> None:
    others = [
        Framing("bilinear"),
        Framing("bicubic"),
        Framing(crop_fraction=0.875),
        Framing("bicubic", 0.9),
        Framing("bicubic", 0.9, "squash"),
        Framing("bicubic", 0.9, "border", (1, 2, 3)),
        Framing("bicubic", 0.9, "border", (1, 2, 4)),
    ]
    assert OWN_WAY.of_cache == "" and len({framing.of_cache for framing in others} - {""}) == len(others)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(1, 9000), (9000, 1), (1, 1), (2, 3)])
def test_a_line_of_pixels_takes_no_gigabytes(mode: str, size: tuple[int, int]) -> None:
    line = np.full((3, *size), 200, np.uint8)
    canvas = framed(line, 224, Framing("bicubic", 0.875, mode, (0, 0, 0)))
    assert canvas.shape == (3, 224, 224) and canvas.max() == 200
    if mode == "center":
        assert (canvas == 200).all(), f"its center, at most {MOST_ASPECT} times as long as wide"


def test_parts_are_resized_with_the_interpolation_that_is_named() -> None:
    pixels = noise(70, 50)
    for name, by_pil in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        expected = np.asarray(Image.fromarray(pixels[10:50, 5:45]).resize((16, 16), by_pil)).transpose(2, 0, 1)
        found = resample(pixels.transpose(2, 0, 1), (10, 5, 40, 40), (16, 16), name)
        assert np.abs(found.astype(int) - expected).max() <= 2, "torch's rounding"
    assert np.abs(found.astype(int) - resample(pixels.transpose(2, 0, 1), (10, 5, 40, 40), (16, 16))).max() > 2
