"""Tars as others write them, with WebDataset's own writer or by hand."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image


def write_tars(pattern: Path | str, samples: Iterable[Mapping[str, Any]], *, maxcount: int = 1000) -> None:
    """Writes samples (``__key__`` and files by extension) as ``webdataset.ShardWriter`` does."""
    with webdataset.ShardWriter(str(pattern), maxcount=maxcount, verbose=0) as writer:
        for sample in samples:
            writer.write(dict(sample))


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT, mode: str = "w"
) -> None:
    """Writes members by name and content, in this order; a name that ends with a slash is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:  # type: ignore[call-overload]  # of a mode that is no literal
        for name, data in members:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def picture(label: int, number: int, form: str = "PNG") -> bytes:
    """A small image in a color of its class, no two alike."""
    pixels = np.random.default_rng(label * 1000 + number).integers(0, 90, (8, 8, 3))
    pixels[..., label % 3] += 120
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, form)
    return out.getvalue()


def pictures(count: int, classes: int = 2, first: int = 0) -> list[dict[str, Any]]:
    """Samples ``s00000``, ... of classes in turn, as PNG and number."""
    numbers = range(first, first + count)
    return [{"__key__": f"s{n:05d}", "png": picture(n % classes, n), "cls": n % classes} for n in numbers]
