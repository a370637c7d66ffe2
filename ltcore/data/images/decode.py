"""Encoded image -> uint8 canvas, or any part of the image brought to a canvas.

A canvas is the square array [3, S, S] to which every image is brought before it is batched, with S = ``data.image_size``.

JPEGs go through torchvision, which is about a third faster than PIL; everything else goes through PIL, PNG included,
because torchvision 0.29 ends the whole process with a segmentation fault on a PNG with a damaged IDAT chunk.

Pixels of more than 8 bits are scaled where their white is known, and refused where it is not, never cut off to black or
white: 16-bit grey goes from 0 to 65535 (12 bits stored in 16 cannot be told and come out dark), floating-point grey from 0 to
1. Signed and 32-bit integers, and floating-point values outside 0..1, have no known white.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from ltcore.data.images.boxes import Box, Size, centered_square
from ltcore.data.images.framed import framed
from ltcore.data.room import Room
from ltcore.errors import BadImageError, DataError
from ltcore.framing import OWN_WAY, Framing
from ltcore.limits import (
    LARGE_PIXELS,
    LARGE_PIXELS_AT_ONCE,
    MAX_PIXELS,
    MAX_PPM_COMMENTS,
    MAX_PPM_HEADER_BYTES,
    MAX_SCANS,
    MAX_SLOW_BYTES,
    MAX_SLOW_PIXELS,
)

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Names in PIL of what is opened (JPEG includes MPO), whatever a file's extension says. PIL knows some forty more, and runs
a program for some: Ghostscript for PostScript. HEIF is opened beside these where the package pillow-heif is installed."""
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "HEIF": "heic"}
"""Of files in the formats that are not called as PIL calls them."""
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_SCAN, _END, _FIRST = 0xDA, 0xD9, 0xC0
"""Marks of a JPEG's segments: of a scan, of the end, and the first that has a length."""
_MOST_SEGMENTS = 1000
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
_PPM = re.compile(rb"P[0-6fy]")
_SOURCE_LINE = re.compile(r"\w*,? ?\[?/\S+\.(?:cpp|cc|c|h):\d+\]?,? ?")
"""``decode_jpeg, /build/.../decode_jpeg.cpp:171, `` before what torchvision says."""
_ROOM = Room(LARGE_PIXELS_AT_ONCE)
DECODE_VERSION = 2
"""Part of the key of cached canvases: raise it with every change of the pixels that this file makes."""
# An image is one block: of smaller ones, glibc keeps all for a thread's next image.
Image.core.set_block_size(4 * MAX_PIXELS)
warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters becomes a DataError; the rest would stand beside it


def decode_canvas(data: bytes, image_size: int, where: str, framing: Framing = OWN_WAY) -> Pixels:
    """Decodes an image to [3, S, S] RGB: its largest centered square, or what ``framing`` says.

    ``where`` names the sample in the DataError that empty, undecodable or too large images raise.
    """
    with contextlib.ExitStack() as held:
        return to_canvas(_decoded(data, where, held), image_size, framing)


def to_canvas(image_3HW: Pixels, image_size: int, framing: Framing) -> Pixels:
    """Returns the canvas [3, S, S] of a whole image."""
    if framing == OWN_WAY:
        return resample(image_3HW, centered_square(size_of(image_3HW)), (image_size, image_size))
    return framed(image_3HW, image_size, framing)


def decode_image(data: bytes, where: str) -> Pixels:
    """Decodes an image to [3, H, W] RGB at its own size.

    EXIF orientation is applied, grey, palette, CMYK and 16-bit images become 8-bit RGB, of an animation the first frame
    is taken, transparency is ignored. Raises DataError as :func:`decode_canvas` does. Large images wait for each other, see
    ``LARGE_PIXELS_AT_ONCE``.
    """
    with contextlib.ExitStack() as held:
        return _decoded(data, where, held)


def size_in_header(data: bytes, where: str) -> Size:
    """Returns (height, width) as an image is stored, which EXIF may turn; its pixels are not decoded, and may be damaged.

    Raises DataError for a header that :func:`decode_canvas` would refuse.
    """

    def read(data: bytes) -> Size:
        image = _open(data, where)
        _check_size(image, where)
        return image.height, image.width

    return _guarded(data, where, read)


def _decoded(data: bytes, where: str, held: contextlib.ExitStack) -> Pixels:
    """Decodes an image; ``held`` keeps the room that a large one takes."""

    def read(data: bytes) -> Pixels:
        held.close()  # what an attempt before took
        return _decode(data, where, held)

    return _guarded(data, where, read)


def _guarded(data: bytes, where: str, read: Callable[[bytes], T]) -> T:
    """Returns what is read from an image, and makes what decoders raise a DataError."""
    if not data:
        raise _bad(where, "has 0 bytes", "Remove the sample or restore its file.")
    try:
        try:
            return read(data)
        except ValueError as error:
            if "MAX_TEXT" not in str(error):
                raise
            return read(_without_text(data))
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on foreign bytes
        if isinstance(error, UnidentifiedImageError):  # whose text is the address of a buffer
            problem = f"{_foreign_format(data) or 'unknown format'}; known are {', '.join(FORMATS)}"
        else:
            problem = _plain(error)
        raise _bad(where, f"cannot be decoded ({problem})", "Remove or replace it.") from error


