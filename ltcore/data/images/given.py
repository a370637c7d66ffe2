"""Images as a program has them, brought to a canvas as training's evaluation does.

Paths, bytes of files, PIL images, numpy arrays and torch tensors all become [3, S, S]: the largest centered square,
resampled, or what the run's framing says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ltcore.data.images.decode import Pixels, decode_canvas, decode_image, pixels_of, to_canvas
from ltcore.errors import DataError
from ltcore.framing import OWN_WAY, Framing
from ltcore.limits import MAX_IMAGE_BYTES
from ltcore.storage import is_plain

ImageLike = str | Path | bytes | Image.Image | npt.NDArray[np.uint8] | Tensor
IMAGES = "a path, the bytes of a file, a PIL image, a uint8 array [H, W, 3] or [H, W], or a uint8 tensor [3, H, W]"


def is_one(images: Any) -> bool:
    """Tells whether this is a single image rather than several of them."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, str | Path | bytes | Image.Image)


def canvas_of(image: ImageLike, image_size: int, number: int, framing: Framing = OWN_WAY) -> Pixels:
    """Returns the image as a canvas [3, S, S].

    Arrays have their channels last, as PIL and OpenCV have them, tensors first, as torchvision has them; both are RGB.
    ``number`` names what has no name in the DataError that a wrong image raises.
    """
    if isinstance(image, bytes):
        return decode_canvas(image, image_size, f"image {number}, given as bytes", framing)
    if isinstance(image, str | Path):
        return decode_canvas(read_image(Path(image)), image_size, str(image), framing)
    return to_canvas(_in_memory(image, number), image_size, framing)


def whole_of(image: ImageLike, number: int) -> Pixels:
    """Returns the whole image [3, H, W], otherwise as :func:`canvas_of` does."""
    if isinstance(image, bytes):
        return decode_image(image, f"image {number}, given as bytes")
    if isinstance(image, str | Path):
        return decode_image(read_image(Path(image)), str(image))
    return _in_memory(image, number)


def _in_memory(image: Image.Image | npt.NDArray[np.uint8] | Tensor, number: int) -> Pixels:
    if isinstance(image, Image.Image):
        return pixels_of(image, f"image {number}, given as a PIL image")
    if isinstance(image, np.ndarray | Tensor):
        return _planes(image, number)
    raise DataError(f"Image {number} is a {type(image).__name__}, expected {IMAGES}.")


def read_image(path: Path) -> bytes:
    """Reads an image file. Raises DataError for what is missing, no plain file, or too large for an image."""
    try:
        found = path.stat()
        if not is_plain(found):
            raise DataError(f"{path} is no plain file. Give the path of an image file.")
        if found.st_size > MAX_IMAGE_BYTES:
            raise DataError(
                f"{path} has {found.st_size} bytes, expected at most {MAX_IMAGE_BYTES}. Give an image file."
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Give the path of an image file.") from error
    except ValueError as error:  # a zero byte in the name
        raise DataError(f"{path} cannot be read: {error}. Give the path of an image file.") from error


def _planes(image: npt.NDArray[Any] | Tensor, number: int) -> Pixels:
    """Returns [3, H, W] of an array [H, W, 3] or [H, W], or of a tensor [3, H, W]."""
    if isinstance(image, Tensor):
        pixels, fits = image.detach().cpu(), image.ndim == 3 and image.shape[0] == 3
        array = pixels.numpy() if pixels.dtype == torch.uint8 else pixels
    else:
        array, fits = image, image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if not fits or array.dtype != np.uint8 or 0 in image.shape:
        raise DataError(
            f"Image {number} is {'a tensor' if isinstance(image, Tensor) else 'an array'} of {image.dtype} "
            f"{list(image.shape)}, expected {IMAGES}."
        )
    if isinstance(image, Tensor):
        return np.asarray(array)
    return np.asarray(array).transpose(2, 0, 1) if array.ndim == 3 else np.stack([array] * 3)
