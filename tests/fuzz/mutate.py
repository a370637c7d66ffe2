"""Changes inputs at random: bytes, lengths and checksums of binary files, lines of texts, and trees of plain values."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

EDGES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0xFFFF,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)
WORDS = (
    b"\0",
    b"\xff" * 8,
    b"../" * 3,
    b"\r\n",
    b"\n",
    b"\t",
    b",",
    b'"',
    b"9" * 30,
    b"-1",
    b"1e400",
    b"\xc3\x28",
    b"\xef\xbb\xbf",
)
TEXTS = (
    *(
        "",
        " ",
        "~",
        "null",
        "true",
        "-0",
        "1e400",
        "-1",
        "9" * 30,
        "9" * 5000,
        "0x10",
        "NaN",
        ".inf",
        "\u202e",
        "\ud800",
    ),
    *(
        "../..",
        "/etc/passwd",
        "a\0b",
        "a\nb",
        "x" * 5000,
        "café",
        "[/x]",
        "2001-99-99",
        "!!int abc",
        "&a [*a, *a]",
        "*a",
        "<<",
    ),
)
VALUES: tuple[Any, ...] = (*TEXTS, None, True, 0, -1, 1.5, 1e308, 10**30, [], {}, [[]], {"": ""}, [None], 2**53)
DEEP = 3000


def any_bytes(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """One to four changes of bytes: flipped bits, numbers at the edges, cuts, copies, parts of another input."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not changed:
            break
        rng.choice(_BYTES)(rng, changed, other or data)
    return bytes(changed)


def _flip(rng: random.Random, data: bytearray, _: bytes) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, _: bytes) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(rng: random.Random, data: bytearray, _: bytes) -> None:
    form = rng.choice("BHIQ")
    form, edge = rng.choice("<>") + form, rng.choice(EDGES) + rng.choice((0, 0, -1, 1))
    size = struct.calcsize(form)
    at = rng.randrange(max(1, len(data) - size))
    data[at : at + size] = struct.pack(form, edge % 2 ** (8 * size))


def _cut(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(rng: random.Random, data: bytearray, _: bytes) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 4, 64, 512, 4096))]


def _copy(rng: random.Random, data: bytearray, _: bytes) -> None:
    at, count = rng.randrange(len(data)), rng.choice((1, 4, 30, 512, 1024))
    data[at:at] = data[at : at + count] * rng.choice((1, 2, 20))


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    at, count = rng.randrange(len(other)), rng.choice((4, 30, 512, 4096))
    to = rng.randrange(len(data))
    data[to : to + rng.choice((0, count))] = other[at : at + count]


def _word(rng: random.Random, data: bytearray, _: bytes) -> None:
    at = rng.randrange(len(data))
    word = rng.choice(WORDS)
    data[at : at + rng.choice((0, len(word)))] = word


_BYTES: tuple[Callable[[random.Random, bytearray, bytes], None], ...] = (
    *(_flip, _flip, _set, _set, _number, _number),
    *(_cut, _remove, _copy, _splice, _word),
)


def text_lines(rng: random.Random, text: str) -> str:
    """Changes lines of a text: swapped, repeated, without a part, with an odd word somewhere."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            lines[at:at] = [lines[rng.randrange(len(lines))]] * rng.choice((1, 2, 200))
        elif kind == 1:
            lines[at] = rng.choice(("", " ", "\t")) + lines[at]
        elif kind == 2:
            place = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + rng.choice(TEXTS) + lines[at][place + rng.randrange(3) :]
        elif kind == 3:
            lines[at] = lines[at].rpartition(rng.choice(" :,\t"))[0]
        elif kind == 4:
            head, mark, _ = lines[at].rpartition(rng.choice((" ", ": ", ",", "\t")))
            lines[at] = head + mark + rng.choice(TEXTS)
        else:
            lines[at] = rng.choice(("[", "{a: ", "- ", "? ", "[", '{"a":')) * rng.choice((1, 50, DEEP))
    return "\n".join(lines)


def encoded(rng: random.Random, text: str) -> bytes:
    """The bytes of a text, now and then in another encoding."""
    form = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8", "utf-8", "latin-1", "utf-16", "utf-8-sig"))
    return text.encode(form, "surrogatepass" if form.startswith("utf") else "replace")


def tree(rng: random.Random, value: Any) -> Any:
    """A copy of a tree of plain values with one to three changes at random places."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _changed(rng, value, rng.randrange(1, 9))
    return value


