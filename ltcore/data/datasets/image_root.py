"""Files below one root, which is a directory or a zip that is never unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

from ltcore.data.datasets.columns import GrowingTexts, Texts
from ltcore.data.shards.source import image_ext
from ltcore.errors import BadImageError, DataError
from ltcore.limits import (
    MAX_DEPTH,
    MAX_DIRECTORY_BYTES,
    MAX_FILES,
    MAX_IMAGE_BYTES,
    MAX_PATH_CHARS,
    MAX_RATIO,
    PACKED_BYTES,
    too_many,
)
from ltcore.text import few_words

SYSTEM_NAMES = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
    *("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"),
}
"""What operating systems and network drives leave behind, in lower case; thumbnails of theirs are images by name."""


_SAYS_UTF8, _ZIP_ENCODING = 0x800, "cp437"
"""Flag of a zip's entry whose name is UTF-8, and how ``zipfile`` reads others."""
_BAD_ZIP = (
    *(OSError, EOFError, ValueError, IndexError, RuntimeError, NotImplementedError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
"""What ``zipfile`` raises for damage: names that are no text, fields that are cut off, encryption, unknown methods, ..."""


class Readable(Protocol):
    """Images that are read by path."""

    @property
    def where(self) -> str:
        """Returns what the paths are in, for messages."""
        ...

    def announce(self, paths: Sequence[str]) -> None:
        """Says which images are read next, and in which order, so that they can be fetched ahead."""
        ...

    def read(self, path: str) -> bytes:
        """Reads one of the images. Raises BadImageError where its file is damaged."""
        ...


class Root(Readable, Protocol):
    """Files of a directory or zip. Reading is for one thread at a time: ``zipfile`` shares one file position."""

    where: str
    """The directory or zip."""
    skipped: tuple[str, ...]
    """Relative paths of all that is no image or is hidden, sorted. A hidden folder ends with ``/`` and stands for all in it."""
    empty: tuple[str, ...]
    """Relative paths of folders without any image, sorted; hidden ones are left out."""
    fingerprint: str
    """Changes when an image is added, removed, renamed or changed; the same wherever the root lies."""
    by_content: bool
    """The names of the images do not tell their types."""

    @property
    def files(self) -> Texts:
        """Returns relative paths with ``/`` of the images, which are told by their extension; sorted."""
        ...


class Divisible(Readable, Protocol):
    """Images that can be read in any order and by several processes."""

    def part(self, paths: Iterable[str]) -> Divisible:
        """Returns some of the images as an object that pickles small, for a process that reads no others."""
        ...


@runtime_checkable
class Files(Root, Divisible, Protocol):
    """A root whose images can be read so."""


class AtHand:
    """What images have in common that are read as fast as they are asked for."""

    by_content = False

    def announce(self, paths: Sequence[str]) -> None:
        """Does nothing, since nothing is gained by reading ahead."""


def open_root(where: str) -> Files:
    """Opens the directory or zip ``where``.

    Raises DataError where it is neither, or a zip has names that point outside.
    """
    path = Path(where)
    if path.is_dir():
        return _Directory(path)
    if path.is_file():
        return _Zip(path)
    raise DataError(f"{where} does not exist; expected a directory or a zip of images.")


class _Directory(AtHand):
    def __init__(self, root: Path) -> None:
        self._root = root
        self.where = str(root)
        folders, found, hidden = _walk(root)
        self.files, self.skipped = sorted_out(found, hidden)
        self._refuse_dangling()
        self.empty = without_images(folders, self.files)
        self._unreadable: dict[str, tuple[str, str]] = {}
        self.fingerprint = digest(self._describe(name) for name in self.files)

    def _refuse_dangling(self) -> None:
        """Raises DataError for links that lead nowhere, as to a class folder on a drive that is not mounted."""
        links = [name for name in self.skipped if (self._root / name).is_symlink()]
        if dangling := [name for name in links if not is_hidden(name) and not (self._root / name).exists()]:
            raise DataError(f"{self.where}: links that lead nowhere: {few_words(dangling)}. Restore or remove them.")

    def _describe(self, name: str) -> str:
        try:
            found = os.stat(f"{self.where}/{name}")  # noqa: PTH116 - a million of them
        except OSError as error:  # a link that leads nowhere, say; named with all other broken images when it is read
            self._unreadable[name] = f"cannot be read ({error.strerror})", "Restore or remove it."
            return f"{name}\0unreadable"
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            self._unreadable[name] = "is no plain file", "Remove it."
        return f"{name}\0{found.st_size}\0{found.st_mtime_ns}"

    def read(self, path: str) -> bytes:
        return self.part([path]).read(path)

    def part(self, paths: Iterable[str]) -> _DirectoryPart:
        return _DirectoryPart(self.where, self._unreadable).part(paths)


@dataclass(frozen=True)
class _DirectoryPart(AtHand):
    """Some images of a directory, which is not listed again."""

    where: str
    unreadable: Mapping[str, tuple[str, str]]
    """Path -> problem and advice."""

    def part(self, paths: Iterable[str]) -> _DirectoryPart:
        return _DirectoryPart(self.where, {path: self.unreadable[path] for path in paths if path in self.unreadable})

    def read(self, path: str) -> bytes:
        if path in self.unreadable:
            raise bad_image(self.where, path, *self.unreadable[path])
        try:
            with Path(self.where, path).open("rb") as stream:
                check_size(self.where, path, os.fstat(stream.fileno()).st_size)
                data = stream.read(MAX_IMAGE_BYTES + 1)  # it may grow meanwhile
        except OSError as error:
            raise bad_image(self.where, path, f"cannot be read ({error.strerror})", "Correct or remove it.") from error
        check_size(self.where, path, len(data))
        return data


def _walk(root: Path) -> tuple[list[str], Texts, list[str]]:
    """Returns folders, files and hidden folders below ``root``, by relative path; links to folders are followed.

    Raises DataError for more files than any data set has, for a folder that cannot be listed, and for one that is reached
    twice. Through a link to a folder above it the walk would have no end, and through a link to one beside it, images would
    count twice.
    """
    folders, files, hidden, seen = list[str](), GrowingTexts(), list[str](), dict[tuple[int, int], str]()
    count = 0

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}). Correct its permissions or remove it.")

    for folder, below, names in os.walk(root, followlinks=True, onerror=refuse):
        count += len(below) + len(names)
        if count > MAX_FILES:
            raise too_many(MAX_FILES, str(root), "files")
        here, found = Path(folder).relative_to(root), Path(folder).stat()
        hidden += [f"{(here / name).as_posix()}/" for name in below if is_hidden(name)]
        below[:] = sorted(name for name in below if not is_hidden(name))
        refuse_deep(str(root), [here.as_posix()])
        first = seen.setdefault((found.st_dev, found.st_ino), str(here))
        if first != str(here):
            raise DataError(f"{root}: {here} and {first} are the same folder, through a link. Remove one of them.")
        folders.append(here.as_posix())
        inner = "" if folder == str(root) else f"{here.as_posix()}/"
        for name in names:
            files.append(f"{inner}{name}")
    return folders, files.whole(), hidden


