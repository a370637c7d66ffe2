"""Which formats are opened, and what becomes of pixels that are no 8 bits: the right grey or a sentence, never black."""

from __future__ import annotations

import ast
import io
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import ltcore
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import prepare
from ltcore.data.images.decode import DECODE_VERSION, FORMATS, decode_canvas, decode_image, size_in_header
from ltcore.data.loading.samples import decode_rows
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from ltcore.limits import MAX_SCANS

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encode(image: Any, fmt: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, fmt, **options)
    return out.getvalue()


DEEP: dict[str, tuple[bytes, Any]] = {
    "float 0..1": (encode((RAMP / 255).astype(np.float32), "TIFF"), RAMP),
    "float, all black": (encode(np.zeros((16, 16), np.float32), "TIFF"), 0 * RAMP),
    "float 0..255": (encode(RAMP.astype(np.float32), "TIFF"), "floating-point values from 0 to 255, expected 0 to 1"),
    "float 0..65535": (encode(RAMP.astype(np.float32) * 257, "TIFF"), "floating-point values from 0 to 65535"),
    "float below 0": (encode((RAMP / 255).astype(np.float32) - 0.5, "TIFF"), "floating-point values from -0.5 to 0.5"),
    "not a number": (encode(np.full((16, 16), np.nan, np.float32), "TIFF"), "floating-point values from nan to nan"),
    "int32 0..255": (encode(RAMP.astype(np.int32), "TIFF"), "integers that are signed or have 32 bits"),
    "int32 large": (encode(RAMP.astype(np.int32) << 16, "TIFF"), "integers that are signed or have 32 bits"),
    "16-bit tiff": (encode(RAMP.astype(np.uint16) * 257, "TIFF"), RAMP),
    "16-bit png": (encode(RAMP.astype(np.uint16) * 257, "PNG"), RAMP),
    "16-bit pgm": (b"P5\n16 16\n65535\n" + (RAMP.astype(int) * 257).astype(">u2").tobytes(), RAMP),
    "12 bits as pgm says": (b"P5\n16 16\n4095\n" + (RAMP.astype(int) * 16).astype(">u2").tobytes(), RAMP),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_grey_is_scaled_or_refused(name: str) -> None:
    data, expected = DEEP[name]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=f"k1: the image has {expected}.*, whose white is not known. Convert it"):
            decode_image(data, "k1")
    else:
        found = decode_image(data, "k1").astype(int)
        assert np.abs(found - expected).max() <= 1


def folder(parent: Path, **odd: bytes) -> str:
    files = {f"{c}/{n}.png": encode(RGB, "PNG") for c in ("ant", "bee") for n in range(3)}
    for name, data in (files | {f"ant/odd.{ext}": data for ext, data in odd.items()}).items():
        (parent / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (parent / "set" / name).write_bytes(data)
    return str(parent / "set")


def test_a_float_image_without_known_white_is_named_when_shards_are_made(tmp_path: Path) -> None:
    uri = folder(tmp_path, tif=DEEP["float 0..255"][0])
    with pytest.raises(DataError, match=r"ant/odd\.tif: the image has floating-point values from 0 to 255"):
        prepare(DataConfig(uri=uri, val_per_class=0))


def test_extensions_that_pil_reads_are_taken(tmp_path: Path) -> None:
    smooth = np.kron(RNG.integers(0, 256, (2, 2, 1), dtype=np.uint8), np.ones((8, 8, 3), np.uint8))
    kinds = {"jpe": "JPEG", "jfif": "JPEG", "ppm": "PPM", "pgm": "PPM", "avif": "AVIF", "PPM": "PPM"}
    kinds |= {"JPG": "JPEG", "Jpeg": "JPEG", "pnm": "PPM", "bmp": "BMP", "GIF": "GIF", "webp": "WEBP", "tiff": "TIFF"}
    uri = prepare(DataConfig(uri=folder(tmp_path, **{e: encode(smooth, f) for e, f in kinds.items()}), val_per_class=0))
    store, found = ShardStore(uri), 0
    for split in store.manifest.splits:
        odd = np.array([n for n, key in enumerate(store.keys(split)) if "odd" in key], np.int64)
        found += len(odd)
        assert np.abs(decode_rows(store, split, odd, 16) - smooth.transpose(2, 0, 1).astype(int)).max(initial=0) < 40
    assert found == len(kinds)


@pytest.mark.parametrize("fmt", ["EPS", "ICO", "JPEG2000", "DDS", "ICNS", "SGI"])
def test_other_formats_are_refused_by_name_whatever_the_extension(
    tmp_path: Path, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*args: Any, **options: Any) -> None:
        raise AssertionError("a program was started")

    data = encode(RGB, fmt)
    monkeypatch.setattr(subprocess, "check_call", started)  # by which PIL runs Ghostscript
    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(DataError, match=rf"cannot be decoded \({fmt} by its first bytes; known are PNG, JPEG, WEBP"):
        decode_canvas(data, 8, "k1")
    with pytest.raises(DataError, match=rf"ant/odd\.png: the image cannot be decoded \({fmt} by its first bytes"):
        prepare(DataConfig(uri=folder(tmp_path, png=data)))


def with_text(kind: str) -> bytes:
    """A PNG with more text than PIL unpacks."""
    large, info = "A" * 3 * 2**20, PngImagePlugin.PngInfo()
    if kind == "iCCP":
        return encode(RGB, "PNG", icc_profile=large.encode())
    if kind == "many":
        for n in range(70):
            info.add_text(f"prompt{n}", "A" * 2**20, zip=True)
    elif kind == "iTXt":
        info.add_itxt("prompt", large, zip=True)
    else:
        info.add_text("prompt", large, zip=True)
    data = encode(RGB, "PNG", pnginfo=info)
    if kind == "behind the pixels":
        start = data.index(b"zTXt") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4])
        data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    return data


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "many", "behind the pixels"])
def test_a_png_with_much_text_is_decoded(kind: str) -> None:
    data = with_text(kind)
    with pytest.raises(ValueError, match="MAX_TEXT"):
        Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(decode_image(data, "k1"), RGB.transpose(2, 0, 1))
    with pytest.raises(DataError, match="k1: the image cannot be decoded"):
        decode_image(data[: data.index(b"IDAT") + 60], "k1")


