"""Files below one root, which is a directory or a zip that is never unpacked."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Protocol

from ltcore.data.decode import MAX_PIXELS
from ltcore.errors import DataError

MAX_BYTES = 8 * MAX_PIXELS
"""Of one file, that is, of the largest image uncompressed: more in a zip is a bomb rather than a picture."""


class Root(Protocol):
    """Files of a directory or zip. Reading is for one thread at a time: ``zipfile`` shares one file position."""

    where: str
    """The directory or zip, for messages."""
    files: tuple[str, ...]
    """Relative paths with ``/``, sorted; hidden files are left out."""
    fingerprint: str
    """Changes when a file is added, removed, renamed or changed; the same wherever the root lies."""

    def read(self, path: str) -> bytes:
        """The bytes of one of the files; DataError where it is damaged."""
        ...


def open_root(where: str) -> Root:
    """The directory or zip ``where``; DataError where it is neither, or a zip has names that point outside."""
    path = Path(where)
    if path.is_dir():
        return _Directory(path)
    if path.is_file():
        return _Zip(path)
    raise DataError(f"{where} does not exist; expected a directory or a zip of images.")


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.where = str(root)
        found = (
            (Path(folder) / name).relative_to(root).as_posix()
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
        )
        self.files = tuple(sorted(name for name in found if not _hidden(name)))
        self._sizes: dict[str, int] = {}
        self.fingerprint = _digest(self._describe(name) for name in self.files)

    def _describe(self, name: str) -> str:
        try:
            found = (self._root / name).stat()
        except OSError as error:
            raise DataError(f"{self.where}: {name} cannot be read ({error.strerror}). Restore or remove it.") from error
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise DataError(f"{self.where}: {name} is no plain file. Remove it.")
        self._sizes[name] = found.st_size
        return f"{name}\0{found.st_size}\0{found.st_mtime_ns}"

    def read(self, path: str) -> bytes:
        _check_size(self.where, path, self._sizes[path])
        try:
            return (self._root / path).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where}: {path} cannot be read ({error}).") from error


class _Zip:
    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path} is no readable zip ({error}); expected a directory or a zip of images. If it was one, copy or "
                "download it again."
            ) from error
        infos = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        for name in infos:
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:2] == ":":
                raise DataError(f"{path}: the name {name!r} points outside the zip; make the zip again without it.")
        self.files = tuple(sorted(name for name in infos if not _hidden(name)))
        self.fingerprint = _digest(f"{name}\0{infos[name].file_size}\0{infos[name].CRC}" for name in self.files)

    def read(self, path: str) -> bytes:
        _check_size(self.where, path, self._zip.getinfo(path).file_size)
        try:
            return self._zip.read(path)
        except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.where}: {path} cannot be read ({error}). Copy or download it again.") from error


def _check_size(where: str, path: str, size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{where}: {path} has {size} bytes, expected at most {MAX_BYTES}. Remove or shrink it.")


def _hidden(name: str) -> bool:
    """Files that operating systems leave behind."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db") for part in PurePosixPath(name).parts)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
