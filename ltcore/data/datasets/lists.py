"""Rows of text files that say which image is of which class: lists of ``path label``, and tables with a header."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import urlsplit

from ltcore import limits, storage
from ltcore.data.config import DataConfig
from ltcore.errors import ConfigError, DataError, LtcoreError, nearest
from ltcore.limits import MAX_CELL_CHARS, MAX_LIST_BYTES, MAX_ROWS

T = TypeVar("T")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What people call the splits, in any case."""
COLUMNS = {
    "image": ("image", "path", "file", "filename", "file_name", "image_path"),
    "label": ("label", "class", "category", "target"),
    "split": ("split",),
    "attribute": ("attribute",),
}
"""What a column is for, and the names that say so."""
_LISTS, _TABLES, _JSON = (".txt", ".lst", ".list"), (".csv", ".tsv"), ".json"


@dataclass(frozen=True, slots=True)
class Row:
    """One image as a file lists it."""

    origin: str
    """``labels.csv, line``: with the number, the place that a message names."""
    number: int
    path: str
    label: str
    split: str = ""
    """'' where the file does not say."""
    attribute: str = ""
    picture: str = ""
    """What it shows, where other paths may show the same; '' where none does."""
    shots: str = ""
    """The shot group of its class, '' where the file does not say."""

    @property
    def identity(self) -> str:
        """Returns what no two kinds of splits may have in common."""
        return self.picture or self.path

    @property
    def place(self) -> str:
        return f"{self.origin} {self.number}"


def file_name(uri: str) -> str:
    """Returns the last part of a place; of an address in the web, that is without its query."""
    path = urlsplit(uri).path if storage.is_web(uri) else uri
    return PurePosixPath(path).name


def is_list(uri: str) -> bool:
    """Tells by the name whether the file lists images, one a line, as a table or as json."""
    return file_name(uri).lower().removesuffix(".gz").endswith((*_LISTS, *_TABLES, _JSON))


def is_json(uri: str) -> bool:
    """Tells by the name whether the file is json."""
    return file_name(uri).lower().removesuffix(".gz").endswith(_JSON)


def split_of(word: str) -> str:
    """Returns the split that a word means, or '' where it means none.

    Known words are train, Training, valid, dev and others.
    """
    return SPLIT_WORDS.get(word.lower(), "")


def named_split(word: str, where: str, error: type[LtcoreError] = ConfigError) -> str:
    """Returns the split that somebody names; ``train_...`` and ``test_...`` name further ones.

    Raises ``error`` that begins with ``where`` for other words.
    """
    split = split_of(word)
    if not split and word.split("_")[0] in ("train", "test"):
        return word
    if not split:
        raise error(
            f"{where}: there is no such split.{nearest(word, SPLIT_WORDS)} Known: {', '.join(SPLIT_WORDS)}, and "
            "train_... and test_... for further ones."
        )
    return split


def read_rows(data: bytes, uri: str, cfg: DataConfig) -> list[Row]:
    """Reads the rows of the list or table ``uri``, whose bytes are ``data``, gzipped or not.

    A list has lines of ``path label``; a table has a header, whose columns are those of ``cfg`` or have usual names.
    Raises DataError with file and line.
    """
    text = list_text(data, uri)
    is_table = file_name(uri).lower().removesuffix(".gz").endswith(_TABLES)
    rows = list(at_most(_table_rows(text, uri, cfg) if is_table else _list_rows(text, uri), uri))
    if not rows:
        expected = "a header and a line for each image" if is_table else "lines of 'path label'"
        raise DataError(f"{uri} is empty; expected {expected}.")
    return rows


def at_most(rows: Iterable[T], uri: str) -> Iterator[T]:
    """Yields the rows. Raises DataError where there are more than any data set has."""
    return limits.at_most(rows, MAX_ROWS, uri, "rows")


