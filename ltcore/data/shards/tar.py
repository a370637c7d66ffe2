"""Walks a WebDataset tar sample by sample and tells where it is damaged.

It reads the headers itself, for tars of strangers: ``tarfile`` of many a Python follows a crafted header backwards for ever,
takes minutes for a pax header of digits, and recurses as deep as headers are chained. Here every header moves forward,
and one that extends the next has an upper size.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from ltcore.data.room import Room
from ltcore.limits import MAX_DIGITS, MAX_EXTENDED_BYTES

BLOCK = 512
_SKIPPED_BYTES = 2**20
"""Read at once of data that nobody wants."""
_EXTENDED = (b"x", b"g", b"L", b"K")
"""Records of pax, for the next file and for all; long name and long link of GNU."""
_PLAIN = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders and pipes, whatever size they give."""


class Stream(Protocol):
    """A file that is read from its start to its end."""

    def read(self, size: int, /) -> bytes:
        """Reads as many bytes, fewer only at the end."""
        ...


@dataclass(frozen=True)
class Member:
    """One file of a sample."""

    data: bytes
    """Empty where nobody wanted it."""
    offset: int
    """Of the data inside the tar."""
    size: int

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
    is_kind: bool = False
    """It is only a member of a kind that has no data: a folder, a link, a device."""


def split_name(name: str) -> tuple[str, str]:
    """Splits a name into key and extension as WebDataset does: at the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, ext = base.partition(".")
    return f"{folder}{slash}{stem}", ext.lower()


def walk(
    stream: Stream,
    size: int,
    keep: Callable[[str, Member], Member] = lambda _, member: member,
    wanted: Callable[[str, int], bool] | None = None,
    room: Room | None = None,
) -> Iterator[TarSample | Damage]:
    """Yields the samples of a tar of ``size`` bytes in order, and what is wrong with it.

    ``keep`` says, by extension, what stays of a member until its sample is complete; the others are of :func:`members`.

    Damage is truncation, an unreadable header, an odd member, or a sample whose files do not lie side by side.
    """
    seen: set[str] = set()
    key, files = "", dict[str, Member]()
    for item in members(stream, size, wanted, room):
        if isinstance(item, Damage):
            yield item
            continue
        name, member = item
        del item
        next_key, ext = split_name(name)
        if files and (next_key != key or ext in files):
            yield TarSample(key, files)
            seen.add(key)
            files = {}
        if not files and next_key in seen:
            yield Damage(next_key, "its files do not lie side by side, or it comes twice")
        key = next_key
        files[ext] = keep(ext, member)
        del member
    if files:
        yield TarSample(key, files)


@dataclass(frozen=True)
class _Header:
    """What one block of 512 bytes says about the file that follows it."""

    name: str
    size: int
    kind: bytes


def members(
    stream: Stream, size: int, wanted: Callable[[str, int], bool] | None = None, room: Room | None = None
) -> Iterator[tuple[str, Member] | Damage]:
    """Yields name and content of every file in a tar of ``size`` bytes, and what is wrong with it.

    Only files that are ``wanted``, by name and size, are held in memory; None wants all. Each is held in ``room`` until the
    next is asked for.
    """
    at, extra = 0, dict[str, str]()  # where the next header is, and what extended headers before it say
    while any(block := stream.read(min(BLOCK, max(0, size - at)))):
        start = at + BLOCK
        try:
            header = _header(block)
            if header.kind in _EXTENDED:
                _check_extended(header.size, size - start)
                extra |= _extended(header.kind, stream.read(header.size))
                at = _next_block(start + header.size)
                _skip(stream, at - start - header.size)
                continue
            name = extra.get("path", header.name)
            length = _decimal(extra["size"]) if "size" in extra else header.size
        except ValueError as error:
            yield Damage("", f"is no readable tar after byte {at} ({error})")
            return
        extra, read = {}, 0
        if header.kind not in _PLAIN:
            yield Damage(name, "is no plain file", is_kind=True)
            length = 0 if header.kind in _WITHOUT_DATA else length
        elif length > size - start:
            yield Damage(split_name(name)[0], f"{name} ends after {size - start} of {length} bytes")
        else:
            count = length if wanted is None or wanted(name, length) else 0
            with room.held(count) if room else contextlib.nullcontext():
                data = stream.read(count)
                read = len(data)
                yield name, Member(data, start, length)
                del data
        at = _next_block(start + length)
        _skip(stream, min(at, size) - start - read)
    second = stream.read(min(BLOCK, max(0, size - at - BLOCK)))
    if size < at + 2 * BLOCK or any(second):
        yield Damage("", f"has no end mark after byte {at}: it was cut off, or a header is damaged")


def _skip(stream: Stream, count: int) -> None:
    while count > 0 and (read := len(stream.read(min(count, _SKIPPED_BYTES)))):
        count -= read


def _next_block(at: int) -> int:
    return -(-at // BLOCK) * BLOCK


def _header(block: bytes) -> _Header:
    """Parses the fields of a header. Raises ValueError where it is none."""
    if len(block) < BLOCK:
        raise ValueError(f"a header of {len(block)} bytes, expected {BLOCK}")
    if 256 + sum(block[:148]) + sum(block[156:]) != _number(block[148:156]):  # its own 8 bytes count as spaces
        raise ValueError("a header with a wrong checksum")
    name, prefix = _text(block[:100]), _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return _Header(f"{prefix}/{name}" if prefix else name, _number(block[124:136]), block[156:157])


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """Parses octal digits, or a number to base 256 after a first byte of 0x80."""
    if field[0] >= 0x80:
        if field[0] != 0x80:
            raise ValueError("a number below zero")
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise ValueError(f"{digits!r} where a number should be")
    return int(digits or b"0", 8)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > MAX_DIGITS:
        raise ValueError(f"a size of {text[:MAX_DIGITS]!r}")
    return int(text)


def _check_extended(size: int, left: int) -> None:
    if size > min(MAX_EXTENDED_BYTES, left):
        raise ValueError(f"an extended header of {size} bytes, expected at most {min(MAX_EXTENDED_BYTES, left)}")


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    """Returns what an extended header says about the next member.

    It is a long name (GNU) or a list of records ``length key=value`` (pax).
    """
    if kind == b"L":
        return {"path": _text(data)}
    found: dict[str, str] = {}
    at = 0
    while kind == b"x" and at < len(data):
        digits = data[at : at + MAX_DIGITS].partition(b" ")[0]
        end = at + _decimal(digits.decode("ascii", "replace"))
        key, equals, value = data[at + len(digits) + 1 : end].rstrip(b"\n").partition(b"=")
        if not equals or end > len(data):
            raise ValueError("a pax header that is no list of records")
        if key in (b"path", b"size"):
            found[_text(key)] = _text(value)
        at = end
    return found
