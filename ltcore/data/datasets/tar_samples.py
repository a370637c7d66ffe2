"""The samples of one tar of somebody else: where each image lies and what its label is, and what is wrong with the others.

A sample is what WebDataset takes for one: members whose names are equal up to the first dot of the last part. Unlike there
they need not lie side by side, and where such a group holds several pairs of image and label (``a.1.jpg``, ``a.1.cls``,
``a.2.jpg``, ...), dots were part of the keys, and each pair is a sample.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from ltcore.data.images.decode import decode_image
from ltcore.data.room import Room
from ltcore.data.shards.source import ALIASES, EXTENSIONS, ext_of
from ltcore.data.shards.stream import HashedStream
from ltcore.data.shards.tar import Damage, Member, members, split_name
from ltcore.errors import DataError
from ltcore.limits import (
    HELD_BYTES,
    MAX_IMAGE_BYTES,
    MAX_KEY_CHARS,
    MAX_LABEL_BYTES,
    MAX_NAME_CHARS,
    MAX_ROWS,
    MAX_SAMPLE_FILES,
    MAX_SAMPLE_JSON_BYTES,
    too_many,
)
from ltcore.text import storable

CLASS_FIELDS = ("cls", "class", "label")
"""Extensions of a member that holds the label as text."""
LABEL_KEY = "label"
"""Where a ``.json`` has the label, if nothing else is said."""
CHUNK = 64
"""Images of a tar that are in memory at once."""
_ROOM = Room(HELD_BYTES)
"""For the images of all tars that are read beside one another."""
_IMAGE_FIELDS = ("jpg", "jpeg", "png", *EXTENSIONS, *ALIASES)
"""In order of preference where a sample has several."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sample with image and label."""

    key: str
    label: str
    ext: str
    offset: int
    size: int
    crc32: int


@dataclass
class TarRows:
    """What was found in one tar."""

    rows: list[Row] = field(default_factory=list)
    """By the places of their first members."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Key and what is wrong."""


@dataclass(slots=True)
class _Field:
    """One member of a sample."""

    offset: int
    size: int
    crc32: int = 0
    label: str = ""
    problem: str = ""
    """With the content."""
    repeated: str = ""
    """With the number of such files."""


Fields = dict[str, _Field]


def read_rows(stream: HashedStream, size: int, where: str, label_key: str | None, pool: Executor) -> TarRows:
    """Reads all members of a tar, and decodes every image once, so that a broken one is named now and not in training.

    Args:
        stream: the tar.
        size: of the tar, in bytes.
        where: the tar's name, for messages.
        label_key: path of the label in the ``.json`` of a sample, with dots; None: the text of ``.cls`` where there is
            one, else ``label`` of the ``.json``.
        pool: decodes.

    Raises DataError where the tar is no tar, is cut off, or has more samples than any data set.
    """
    groups: dict[str, Fields] = {}
    with _Waiting(pool) as waiting:
        for key, ext, member in _named_members(stream, size, where, waiting.wants):
            _note(groups.setdefault(key, {}), ext, member, label_key, waiting)
            if len(groups) > MAX_ROWS:
                raise too_many(MAX_ROWS, where, "samples")
            del member  # whose bytes take room until they are decoded, and no longer
        waiting.decode()
    return _resolved(groups, label_key)


def _note(fields: Fields, ext: str, member: Member, label_key: str | None, waiting: _Waiting) -> None:
    """Adds a member to its sample."""
    if len(fields) >= MAX_SAMPLE_FILES:
        next(iter(fields.values())).repeated = f"has more than {MAX_SAMPLE_FILES} files"
        return
    entry = fields[ext] = _Field(member.offset, member.size, repeated=f"has .{ext} twice" if ext in fields else "")
    if not image_ext(ext):
        _read_label(entry, ext, member, label_key)
    elif member.size > MAX_IMAGE_BYTES:
        entry.problem = f"has an image of {member.size} bytes, expected at most {MAX_IMAGE_BYTES}"
    else:
        waiting.images.append((entry, member.data))
        entry.crc32 = member.crc32