def pixels_of(image: Image.Image, where: str) -> Pixels:
    """Returns [3, H, W] RGB of an image that PIL opened or made, by the rules of :func:`decode_image`."""
    _check_size(image, where)
    try:
        return _upright_pixels(ImageOps.exif_transpose(image), image.format, where)
    except DataError:
        raise
    except Exception as error:  # a file that PIL reads only now may be damaged
        raise _bad(where, f"cannot be decoded ({_plain(error)})", "Remove or replace it.") from error


def size_of(image_3HW: Pixels) -> Size:
    """Returns (height, width)."""
    return image_3HW.shape[1], image_3HW.shape[2]


def extension_of(data: bytes) -> str:
    """Returns the extension for an image that can be decoded, by its content."""
    if data.startswith(_PNG_SIGNATURE):  # PIL refuses to open some, for much text
        return "png"
    kind = _open(data, "the image").format or ""
    return EXTENSIONS.get(kind, kind.lower())


def resample(image_3HW: Pixels, box: Box, size: Size, interpolation: str | None = None) -> Pixels:
    """Resamples the box to [3, *size], by torch and with antialiasing, bilinearly where no other interpolation is named.

    Nothing outside the box is read. A box that has this size already is returned as it is.
    """
    top, left, height, width = box
    part_3hw = image_3HW[:, top : top + height, left : left + width]
    if (height, width) == size:
        return np.ascontiguousarray(part_3hw)
    import torch  # seconds, which images of the right size need not wait for

    # PIL's are read-only, which torch warns of. In their order: torch 2.15 fails on planes that end as a single pixel.
    own_3hw = part_3hw if part_3hw.flags.writeable else part_3hw.copy("K")
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(own_3hw)[None],
        size=size,
        mode=interpolation or "bilinear",
        antialias=True,
        align_corners=False,
    )
    return np.ascontiguousarray(resized[0].numpy())


def _bad(where: str, problem: str, advice: str) -> BadImageError:
    return BadImageError(f"{where}: the image {problem}. {advice}", f"the image {problem}")


def _plain(error: Exception) -> str:
    """Returns what a decoder said in one line, without the name of a function and a line in its source."""
    return " ".join(_SOURCE_LINE.sub("", str(error)).split()) or type(error).__name__


def _without_text(data: bytes) -> bytes:
    """Returns a PNG without texts and color profile, which do not change the pixels.

    PIL unpacks at most 1 MiB of each and 64 MiB of all, and refuses images with more, which generators of images write.
    """
    kept, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] not in _PNG_TEXT:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _has_damaged_pixels(data: bytes) -> bool:
    """Tells whether a PNG has pixels whose checksum is wrong or cut off, which PIL takes for others."""
    at = 8
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            found, expected = zlib.crc32(memoryview(data)[at + 4 : end]), data[end : end + 4]
            if found.to_bytes(4) != expected:
                return True
        at = end + 4
    return False


def _is_heif(data: bytes) -> bool:
    brands = {data[at : at + 4] for at in range(8, min(int.from_bytes(data[:4]), 256), 4)}
    return data[4:8] == b"ftyp" and bool(brands & _HEIF_BRANDS) and not brands & {b"avif", b"avis"}


def _refuse_slow_ppm(data: bytes, where: str) -> None:
    """Raises BadImageError for what PIL, which reads headers byte by byte, would not come to the end of."""
    if data[1:2] in b"123" and (comments := data.count(b"#")) > MAX_PPM_COMMENTS:
        raise _bad(
            where, f"has {comments} comments, expected at most {MAX_PPM_COMMENTS}", "Save it as a PNG, or without them."
        )
    try:
        _by_pil(data[:MAX_PPM_HEADER_BYTES])
    except ValueError as error:
        if len(data) <= MAX_PPM_HEADER_BYTES:
            raise
        expected = f"has no header in its first {MAX_PPM_HEADER_BYTES} bytes ({error})"
        raise _bad(where, expected, "Save it as a PNG, or without comments.") from None


def _refuse_slow(image: Image.Image, data: bytes, where: str) -> None:
    """Raises BadImageError for a large image that a decoder written in Python would read value by value."""
    if not any(tile[0] in Image.DECODERS for tile in cast(ImageFile, image).tile):
        return
    if image.width * image.height > MAX_SLOW_PIXELS or len(data) > MAX_SLOW_BYTES:
        found = f"has {image.width} x {image.height} pixels in {len(data)} bytes"
        expected = f"expected at most {MAX_SLOW_PIXELS} in {MAX_SLOW_BYTES} of a {image.format} of this kind"
        raise _bad(where, f"{found}, {expected}", "Save it as a PNG.")


