from __future__ import annotations

import io
import itertools
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltcore.data.images.decode import decode_canvas
from ltcore.errors import DataError

RNG = np.random.default_rng(0)
SMOOTH = np.kron(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
"""[32, 48, 3]: blocks, which lossy formats keep."""


def encode(image: Image.Image | np.ndarray, fmt: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, fmt, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and has no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"")]
    sized = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sized)


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF"])
def test_exact_size_is_taken_as_it_is(fmt: str) -> None:
    pixels = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image_size = decode_canvas(encode(pixels, fmt), 16, "x")
    assert image_size.dtype == np.uint8
    assert image_size.flags.c_contiguous
    np.testing.assert_array_equal(image_size, pixels.transpose(2, 0, 1))


def test_jpeg_equals_pil() -> None:
    data = encode(SMOOTH[:32, :32], "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1).astype(int)
    assert np.abs(decode_canvas(data, 32, "x").astype(int) - expected).max() <= 2


def test_webp_lossless() -> None:
    np.testing.assert_array_equal(
        decode_canvas(encode(SMOOTH[:32, :32], "WEBP", lossless=True), 32, "x"), SMOOTH[:32, :32].transpose(2, 0, 1)
    )


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32), (7, 5), (40, 16), (1, 9)])
def test_resize_is_a_centered_antialiased_square(height: int, width: int) -> None:
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    expected = np.asarray(square.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1).astype(int)
    image_size = decode_canvas(encode(pixels, "PNG"), 16, "x")
    assert image_size.shape == (3, 16, 16)
    assert np.abs(image_size.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("fmt", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK")]
)
def test_every_small_size_goes_to_every_small_canvas(fmt: str, mode: str) -> None:
    """torch's kernel for 8 bits fails on some layouts of an image that becomes a single pixel."""
    rng = np.random.default_rng(0)
    for height, width, image_size in itertools.product(range(1, 6), range(1, 6), range(1, 5)):
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        pixels = decode_canvas(encode(noise.convert(mode), fmt), image_size, "noise")
        assert pixels.shape == (3, image_size, image_size) and pixels.flags.c_contiguous


def test_grey_and_palette_and_transparency() -> None:
    grey = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
    for data in (encode(grey, "PNG"), encode(Image.fromarray(grey).convert("P"), "GIF")):
        np.testing.assert_array_equal(decode_canvas(data, 8, "x"), np.stack([grey] * 3))
    rgba = RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    np.testing.assert_array_equal(decode_canvas(encode(rgba, "PNG"), 8, "x"), rgba[..., :3].transpose(2, 0, 1))


def test_grey_jpeg_has_three_equal_channels() -> None:
    image_size = decode_canvas(encode(SMOOTH[:32, :32, 0], "JPEG"), 32, "x")
    assert (image_size[0] == image_size[1]).all()
    assert (image_size[0] == image_size[2]).all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.array([[0, 255, 256, 32768], [40000, 65535, 1000, 2000]] * 2, np.uint16)
    image_size = decode_canvas(encode(deep, "PNG"), 4, "x")
    np.testing.assert_array_equal(image_size, np.stack([(deep >> 8).astype(np.uint8)] * 3))


def test_cmyk_jpeg_equals_pil() -> None:
    data = encode(Image.fromarray(SMOOTH[:32, :32]).convert("CMYK"), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_canvas(data, 32, "x"), expected)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(fmt: str) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: white comes to the right
    image_size = decode_canvas(encode(pixels, fmt, exif=exif), 16, "x")
    assert image_size[:, :, 9:].min() > 240
    assert image_size[:, :, :7].max() < 15


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(fmt: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    options: dict[str, Any] = {"lossless": True} if fmt == "WEBP" else {}
    data = encode(frames[0], fmt, save_all=True, append_images=frames[1:], duration=10, **options)
    np.testing.assert_array_equal(decode_canvas(data, 8, "x"), np.stack([np.full((8, 8), v) for v in (255, 0, 0)]))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has 0 bytes"),
        (b"not an image", "cannot be decoded"),
        (png_header(8, 8), "cannot be decoded"),
        (png_header(100_000, 1000), "100000 x 1000 pixels, expected 1 to"),
        (png_header(60_000, 60_000), "exceeds limit"),
        (png_header(0, 5), "cannot be decoded|0 x 5 pixels"),
        (encode(SMOOTH, "JPEG")[:-300], "cannot be decoded"),
        (encode(SMOOTH, "PNG")[:-60], "cannot be decoded"),
        (encode(SMOOTH, "GIF")[:40], "cannot be decoded"),
        (encode(SMOOTH, "WEBP")[:-100], "cannot be decoded"),
    ],
)
def test_bad_images_are_sentences_that_name_the_sample(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        decode_canvas(data, 8, "train-00000.tar: sample 'k1'")
    assert str(caught.value).startswith("train-00000.tar: sample 'k1': the image")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_damaged_images_never_end_the_process(fmt: str) -> None:
    whole = encode(SMOOTH, fmt)
    for place in range(2, len(whole), 11):
        damaged = whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]
        try:
            assert decode_canvas(damaged, 8, "x").shape == (3, 8, 8)
        except DataError as error:
            assert str(error).startswith("x: the image")


def test_a_thin_long_image_needs_no_memory() -> None:
    thin = np.zeros((1, 60_000, 3), np.uint8)
    assert decode_canvas(encode(thin, "PNG"), 64, "x").shape == (3, 64, 64)
