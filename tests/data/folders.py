"""Folders and zips of images as people have them."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

from tests.data.small import tiny_png

PACKS = ("folder", "zip")


def images(*folders: str, count: int = 5) -> dict[str, bytes]:
    """As many images in each of the folders, all different."""
    paths = [f"{folder}/{n}.png" for folder in folders for n in range(count)]
    return {path: tiny_png(zlib.crc32(os.fsencode(path))) for path in paths}


def place(parent: Path, files: dict[str, bytes], pack: str = "folder", name: str = "photos") -> str:
    """Writes the files into a folder, or a zip without entries for folders. A name that ends with ``/`` is a folder."""
    if pack == "zip":
        parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(parent / f"{name}.zip", "w") as archive:
            for path, data in files.items():
                archive.writestr(path, data)
        return str(parent / f"{name}.zip")
    for path, data in files.items():
        file = parent / name / path
        if path.endswith("/"):
            file.mkdir(parents=True, exist_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return os.fspath(parent / name)