def refuse_deep(where: str, paths: Iterable[str]) -> None:
    """Raises DataError for a path that is longer than any, or has more folders in each other."""
    for path in paths:
        if len(path) > MAX_PATH_CHARS or path.count("/") >= MAX_DEPTH:
            raise DataError(
                f"{where}: the path {path[:80]!r}... has {len(path)} characters and {path.count('/')} folders in each other, "
                f"expected at most {MAX_PATH_CHARS} and {MAX_DEPTH}. Move or remove it."
            )


def sorted_out(found: Iterable[str], hidden: Iterable[str]) -> tuple[Texts, tuple[str, ...]]:
    """Returns the images among the files that were found, and all else with the hidden folders."""
    growing, skipped = GrowingTexts(), set(hidden)
    for path in found:
        if (at := _hidden_at(path)) is not None:
            parts = PurePosixPath(path).parts
            skipped.add("/".join(parts[: at + 1]) + ("/" if at + 1 < len(parts) else ""))
        elif image_ext(path):
            growing.append(path)
        else:
            skipped.add(path)
    files = growing.whole()
    return files.take(files.order()), tuple(sorted(skipped))


def folders_around(files: Iterable[str]) -> set[str]:
    """Returns all folders in the paths of files, for places that do not list their folders."""
    return {str(parent) for name in files for parent in list(PurePosixPath(name).parents)[:-1]}


def without_images(folders: Iterable[str], files: Iterable[str]) -> tuple[str, ...]:
    """Returns the folders without any of the files, which are the images; hidden ones are left out."""
    inner = map(PurePosixPath, {name[: name.rfind("/") + 1] for name in files})
    full = {str(folder) for path in inner for folder in (path, *path.parents)}
    return tuple(sorted(folder for folder in folders if folder not in full and not is_hidden(folder)))