def _changed(rng: random.Random, value: Any, depth: int) -> Any:
    if depth and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        kind = rng.randrange(8)
        if kind == 0:
            return {name: inner for name, inner in value.items() if name != key}
        if kind == 1:
            return {**value, rng.choice(TEXTS): value[key]}
        return {**value, key: _changed(rng, value[key], depth - 1)}
    if depth and isinstance(value, list) and value:
        at = rng.randrange(len(value))
        kind = rng.randrange(8)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return value[:at] + [value[at]] * rng.choice((2, 50)) + value[at:]
        return [*value[:at], _changed(rng, value[at], depth - 1), *value[at + 1 :]]
    return _other(rng, value)


def _other(rng: random.Random, value: Any) -> Any:
    if isinstance(value, int | float) and rng.random() < 0.5:
        return rng.choice((-value, value + 1, value * 10**6, 10**400, float("nan"), float("inf"), 2**63, str(value)))
    if isinstance(value, str) and value and rng.random() < 0.3:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(TEXTS) + value[at + 1 :]
    if rng.random() < 0.02:
        return _nested(rng.choice((list, dict)), DEEP)
    return rng.choice(VALUES)


def _nested(kind: type, depth: int) -> Any:
    value: Any = kind()
    for _ in range(min(depth, 150)):  # yaml writes no deeper ones
        value = [value] if kind is list else {"a": value}
    return value


def tar_fields(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes fields of a tar's headers and repairs their checksums; sometimes moves, repeats or inserts blocks."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    headers = [at for at, block in enumerate(blocks) if block[257:262] == b"ustar"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.choice(headers) if headers else 0
        if rng.random() < 0.2:
            blocks = _moved(rng, blocks, at, other)
            headers = [at for at, block in enumerate(blocks) if block[257:262] == b"ustar"]
        else:
            blocks[at] = _header(rng, blocks[at])
    return b"".join(blocks)


def _moved(rng: random.Random, blocks: list[bytes], at: int, other: bytes) -> list[bytes]:
    count, to = rng.choice((1, 2, 5)), rng.randrange(len(blocks))
    kind = rng.randrange(4)
    if kind == 0:
        return blocks[:to] + blocks[at : at + count] * rng.choice((1, 1, 3, 3000)) + blocks[to:]
    if kind == 1:
        return blocks[:at] + blocks[at + count :]
    if kind == 2:
        start = rng.randrange(max(1, len(other) // 512)) * 512
        return [*blocks[:to], other[start : start + 512].ljust(512, b"\0"), *blocks[to:]]
    records = rng.choice(
        (b"30 path=x\n", b"11 size=-1\n", b"9999999999 a=b\n", b"0 a=b\n", b"12 path=a\0b\n", b"13 size=9e9\n")
    )
    pax = _header(rng, blocks[at], kind=rng.choice(b"xgLK"), size=len(records))
    return [*blocks[:at], pax, records.ljust(512, b"\0"), *blocks[at:]]


def _header(rng: random.Random, block: bytes, *, kind: int | None = None, size: int | None = None) -> bytes:
    changed = bytearray(block.ljust(512, b"\0"))
    if kind is not None and size is not None:
        changed[156], changed[124:136] = kind, b"%011o\0" % size
        return with_checksum(changed)
    start, count = rng.choice(((0, 100), (124, 12), (124, 12), (156, 1), (257, 8), (345, 155), (100, 8)))
    if start == 124 and rng.random() < 0.7:
        number = rng.choice((0, 1, 511, 513, 2**20, 2**33 - 1, 2**62))
        signed = rng.choice((number, -number, -512))
        changed[124:136] = rng.choice((b"\x80", b"\xff")) + (signed % 2**88).to_bytes(11, "big")
        if rng.random() < 0.5:
            changed[124:136] = b"%011o\0" % min(number, 8**11 - 1)
    elif start == 156:
        changed[156] = rng.choice(b"0123457gxLKSDMV\0A")
    else:
        at = start + rng.randrange(count)
        changed[at : min(at + rng.choice((1, 4, 90)), start + count)] = bytes([rng.randrange(256)])
        changed = bytearray(bytes(changed[:512]).ljust(512, b"\0"))
    return with_checksum(changed)


def with_checksum(block: bytearray) -> bytes:
    """The header with the checksum of its content."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def zip_fields(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes a field in one of the records of a zip."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        mark, fields = rng.choice(_ZIP)
        places = [at for at in range(len(data)) if data.startswith(mark, at)]
        offset, size = rng.choice(fields)
        at = rng.choice(places) + offset
        edge = rng.choice((*EDGES, len(data), len(data) - 22, rng.randrange(2**16)))
        changed[at : at + size] = (edge % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(changed) if rng.random() < 0.8 else any_bytes(rng, bytes(changed), other)


_ZIP: Sequence[tuple[bytes, Sequence[tuple[int, int]]]] = (
    (b"PK\3\4", ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 1))),
    (b"PK\1\2", ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4), (46, 1), (46, 2))),
    (b"PK\5\6", ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
)
