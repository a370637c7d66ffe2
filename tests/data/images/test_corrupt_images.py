"""Odd and broken images on their whole way, from a folder or a zip through shards to canvases: RGB as PIL sees it, or one
sentence that names the file, and nothing left that a later run would take for whole."""

from __future__ import annotations

import importlib
import io
import os
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from ltcore.data.config import DataConfig
from ltcore.data.datasets import image_root as roots
from ltcore.data.datasets.prepare import make, prepare
from ltcore.data.images import decode
from ltcore.data.images.decode import decode_canvas
from ltcore.data.loading.samples import decode_rows
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.source import Sample
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import DataError
from ltcore.limits import MAX_PIXELS
from ltcore.storage import cache_root
from tests.shards import write_dataset

SIDE = 16
RNG = np.random.default_rng(0)
RGB = np.kron(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
GREY = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, fmt: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, fmt, **options)
    return out.getvalue()


def by_hand(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG out of its parts, for what PIL does not write."""
    chunks = (
        b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0),
        b"IDAT" + zlib.compress(rows),
        b"IEND",
    )
    sized = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sized)


DEEP = RNG.integers(0, 65536, (SIDE, SIDE, 3), dtype=np.uint16)
PALETTE = Image.fromarray(RGB).quantize(8)
ALPHA = np.dstack([RGB, RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)])
FRAMES = [Image.fromarray(np.full((SIDE, SIDE, 3), value, np.uint8)) for value in (200, 20, 90)]
ANIMATED: dict[str, Any] = {"save_all": True, "append_images": FRAMES[1:], "duration": 10}

SOUND: dict[str, tuple[str, bytes]] = {
    "cmyk": ("jpg", encode(Image.fromarray(RGB).convert("CMYK"), "JPEG")),
    "grey jpeg": ("jpg", encode(GREY, "JPEG")),
    "grey": ("png", encode(GREY, "PNG")),
    "grey with alpha": ("png", encode(Image.fromarray(ALPHA).convert("LA"), "PNG")),
    "black and white": ("png", encode(Image.fromarray(GREY).convert("1"), "PNG")),
    "palette": ("png", encode(PALETTE, "PNG")),
    "palette with transparency": ("png", encode(PALETTE, "PNG", transparency=0)),
    "palette with alpha per color": ("png", encode(PALETTE, "PNG", transparency=bytes(range(8)))),
    "alpha": ("png", encode(ALPHA, "PNG")),
    "cmyk tiff": ("tif", encode(Image.fromarray(RGB).convert("CMYK"), "TIFF")),
    "bmp": ("bmp", encode(RGB, "BMP")),
    "animated gif": ("gif", encode(FRAMES[0], "GIF", **ANIMATED)),
    "animated webp": ("webp", encode(FRAMES[0], "WEBP", lossless=True, **ANIMATED)),
    "animated png": ("png", encode(FRAMES[0], "PNG", **ANIMATED)),
}


def expected(data: bytes) -> np.ndarray:
    """The first frame as PIL sees it, upright, without its transparency."""
    image = Image.open(io.BytesIO(data))
    if image.mode in ("P", "LA", "RGBA"):
        image = image.convert("RGBA")
        image = Image.fromarray(np.asarray(image)[..., :3])
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)


def write(uri: Path, images: dict[str, tuple[str, bytes]]) -> str:
    """Shards with one class and one image each."""
    samples = [Sample(f"k{n}", data, ext, n) for n, (ext, data) in enumerate(images.values())]
    write_dataset(
        str(uri),
        name="images",
        classes=list(images),
        attributes=[],
        splits={"train": samples},
        image_size=SIDE,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        seed=0,
        shot_rule="rank",
        provenance={},
    )
    return str(uri)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_kind_of_sound_image_comes_out_of_shards_as_pil_sees_it(tmp_path: Path) -> None:
    store = ShardStore(write(tmp_path / "d", SOUND))
    canvases = decode_rows(store, "train", np.arange(len(SOUND)), SIDE)
    for label, image_size in zip(store.labels("train"), canvases, strict=True):
        name = store.manifest.classes[label]
        largest = np.abs(image_size.astype(int) - expected(SOUND[name][1]).astype(int)).max()
        assert largest <= (2 if name == "grey jpeg" else 0), name  # decoded by another library than PIL's
    assert [str(p) for p in check_dataset(store.uri) if p.where != "manifest.json"] == []


def test_sixteen_bits_keep_their_upper_eight() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    found = decode_canvas(by_hand(SIDE, SIDE, 16, 2, rows), SIDE, "x")
    np.testing.assert_array_equal(found, (DEEP >> 8).astype(np.uint8).transpose(2, 0, 1))
    for data in (encode(DEEP[..., 0], "PNG"), encode(DEEP[..., 0], "TIFF")):
        np.testing.assert_array_equal(decode_canvas(data, SIDE, "x")[1], (DEEP[..., 0] >> 8).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_that_a_camera_turned_is_decoded_upright(fmt: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(RGB, fmt, exif=exif)
    difference = decode_canvas(data, SIDE, "x").astype(int) - expected(data).astype(int)
    assert np.abs(difference).max() <= (2 if fmt == "JPEG" else 0)
    if orientation > 1:
        stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1).astype(int)
        upright = np.abs(expected(data).astype(int) - stored).max()
        assert upright > 50 or fmt == "TIFF"  # PIL turns TIFFs as it opens them


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # the test runner has replaced what importing decode set
@pytest.mark.parametrize("name", ["cmyk", "grey jpeg", "palette", "animated gif", "animated webp", "bmp", "cmyk tiff"])
def test_a_cut_image_is_never_decoded_to_other_pixels(name: str) -> None:
    data = SOUND[name][1]
    whole, refused = decode_canvas(data, SIDE, "x"), 0
    for size in range(len(data)):
        try:
            found = decode_canvas(data[:size], SIDE, "x")
        except DataError as error:
            refused += 1
            assert re.fullmatch(r"x: the image [^\n]*", str(error))
        else:
            np.testing.assert_array_equal(found, whole)
    assert refused > len(data) // 3  # what follows the last pixel of the first frame may be missing


def test_a_broken_image_brings_no_warning_beside_its_sentence() -> None:
    big = by_hand(10_000, 9_500, 8, 2, b"")  # PIL warns of sizes from 89 million pixels on
    cut = encode(RGB, "TIFF")[:-5]
    with warnings.catch_warnings(record=True) as told:
        importlib.reload(decode)  # the test runner has replaced the filter that importing it set
        for data in (big, cut):
            with pytest.raises(DataError):
                decode.decode_canvas(data, SIDE, "x")
    assert told == []


BROKEN: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "has 0 bytes"),
    "text": (b"<html>not found</html>", r"cannot be decoded \(unknown format; known are PNG"),
    "cut": (encode(RGB, "PNG")[:-40], "cannot be decoded"),
    "header alone": (by_hand(SIDE, SIDE, 8, 2, b"")[:33], "cannot be decoded"),
    "no pixels": (by_hand(SIDE, SIDE, 8, 2, b""), "cannot be decoded"),
    "zero size": (by_hand(0, SIDE, 8, 2, b""), "0 x 16 pixels|cannot be decoded"),
    "bomb": (by_hand(100_000, 100_000, 8, 2, b""), "exceeds limit|100000 x 100000 pixels"),
    "small bomb": (by_hand(10_000, 8_000, 8, 2, bytes(1000)), f"10000 x 8000 pixels, expected 1 to {MAX_PIXELS}"),
    "flipped": (encode(RGB, "PNG").replace(b"IDAT", b"IDXT"), "cannot be decoded"),
}


@pytest.mark.parametrize("pack", ["folder", "zip"])
@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_image_stops_the_making_of_shards_and_leaves_nothing(tmp_path: Path, name: str, pack: str) -> None:
    data, words = BROKEN[name]
    files = {f"{c}/{n}.png": encode(RGB, "PNG") for c in ("ant", "bee") for n in range(6)}
    uri = place(tmp_path, pack, files | {"bee/odd.png": data})
    with pytest.raises(DataError, match=rf"bee/odd\.png: the image .*({words})") as found:
        prepare(DataConfig(uri=uri, val_per_class=1))
    assert "\n" not in str(found.value)
    assert [path.name for path in (cache_root() / "datasets").iterdir() if path.suffix != ".lock"] == []
    with pytest.raises(DataError, match=r"bee/odd\.png"):
        make(DataConfig(uri=uri), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    mended = place(tmp_path, pack, files)
    assert sum(read_manifest(prepare(DataConfig(uri=mended, val_per_class=1))).class_counts["train"]) > 0


def place(parent: Path, pack: str, files: dict[str, bytes]) -> str:
    if pack == "zip":
        with zipfile.ZipFile(parent / "pets.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return str(parent / "pets.zip")
    for stale in (parent / "pets").rglob("*.png"):
        stale.unlink()
    for name, data in files.items():
        (parent / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (parent / "pets" / name).write_bytes(data)
    return str(parent / "pets")


def test_the_check_names_every_broken_image_in_shards(tmp_path: Path) -> None:
    broken = {name: ("png", data) for name, (data, _) in BROKEN.items() if data}
    uri = write(tmp_path / "d", broken | {"sound": ("png", encode(RGB, "PNG"))})
    problems = [problem for problem in check_dataset(uri) if problem.key]
    assert sorted(problem.key for problem in problems) == sorted(f"k{n}" for n in range(len(broken)))
    for n, name in enumerate(broken):
        (what,) = [problem.what for problem in problems if problem.key == f"k{n}"]
        assert re.search(BROKEN[name][1], what), (name, what)


def test_files_that_are_no_plain_files_are_named_rather_than_read(tmp_path: Path) -> None:
    files = {f"{c}/{n}.png": encode(RGB, "PNG") for c in ("ant", "bee") for n in range(6)}
    uri = place(tmp_path, "folder", files)
    odd = tmp_path / "pets" / "ant" / "odd.png"
    os.mkfifo(odd)  # to open it would wait for a writer for ever
    with pytest.raises(DataError, match=r"ant/odd\.png is no plain file\. Remove it\."):
        prepare(DataConfig(uri=uri))
    odd.unlink()
    odd.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        DataError, match=r"ant/odd\.png cannot be read \(No such file or directory\)\. Restore or remove"
    ):
        prepare(DataConfig(uri=uri))
    odd.unlink()
    assert read_manifest(prepare(DataConfig(uri=uri))).name == "pets"


@pytest.mark.parametrize("pack", ["folder", "zip"])
def test_a_file_that_would_fill_the_memory_is_refused_by_its_size(
    tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "MAX_IMAGE_BYTES", 100_000)
    files = {f"{c}/{n}.png": encode(RGB, "PNG") for c in ("ant", "bee") for n in range(6)}
    uri = place(tmp_path, pack, files | {"ant/bomb.png": bytes(100_001)})
    with pytest.raises(DataError, match=r"ant/bomb\.png has 100001 bytes, expected at most 100000"):
        prepare(DataConfig(uri=uri))


def test_no_byte_of_a_png_changes_its_pixels_in_silence() -> None:
    """Its chunks have checksums, which PIL does not compare for pixels."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
    whole = decode_canvas(data := out.getvalue(), 8, "whole")
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]
        try:
            assert np.array_equal(decode_canvas(changed, 8, "changed"), whole), at
        except DataError:
            continue