class _Zip(AtHand):
    def __init__(self, path: Path) -> None:
        self.where = self._file = str(path)
        self._zip, found = _open_zip(path), path.stat()
        self._version = (found.st_ino, found.st_size, found.st_mtime_ns)
        named = [(_name_in_zip(info), info) for info in self._zip.infolist()]
        infos = self._infos = {name: info for name, info in named if not name.endswith("/")}
        for name in infos:
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:2] == ":":
                raise DataError(f"{path}: the name {name!r} points outside the zip; make the zip again without it.")
        refuse_deep(str(path), (name for name, _ in named))
        self.files, self.skipped = sorted_out(infos, ())
        _refuse_bomb(path, sum(min(infos[name].file_size, _most_bytes(infos[name])) for name in self.files))
        folders = (name.rstrip("/") for name, _ in named if name.endswith("/"))
        self.empty = without_images({*folders, *folders_around(infos)}, self.files)
        self.fingerprint = digest(f"{name}\0{infos[name].file_size}\0{infos[name].CRC}" for name in self.files)

    def read(self, path: str) -> bytes:
        info = self._infos[path]
        check_size(self.where, path, info.file_size)
        if info.file_size > _most_bytes(info):
            problem = f"has {info.file_size} bytes, packed into {info.compress_size}; expected at most {MAX_RATIO} times as many"
            raise bad_image(self.where, path, problem, "Remove it, or pack it without compression.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without an end
            kind = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma"}.get(info.compress_type, "an unknown method")
            problem = f"is packed by {kind}, expected deflate or none"
            raise bad_image(self.where, path, problem, "Make the zip again with the usual compression.")
        try:
            with self._zip.open(info) as stream:
                return stream.read(info.file_size)  # no more, whatever is really in there
        except _BAD_ZIP as error:
            raise bad_image(self.where, path, f"cannot be read ({error})", "Copy or download it again.") from error

    def part(self, paths: Iterable[str]) -> _ZipPart:
        return _ZipPart(self.where, self._file, self._version, self)


class _Bounded(io.BufferedReader):
    """A file of which no more than ``most`` bytes are read at once."""

    most = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise ValueError(f"its list of files has {size} bytes, expected at most {self.most}")
        return super().read(size)


def _open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip. Raises DataError where it is none, or its list of files, which is read at once, is too large."""
    try:
        opened = zipfile.ZipFile(stream := _Bounded(io.FileIO(path)))
    except _BAD_ZIP as error:
        raise DataError(
            f"{path} is no readable zip ({error}); expected a directory or a zip of images. If it was one, copy or "
            "download it again."
        ) from error
    stream.most = MAX_IMAGE_BYTES
    return opened


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """Returns the name of an entry: as UTF-8 where its bytes are that, since zip and the Mac write it without saying so."""
    if info.flag_bits & _SAYS_UTF8:
        return info.filename
    try:
        return info.filename.encode(_ZIP_ENCODING).decode()
    except UnicodeError:
        return info.filename


def _most_bytes(info: zipfile.ZipInfo) -> int:
    """Returns how many bytes an entry may have, unpacked."""
    return max(PACKED_BYTES, MAX_RATIO * info.compress_size)


def _refuse_bomb(path: Path, unpacked_bytes: int) -> None:
    """Raises DataError where the images together unpack to more than any do: entries may share their packed bytes."""
    packed_bytes = path.stat().st_size
    if unpacked_bytes > max(PACKED_BYTES, MAX_RATIO * packed_bytes):
        raise DataError(
            f"{path} has {packed_bytes} bytes and {unpacked_bytes} unpacked; expected at most {MAX_RATIO} times as many. Unpack "
            "it yourself if it is right."
        )


class _ZipPart(AtHand):
    """A zip by its name, which each other process opens once, and this one where it has closed it."""

    def __init__(self, where: str, file: str, version: tuple[int, ...], opened: _Zip | None = None) -> None:
        self.where, self._file, self._version = where, file, version
        self._opened = weakref.ref(opened) if opened is not None else None

    def __reduce__(self) -> tuple[type[_ZipPart], tuple[Any, ...]]:
        return _ZipPart, (self.where, self._file, self._version)

    def part(self, paths: Iterable[str]) -> _ZipPart:
        return self

    def read(self, path: str) -> bytes:
        here = self._opened() if self._opened is not None else None
        return (here or _opened(self.where, self._file, self._version)).read(path)


@lru_cache(maxsize=1)
def _opened(where: str, file: str, _version: tuple[int, ...]) -> _Zip:
    """Opens a zip, once for each of its versions."""
    found = _Zip(Path(file))
    found.where = where
    return found


def check_size(where: str, path: str, size: int) -> None:
    """Raises BadImageError for a file that is larger than any image."""
    if size > MAX_IMAGE_BYTES:
        raise bad_image(where, path, f"has {size} bytes, expected at most {MAX_IMAGE_BYTES}", "Remove or shrink it.")


def bad_image(where: str, path: str, problem: str, advice: str) -> BadImageError:
    """Makes the error for one of the files that is not to be used."""
    return BadImageError(f"{where}: {path} {problem}. {advice}", problem)


def is_hidden(path: str) -> bool:
    """Tells whether a file or folder is hidden or left behind by the system, or lies in such a folder."""
    return _hidden_at(path) is not None


def _hidden_at(path: str) -> int | None:
    """Returns which part of the path is hidden or left behind by the system, the first counting as 0."""
    if not any(map(_is_hidden_name, path.split("/"))):  # in most of millions of paths
        return None
    return next((at for at, part in enumerate(PurePosixPath(path).parts) if _is_hidden_name(part)), None)


def _is_hidden_name(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def digest(lines: Iterable[str]) -> str:
    """Hashes the descriptions of files."""
    hashed = hashlib.sha256()
    for number, line in enumerate(lines):
        hashed.update(b"\n" * (number > 0) + line.encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()
