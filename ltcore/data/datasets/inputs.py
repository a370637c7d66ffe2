"""Images to predict, in the order in which a person names them: files, folders, zips and lists of files.

Nothing is decoded here, and nothing is made of it: unlike a data set, it has no splits and needs no classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Protocol

from ltcore.data.datasets.image_root import Root, open_root
from ltcore.data.datasets.lists import at_most
from ltcore.data.datasets.skipped import skipped_words
from ltcore.data.images.given import read_image
from ltcore.errors import DataError
from ltcore.limits import MAX_DIGITS, MAX_LIST_BYTES
from ltcore.storage import is_local, is_plain, local_path

LISTS = (".txt", ".lst")
"""Endings of files that list images."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image."""

    file: str
    """Where it is, for people and for the column ``file``."""
    read: Callable[[], bytes]
    """Raises DataError where it cannot be read."""
    label: str | None = None
    """Its class, where that is known."""


class Inputs:
    """What a person named, image by image. May be iterated over again; reading is thread-safe.

    Args:
        words: image files, folders, zips, and lists (``LISTS``) with a line ``path`` or ``path label`` for each image.
        classes: of the network. A folder of such a name says the label, and so does a name in a list, or a number as a
            position in them, where no class is called so.

    Raises DataError for a folder, zip or list that cannot be read or holds nothing.
    """

    def __init__(self, words: Sequence[str], classes: Sequence[str]) -> None:
        self._parts = [_part(word, classes) for word in words]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[Item]:
        for part in self._parts:
            yield from part

    @property
    def remarks(self) -> list[str]:
        """Returns what is left out of folders and zips, because it is no image."""
        roots = [part for part in self._parts if isinstance(part, _RootPart)]
        return [f"{part.word}: skipped {words}." for part in roots if (words := skipped_words(part.skipped))]

    @property
    def labeled(self) -> bool:
        """Tells whether the label of any image is known."""
        return any(item.label is not None for item in self)


class _Part(Protocol):
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...


def in_store(word: str) -> bool:
    """Tells whether it lies elsewhere than on this machine."""
    return not is_local(word)


def _part(word: str, classes: Sequence[str]) -> _Part:
    if in_store(word):
        raise DataError(f"{word}: only shards are predicted from elsewhere. Copy the images to this machine.")
    path = local_path(word)
    if path.is_dir() or path.suffix.lower() == ".zip":
        return _RootPart(word, open_root(str(path)), frozenset(classes))
    if path.suffix.lower() in LISTS:
        return _ListPart(path, classes)
    return [Item(word, partial(read_image, path))]


class _RootPart:
    """All images below a folder or in a zip."""

    def __init__(self, word: str, root: Root, classes: Collection[str]) -> None:
        self.word, self.skipped = word.rstrip("/") or "/", root.skipped
        self._root, self._classes = root, classes
        self._lock = Lock()
        if not root.files:
            raise DataError(f"{word} holds no image. Give a folder or zip with images, or their files.")

    def __len__(self) -> int:
        return len(self._root.files)

    def __iter__(self) -> Iterator[Item]:
        for path in self._root.files:
            folder = PurePosixPath(path).parent.name
            yield Item(f"{self.word}/{path}", partial(self._read, path), folder if folder in self._classes else None)

    def _read(self, path: str) -> bytes:
        with self._lock:  # a root is for one thread at a time
            return self._root.read(path)


class _ListPart:
    """The images that a list names, as seen from the working folder, else from the folder of the list."""

    def __init__(self, file: Path, classes: Sequence[str]) -> None:
        self._file, self._classes, self._known = file, classes, frozenset(classes)
        self._lines = list(at_most((line for line in enumerate(_lines(file), 1) if line[1].strip()), str(file)))
        if not self._lines:
            raise DataError(f"{file} is empty; expected a line 'path' or 'path label' for each image.")
        for number, line in self._lines:  # now rather than in the middle
            self._split(number, line)

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Item]:
        for number, line in self._lines:
            path, label = self._split(number, line)
            beside = self._file.parent / path
            found = beside if not _exists(path) and _exists(beside) else Path(path)
            yield Item(str(found), partial(read_image, found), label)

    def _split(self, number: int, line: str) -> tuple[str, str | None]:
        """Returns path and class. The class is a name of one, else a position; after a tab there has to be one."""
        line = line.strip()
        path, tab, last = line.rpartition("\t" if "\t" in line else " ")
        is_label = last in self._known or last.isdecimal() or tab == "\t"
        if not path or not PurePosixPath(path).suffix or not is_label:
            return line, None
        if last in self._known:
            return path.strip(), last
        if not last.isdecimal() or len(last) > MAX_DIGITS or int(last) >= len(self._classes):
            raise DataError(
                f"{self._file}, line {number}: label {last[:20]}, expected a class of the run by its name, or 0 to "
                f"{len(self._classes) - 1}, its position."
            )
        return path.strip(), self._classes[int(last)]


def _exists(path: str | Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - a pathlib of Python 3.11 raises for a name that is too long


def _lines(file: Path) -> Iterator[str]:
    try:
        found = file.stat()
        if not is_plain(found) or found.st_size > MAX_LIST_BYTES:
            raise DataError(f"{file} is no list: expected a plain text file of at most {MAX_LIST_BYTES} bytes.")
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
            yield from lines
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Give a list of image files.") from error