def _open(data: bytes, where: str) -> Image.Image:
    if _PPM.match(data):
        _refuse_slow_ppm(data, where)
    return _open_heif(data, where) if _is_heif(data) else _by_pil(data)


def _by_pil(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _open_heif(data: bytes, where: str) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise DataError(  # the image is not to blame
            f"{where}: the image is in HEIF, which needs the package pillow-heif. Install it: pip install pillow-heif."
        ) from error
    image: Image.Image = HeifImageFile(io.BytesIO(data))
    return image


def _foreign_format(data: bytes) -> str:
    """Returns the name of a format that PIL knows but that is not opened here, or ''.

    Only the first bytes are read.
    """
    Image.init()
    kinds = ((name, accept) for name, (_, accept) in Image.OPEN.items() if accept and name not in FORMATS)
    return next((f"{name} by its first bytes" for name, accept in kinds if accept(data[:16].ljust(16))), "")


def _scans(data: bytes) -> int:
    """Counts the marks of a scan's start in a JPEG, up to its end where there are many.

    Pixels cannot look like one, but what phones put behind the end can: a film of some seconds.
    """
    bytes_N = np.frombuffer(data, np.uint8)
    marks_M = np.flatnonzero(bytes_N[:-1] == 0xFF)  # a third of the time of ``bytes.count``
    kinds_M = bytes_N[marks_M + 1]
    count = int(np.count_nonzero(kinds_M == _SCAN))
    if count <= MAX_SCANS:
        return count
    marks_M = marks_M[(kinds_M != 0) & (kinds_M != 0xFF) & (kinds_M & 0xF8 != 0xD0)]  # no pixels, filling or restarts
    return min(count, sum(data[at + 1] == _SCAN for at in _segments(data, marks_M)))


def _segments(data: bytes, marks_M: npt.NDArray[np.int64]) -> Iterator[int]:
    """Yields where each segment of a JPEG begins, as libjpeg finds them.

    Where they are very many, or one is of a kind that no encoder writes, it yields all marks that are left.
    """
    at = 2
    for _ in range(_MOST_SEGMENTS):
        n = int(np.searchsorted(marks_M, at))
        if n == len(marks_M) or data[marks_M[n] + 1] == _END:
            return
        at = int(marks_M[n])
        if data[at + 1] < _FIRST:
            break
        yield at
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    yield from marks_M[np.searchsorted(marks_M, at) :].tolist()


def _decode(data: bytes, where: str, held: contextlib.ExitStack) -> Pixels:
    image = _open(data, where)
    _check_size(image, where)
    _refuse_slow(image, data, where)
    if image.format == "PNG" and _has_damaged_pixels(data):
        raise ValueError("image file is truncated, or its pixels have a wrong checksum")
    if (pixels := image.width * image.height) > LARGE_PIXELS:
        held.enter_context(_ROOM.held(pixels))
    if image.format in ("JPEG", "MPO") and (scans := _scans(data)) > MAX_SCANS:
        raise _bad(where, f"has {scans} scans, expected at most {MAX_SCANS}", "Save it as a plain JPEG.")
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        import torch  # seconds, which other formats need not wait for
        from torchvision.io import ImageReadMode, decode_image

        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_image(encoded, ImageReadMode.RGB, apply_exif_orientation=True).numpy()
    ImageOps.exif_transpose(image, in_place=True)
    return _upright_pixels(image, image.format, where)


def _check_size(image: Image.Image, where: str) -> None:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise _bad(where, f"has {width} x {height} pixels, expected 1 to {MAX_PIXELS}", "Shrink it.")


def _upright_pixels(image: Image.Image, kind: str | None, where: str) -> Pixels:
    """Returns [3, H, W] of an image that needs no turning; ``kind`` is PIL's name for the format of its file."""
    sixteen = image.mode != "I" or kind == "PPM"  # whose 16 bits PIL puts into 32
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image), sixteen, where))
    if image.mode != "RGB":  # convert would copy
        image = image.convert("RGB")
    return np.asarray(image).transpose(2, 0, 1)


def _eight_bits(grey_HW: npt.NDArray[Any], sixteen: bool, where: str) -> Pixels:
    """Converts deep grey to 8 bits. ``sixteen``: integers hold 0..65535.

    Raises DataError where the value of white is unknown.
    """
    if grey_HW.dtype.kind != "f":
        if sixteen:
            return (np.clip(grey_HW, 0, 65535) >> 8).astype(np.uint8)
        kind = "integers that are signed or have 32 bits"
    else:
        low, high = float(grey_HW.min()), float(grey_HW.max())
        if low >= 0 and high <= 1:
            return np.rint(grey_HW * 255).astype(np.uint8)
        kind = f"floating-point values from {low:g} to {high:g}, expected 0 to 1"
    raise _bad(where, f"has {kind}, whose white is not known", "Convert it to 8 or 16 bits.")