def image_ext(name: str) -> str:
    """Returns the extension that an image of this member name has in shards, or '' where it is no image."""
    return ext_of(name.rpartition(".")[2])


def _named_members(
    stream: HashedStream, size: int, where: str, wants: Callable[[str, int], bool]
) -> Iterator[tuple[str, str, Member]]:
    """Yields key, field and content; what no WebDataset reader takes for a sample is left out.

    That is: folders, links, hidden files such as ``._0.jpg``, names that start and end with ``__``.
    """
    for item in members(stream, size, wants):
        if isinstance(item, Damage):
            if item.is_kind:
                continue
            raise DataError(f"{where}: {item.key} {item.what}. Copy or download it again.".replace(":  ", ": "))
        name, member = item
        key, ext = split_name(name.removeprefix("./"))
        base = key.rpartition("/")[2]
        if base and ext and not (base.startswith("__") and name.endswith("__")):
            yield key, ext, member
        del item, member


def _wanted(name: str, size: int) -> bool:
    """Tells whether a member is read; larger ones are named, and others than images and labels do not matter."""
    ext = name.rpartition(".")[2].lower()
    if image_ext(ext):
        return size <= MAX_IMAGE_BYTES
    return size <= (MAX_SAMPLE_JSON_BYTES if ext == "json" else MAX_LABEL_BYTES) and ext in ("json", *CLASS_FIELDS)


class _Waiting:
    """Images that wait to be decoded, and the room that they take."""

    def __init__(self, pool: Executor) -> None:
        self.images: list[tuple[_Field, bytes]] = []
        self._pool, self._bytes = pool, 0

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        _ROOM.give(self._bytes)

    def wants(self, name: str, size: int) -> bool:
        """Tells whether a member is read; for an image, waits for room."""
        if not _wanted(name, size):
            return False
        if image_ext(name):
            size = min(size, HELD_BYTES)
            if len(self.images) == CHUNK or not _ROOM.take(size, wait=False):
                self.decode()  # so that nothing is held while others are waited for
                _ROOM.take(size)
            self._bytes += size
        return True

    def decode(self) -> None:
        """Notes what is wrong with the images, and lets them go."""
        found = self._pool.map(_image_problem, (data for _, data in self.images))
        for (entry, _), problem in zip(self.images, found, strict=True):
            entry.problem = problem
        self.images.clear()
        _ROOM.give(self._bytes)
        self._bytes = 0


def _image_problem(data: bytes) -> str:
    try:
        decode_image(data, "")
    except DataError as error:
        return str(error).removeprefix(": ").partition(". Remove")[0]
    return ""


def _read_label(entry: _Field, ext: str, member: Member, label_key: str | None) -> None:
    """Notes the label that a member holds, or why it holds none."""
    last = ext.rpartition(".")[2]
    try:
        if last in CLASS_FIELDS:
            entry.label = _text_label(member)
        elif last == "json":
            entry.label = _json_label(member, label_key or LABEL_KEY)
    except ValueError as error:
        entry.problem = f".{ext} {error}"


def _text_label(member: Member) -> str:
    if member.size > MAX_LABEL_BYTES:
        raise ValueError(f"has {member.size} bytes, expected a label of at most {MAX_LABEL_BYTES}")
    try:
        return _label(member.data.decode("utf-8-sig").strip())
    except UnicodeDecodeError:
        raise ValueError("is no text in UTF-8") from None


def _json_label(member: Member, label_key: str) -> str:
    if member.size > MAX_SAMPLE_JSON_BYTES:
        raise ValueError(f"has {member.size} bytes, expected at most {MAX_SAMPLE_JSON_BYTES}")
    try:
        value: Any = json.loads(member.data)
    except (ValueError, RecursionError):
        raise ValueError("is no JSON") from None
    for part in label_key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"has no {label_key!r}")
        value = value[part]
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"has {str(value)[:40]!r} as {label_key!r}, expected a number or a name")
    return _label(str(value) if isinstance(value, str) or abs(value) < 10**18 else "9" * 19)