def list_text(data: bytes, uri: str) -> str:
    """Returns the text of a list, unzipped where it is gzipped. Raises DataError where it is too large or no text."""
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise DataError(f"{uri} is larger than {MAX_LIST_BYTES} bytes, unpacked. Split it, or leave out rows.")
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{uri} is no readable list ({error}). Copy or download it again.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{uri} is no readable list: byte {error.start} is no UTF-8. Save it as UTF-8.") from error


def _list_rows(text: str, uri: str) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(text), 1):
        line = line.strip()
        if not line:
            continue
        path, _, label = line.rpartition("\t" if "\t" in line else " ")
        if not path or not label:
            raise DataError(f"{uri}, line {number}: expected 'path label', found {line[:200]!r}.")
        yield checked_row(f"{uri}, line", number, (path.strip(), label, "", ""))


def _table_rows(text: str, uri: str, cfg: DataConfig) -> Iterator[Row]:
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max("\t,;", key=header.count), strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        found = find_columns(names, uri, cfg)
        places = [names.index(found[role]) if found[role] else None for role in COLUMNS]
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{uri}, line {reader.line_num}: {len(cells)} cells, but the header has {len(names)}. Quote cells that "
                    "hold the separator."
                )
            image, label, split, attribute = ("" if at is None else cells[at].strip() for at in places)
            yield checked_row(
                f"{uri}, line", reader.line_num, (image, label, split, attribute), has_split=places[2] is not None
            )
    except csv.Error as error:
        raise DataError(f"{uri}, line {reader.line_num}: no readable table ({error}). Correct the line.") from error


def checked_row(origin: str, number: int, cells: tuple[str, str, str, str], has_split: bool = False) -> Row:
    """Returns the row of path, label, split and attribute at a place. Raises DataError where it cannot be one."""
    if long := next((cell for cell in cells if len(cell) > MAX_CELL_CHARS), ""):
        raise DataError(
            f"{origin} {number}: the text {long[:40]!r}... has {len(long)} characters, expected at most {MAX_CELL_CHARS}."
        )
    path, label, split, attribute = cells
    if not path or "\0" in path or not _is_file_name(path):
        raise DataError(f"{origin} {number}: {path!r} names no image. Fill the cell, or remove the row.")
    if has_split:
        split = named_split(split, f"{origin} {number}: split {split!r}", DataError)
    return Row(origin, number, path, label, split, attribute)


def _is_file_name(path: str) -> bool:
    """Tells whether a file can be called so: json may hold halves of a surrogate pair, which no name has."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def find_columns(names: Sequence[str], where: str, cfg: DataConfig) -> dict[str, str]:
    """Returns what each column is for -> its name, '' where there is none: those that ``cfg`` names, else usual ones.

    Raises ConfigError that names the columns that there are.
    """
    there = f"It has {', '.join(map(repr, names[:20]))}{', ...' if len(names) > 20 else ''}" if names else "It has none"
    found = {}
    for role, usual in COLUMNS.items():
        key, flag = f"data.{role}_column", f"--{role}-column"
        given = getattr(cfg, f"{role}_column")
        known = [name for name in names if re.sub(r"[\s-]+", "_", name.lower()) in usual]
        if given is not None and given not in names:
            raise ConfigError(f"{key}={given}: {where} has no such column.{nearest(given, names)} {there}.")
        if given is None and len(known) > 1:
            raise ConfigError(
                f"{where}: the columns {' and '.join(map(repr, known))} may both be the {role}. Choose one: {key}=NAME "
                f"(make_shards.py {flag})."
            )
        if given is None and not known and role in ("image", "label"):
            raise ConfigError(
                f"{where}: no column is known for the {role} ({', '.join(usual)}). {there}. Choose one: {key}=NAME "
                f"(make_shards.py {flag}); without a header, add one."
            )
        found[role] = given or next(iter(known), "")
    return found


def read_list_file(uri: str) -> bytes:
    """Reads the bytes of a list or table, no more than there may be."""
    return storage.read_bytes(uri, most_bytes=MAX_LIST_BYTES)
