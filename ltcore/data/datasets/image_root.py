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

from ltcore.data.images.decode import MAX_PIXELS
from ltcore.errors import DataError

MAX_BYTES = 8 * MAX_PIXELS
"""Of one file, that is, of the largest image uncompressed: more in a zip is a bomb rather than a picture."""


PACKED_BYTES, MAX_RATIO = 16 * 2**20, 200
"""Files of a zip that are larger than the first and than the second times their packed size are no pictures either."""


class Readable(Protocol):
    """Images that are read by path."""

    @property
    def where(self) -> str:
        """Returns what the paths are in, for messages."""
        ...

    def read(self, path: str) -> bytes:
        """Reads one of the images."""
        ...


class Root(Protocol):
    """Files of a directory or zip. Reading is for one thread at a time: ``zipfile`` shares one file position."""

    where: str
    """The directory or zip, for messages."""
    files: tuple[str, ...]
    """Relative paths with ``/``, sorted; hidden files are left out."""
    empty: tuple[str, ...]
    """Relative paths of folders without any of these files, sorted; hidden ones are left out."""
    fingerprint: str
    """Changes when a file is added, removed, renamed or changed; the same wherever the root lies."""

    def read(self, path: str) -> bytes:
        """Reads one of the files. Raises DataError where it is damaged."""
        ...


def open_root(where: str) -> Root:
    """Opens the directory or zip ``where``.

    Raises DataError where it is neither, or a zip has names that point outside.
    """
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
        folders, found = _walk(root)
        self.files = tuple(sorted(name for name in found if not _hidden(name)))
        self.empty = _empty(folders, self.files)
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


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Returns folders and files below ``root``, by relative path; links to folders are followed.

    Raises DataError for a folder that cannot be listed, and for one that is reached twice. Through a link to a folder
    above it the walk would have no end, and through a link to one beside it, images would count twice.
    """
    folders, files, seen = [], [], dict[tuple[int, int], str]()

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}). Correct its permissions or remove it.")

    for folder, below, names in os.walk(root, followlinks=True, onerror=refuse):
        below[:] = sorted(name for name in below if not _hidden(name))
        here, found = Path(folder).relative_to(root), Path(folder).stat()
        first = seen.setdefault((found.st_dev, found.st_ino), str(here))
        if first != str(here):
            raise DataError(f"{root}: {here} and {first} are the same folder, through a link. Remove one of them.")
        folders.append(here.as_posix())
        files += [(here / name).as_posix() for name in names]
    return folders, files


def _empty(folders: Iterable[str], files: Iterable[str]) -> tuple[str, ...]:
    full = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    return tuple(sorted(folder for folder in folders if folder not in full and not _hidden(folder)))


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
        self.empty = _empty((info.filename.rstrip("/") for info in self._zip.infolist() if info.is_dir()), self.files)
        self.fingerprint = _digest(f"{name}\0{infos[name].file_size}\0{infos[name].CRC}" for name in self.files)

    def read(self, path: str) -> bytes:
        info = self._zip.getinfo(path)
        _check_size(self.where, path, info.file_size)
        if info.file_size > max(PACKED_BYTES, MAX_RATIO * info.compress_size):
            raise DataError(
                f"{self.where}: {path} has {info.file_size} bytes, packed into {info.compress_size}; expected at most "
                f"{MAX_RATIO} times as many. Remove it, or pack it without compression."
            )
        try:
            return self._zip.read(path)
        except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.where}: {path} cannot be read ({error}). Copy or download it again.") from error


def _check_size(where: str, path: str, size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{where}: {path} has {size} bytes, expected at most {MAX_BYTES}. Remove or shrink it.")


def _hidden(name: str) -> bool:
    """Tells whether a file is one of those that operating systems leave behind."""
    return any(
        part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "lost+found") for part in PurePosixPath(name).parts
    )


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