def _label(text: str) -> str:
    """Returns the label: a class name, or the number of a class in its shortest form."""
    text = text.strip()
    if not text:
        raise ValueError("is empty")
    if len(text) > MAX_NAME_CHARS:
        raise ValueError(f"has a label of {len(text)} characters, expected at most {MAX_NAME_CHARS}")
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()):
        return storable(text)
    if len(digits) > 18 or text.startswith("-"):
        raise ValueError(f"has the label {text[:20]}, expected a number from 0 on")
    return str(int(text))


def _resolved(groups: Mapping[str, Fields], label_key: str | None) -> TarRows:
    found = TarRows()
    for group, fields in groups.items():
        if (several := _pairs(fields, label_key)) is None:
            _resolve(group, fields, label_key, found)
        else:
            for prefix, own in several.items():
                _resolve(f"{group}.{prefix}", own, label_key, found)
    return found


def _pairs(fields: Fields, label_key: str | None) -> dict[str, Fields] | None:
    """Returns the samples that a group holds by the parts of their keys behind its first dot; None where it is one."""
    if len(fields) < 2 or any("." not in ext and image_ext(ext) for ext in fields):
        return None
    parts: dict[str, Fields] = {}
    for ext, entry in fields.items():
        prefix, _, last = ext.rpartition(".")
        parts.setdefault(prefix, {})[last] = entry
    is_pair = (any(map(image_ext, part)) and any(_label_fields(part, label_key)) for part in parts.values())
    return parts if any(is_pair) else None


def _resolve(key: str, fields: Fields, label_key: str | None, found: TarRows) -> None:
    """Adds the sample, or what is wrong with it; a group without image and label is none."""
    images = _first(fields, image_ext)
    labels = _first(fields, lambda ext: ext in _label_fields(fields, label_key))
    if not images and not any(fields[ext].label for ext in labels):
        return
    problem = _problem(key, fields, images, labels)
    if problem:
        found.bad.append((storable(key), problem))
        return
    image, ext = fields[images[0]], image_ext(images[0])
    row = Row(storable(key), fields[labels[0]].label, ext, image.offset, image.size, image.crc32)
    found.rows.append(row)


def _first(fields: Fields, is_one: Callable[[str], Any]) -> list[str]:
    """Returns the fields in question: those with a plain name if there are any, in the order of preference."""
    chosen = [ext for ext in fields if is_one(ext)]
    plain = [ext for ext in chosen if "." not in ext]
    order = (*_IMAGE_FIELDS, *CLASS_FIELDS, "json")
    return sorted(plain, key=order.index)[:1] if plain else chosen


def _label_fields(fields: Fields, label_key: str | None) -> list[str]:
    """Returns the fields that may hold the label: of ``.cls`` and ``.json`` the one that counts."""
    text = [ext for ext in fields if ext.rpartition(".")[2] in CLASS_FIELDS] if label_key is None else []
    return text or [ext for ext in fields if ext.rpartition(".")[2] == "json"]


def _problem(key: str, fields: Fields, images: list[str], labels: list[str]) -> str:
    has = f"it has {', '.join(f'.{ext[:40]}' for ext in list(fields)[:5])}"
    if len(key) > MAX_KEY_CHARS:
        return f"has a name of {len(key)} characters, expected at most {MAX_KEY_CHARS}"
    if not images:
        return f"has no image ({has})"
    if not labels:
        return f"has no label ({has}; expected .cls or .json)"
    if len(images) > 1 or len(labels) > 1:
        return f"has several images or labels ({has}), none of which is plainly named"
    repeated = (entry.repeated for entry in fields.values() if entry.repeated)
    return next(repeated, "") or fields[images[0]].problem or fields[labels[0]].problem