def test_a_png_with_much_text_is_turned_upright() -> None:
    exif, info = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    info.add_text("prompt", "A" * 3 * 2**20, zip=True)
    data = encode(RGB, "PNG", pnginfo=info, exif=exif)
    np.testing.assert_array_equal(decode_image(data, "k1"), np.rot90(RGB, -1).transpose(2, 0, 1))


def test_no_message_names_a_line_in_the_source_of_a_decoder() -> None:
    data = encode(RGB, "JPEG")
    with pytest.raises(
        DataError, match=r"^k1: the image cannot be decoded \(Image is incomplete or truncated\)\. Remove"
    ):
        decode_image(data[:-30], "k1")


HEIF_HEADER = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def test_heic_is_opened_by_its_package(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    smooth = np.kron(RNG.integers(0, 256, (2, 2, 1), dtype=np.uint8), np.ones((32, 32, 3), np.uint8))
    heif.from_pillow(Image.fromarray(smooth)).save(out, quality=95)
    assert np.abs(decode_image(out.getvalue(), "k1") - smooth.transpose(2, 0, 1).astype(int)).max() < 40
    uri = prepare(DataConfig(uri=folder(tmp_path, heic=out.getvalue(), HEIF=out.getvalue()), val_per_class=0))
    assert sum(split.num_samples for split in ShardStore(uri).manifest.splits.values()) == 8
    for data in (HEIF_HEADER, out.getvalue()[:200]):
        with pytest.raises(DataError, match=r"k1: the image cannot be decoded \("):
            decode_image(data, "k1")


def test_heic_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        DataError, match=r"ant/odd\.heic: the image is in HEIF, which needs the package pillow-heif\. Install"
    ):
        prepare(DataConfig(uri=folder(tmp_path, heic=HEIF_HEADER)))
    avif = encode(RGB, "AVIF")
    assert decode_image(avif, "k1").shape == (3, 16, 16)  # a container of the same family, read by PIL itself


def test_images_are_opened_in_one_place() -> None:
    """So that no other lets in what FORMATS leaves out."""
    calls = [
        (file.name, node)
        for file in Path(ltcore.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open")
    ]
    ((name, call),) = calls
    assert name == "decode.py" and ast.unparse(call.keywords[0]) == "formats=FORMATS"
    assert not {"EPS", "PSD", "ICO", "WMF", "FPX"} & set(FORMATS) and DECODE_VERSION > 1


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "PPM", "AVIF"])
def test_a_header_tells_the_size_of_what_is_stored(form: str) -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (20, 12), "red").save(out, form, **({"exif": exif} if form == "JPEG" else {}))
    data = out.getvalue()
    assert size_in_header(data, "x") == (12, 20)
    assert sorted(decode_image(data, "x").shape[1:]) == [12, 20]
    for broken in (b"", data[:3], b"text"):
        with pytest.raises(DataError, match=r"^x: the image "):
            size_in_header(broken, "x")


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encode(Image.fromarray(RGB).convert("L"), "JPEG", progressive=True)
    first = data.rindex(b"\xff\xda")
    return data[:first] + data[first:-2] * count + b"\xff\xd9"


@pytest.mark.parametrize("progressive", [False, True])
def test_what_phones_put_behind_a_jpeg_does_not_count(progressive: bool) -> None:
    """A film of some seconds has any bytes, and a preview inside has scans of its own."""
    usual = encode(RGB, "JPEG", progressive=progressive)
    preview = b"\xff\xe2" + struct.pack(">H", 2 + 300) + b"\xff\xda\xff" * 100
    for data in (usual + b"film \xff\xda\xff\xd8" * 500, usual[:2] + preview + usual[2:] + b"\xff\xda" * 200):
        assert np.array_equal(decode_canvas(data, 16, "x"), decode_canvas(usual, 16, "x"))


@pytest.mark.parametrize("mark", [b"\xff\x01", b"\xff\x02", b"\xff\xbf"])
def test_no_mark_without_a_length_hides_scans(mark: bytes) -> None:
    """libjpeg goes on two bytes behind it, where something else might take the next two for a length."""
    many = with_scans(300)
    at = many.rindex(b"\xff\xda", 0, len(many) // 2)
    with pytest.raises(DataError, match=r"the image has \d+ scans"):
        decode_canvas(many[:at] + mark + many[at:], 16, "x")


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded() -> None:
    usual = encode(RGB, "JPEG", progressive=True)
    assert decode_canvas(usual, 16, "x").shape == (3, 16, 16)
    many = with_scans(500)
    large = many.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 8000, 8000), 1)
    for data in (many, large):
        started = time.monotonic()
        with pytest.raises(DataError, match=rf"k1: the image has 50\d scans, expected at most {MAX_SCANS}"):
            decode_canvas(data, 16, "k1")
        assert time.monotonic() - started < 1
