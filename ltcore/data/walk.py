"""Walks a WebDataset tar sample by sample and tells where it is damaged."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Member:
    """One file of a sample."""

    data: bytes
    offset: int
    """Of the data inside the tar."""

    @cached_property
    def crc32(self) -> int:
        return zlib.crc32(self.data)


@dataclass(frozen=True)
class TarSample:
    """Neighboring members with one key; ``members`` goes by extension."""

    key: str
    members: dict[str, Member]


@dataclass(frozen=True)
class Damage:
    """Something that no reader could make sense of; ``key`` is '' where it concerns the tar as a whole."""

    key: str
    what: str


def split_name(name: str) -> tuple[str, str]:
    """Key and extension as WebDataset has them: the first dot of the last part divides."""
    folder, slash, base = name.rpartition("/")
    stem, _, ext = base.partition(".")
    return f"{folder}{slash}{stem}", ext.lower()


def walk(data: bytes) -> Iterator[TarSample | Damage]:
    """The samples of a tar in order, and what is wrong with it: truncation, unreadable headers, odd members, and
    samples whose files do not lie side by side."""
    seen: set[str] = set()
    key, members = "", dict[str, Member]()
    for item in _members(data):
        if isinstance(item, Damage):
            yield item
            continue
        name, member = item
        next_key, ext = split_name(name)
        if members and (next_key != key or ext in members):
            yield TarSample(key, members)
            seen.add(key)
            members = {}
        if not members and next_key in seen:
            yield Damage(next_key, "its files do not lie side by side, or it comes twice")
        key = next_key
        members[ext] = member
    if members:
        yield TarSample(key, members)


def _members(data: bytes) -> Iterator[tuple[str, Member] | Damage]:
    end = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                left = len(data) - info.offset_data
                if not info.isreg():
                    yield Damage(info.name, "is no plain file")
                elif info.size > left:
                    yield Damage(split_name(info.name)[0], f"{info.name} ends after {left} of {info.size} bytes")
                else:
                    start = info.offset_data
                    yield info.name, Member(data[start : start + info.size], start)
    except tarfile.TarError as error:
        yield Damage("", f"is no readable tar after byte {end} ({error})")
        return
    if any(data[end : end + 2 * tarfile.BLOCKSIZE]) or len(data) < end + 2 * tarfile.BLOCKSIZE:
        yield Damage("", f"has no end mark after byte {end}: it was cut off, or a header is damaged")
