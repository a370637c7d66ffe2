"""What shards are written from: samples, split by split, and what is known of them together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ltcore.hashing import hash64

if TYPE_CHECKING:
    import pyarrow as pa

EXTENSIONS = ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm", "avif", "heic")
"""Of images in shards, one for each format."""
ALIASES = {
    **dict.fromkeys(("jpeg", "jpe", "jfif", "jif"), "jpg"),
    **dict.fromkeys(("pgm", "pbm", "pnm"), "ppm"),
    **dict.fromkeys(("heif", "hif"), "heic"),
    "tiff": "tif",
    "apng": "png",
}
"""What else people's files are called -> the extension in shards."""
MAX_KEY = 90  # with the extension it must fit the 100 bytes that a plain tar header has for a name
_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image on its way into a shard."""

    key: str
    """Unique inside its split: letters, digits, ``_``, ``-`` and inner ``/``; at most 90. See ``safe_key``."""
    image: bytes
    """The encoded file, as it is."""
    ext: str
    """One of ``EXTENSIONS``."""
    label: int
    """Position in the class list."""
    attribute: int = -1
    """Position in the attribute list; -1 is unknown."""


def image_ext(path: str) -> str:
    """Returns the extension that an image of this name has in shards, or '' where the name is not an image's.

    Only the name counts, in any case.
    """
    return ext_of(suffix_of(path).removeprefix("."))


def suffix_of(path: str) -> str:
    """Returns what ``PurePosixPath(path).suffix`` is of a file, in a tenth of the time: there are millions of paths."""
    name = path[path.rfind("/") + 1 :]
    dot = name.rfind(".")
    return name[dot:] if 0 < dot < len(name) - 1 else ""


def ext_of(suffix: str) -> str:
    """Returns the extension in shards for one that people's files have, without its dot, or '' where it is no image's."""
    suffix = suffix.lower()
    ext = ALIASES.get(suffix, suffix)
    return ext if ext in EXTENSIONS else ""


def is_key(text: str) -> bool:
    """Tells whether the text may be the key of a sample."""
    return bool(_KEY.fullmatch(text)) and len(text) <= MAX_KEY


def safe_key(text: str) -> str:
    """Returns a legal key for any text, and the same text for a legal key.

    A hash keeps changed texts apart.
    """
    if is_key(text):
        return text
    plain = re.sub(r"[^A-Za-z0-9_/-]+", "_", text)
    plain = re.sub(r"/+", "/", plain).strip("/")
    return f"{plain[-(MAX_KEY - 17) :].lstrip('/')}-{hash64(text):016x}"


class Rows(Protocol):
    """The samples of one split, read while they are iterated; every iteration gives the same ones."""

    def __iter__(self) -> Iterator[Sample]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a data set before it is written; fields as in ``ltcore.data.shards.manifest.Manifest``."""

    name: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shot_rule: str
    shot_groups: tuple[str, ...] = ()
    """Of each class where the rule is ``given``; else they follow from the images."""
    provenance: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source(Description):
    """A data set whose samples are written into shards."""

    splits: Mapping[str, Rows]


@dataclass(frozen=True, kw_only=True)
class IndexedTar:
    """Samples of one split in one tar that somebody else wrote."""

    base: str
    """Folder or URI prefix that ``path`` is below; '' where the tar moves into the data set."""
    path: str
    bytes: int
    sha256: str
    index: pa.Table
    """Columns as in ``ltcore.data.shards.writer.INDEX_SCHEMA``."""
    unpacked: Path | None = None
    """The file that moves into the data set under the name ``path``."""


@dataclass(frozen=True, kw_only=True)
class Indexed(Description):
    """A data set whose samples stay in the tars in which they are."""

    splits: Mapping[str, Sequence[IndexedTar]]
