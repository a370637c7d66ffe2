"""Tars of strangers: whatever a header says, the walk goes forward, ends soon, and names what is wrong."""

from __future__ import annotations

import io
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from ltcore.data.shards.tar import BLOCK, Damage, walk
from ltcore.data.shards.validate import check_dataset
from ltcore.limits import MAX_EXTENDED_BYTES

BOUND_S = 1.0
END = bytes(2 * BLOCK)


def header(name: bytes = b"a.png", size: bytes = b"00000000003\0", kind: bytes = b"0") -> bytes:
    """A header with a sound checksum, whatever it says."""
    block = bytearray(BLOCK)
    block[:100] = name.ljust(100, b"\0")
    block[124:136], block[156:157], block[257:265] = size, kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(number: int) -> bytes:
    return b"%011o\0" % number


def base256(number: int) -> bytes:
    return (b"\x80" if number >= 0 else b"\xff") + number.to_bytes(11, "big", signed=True)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def extended(kind: bytes, data: bytes) -> bytes:
    return header(b"extended", octal(len(data)), kind) + padded(data)


def record(key: str, value: str) -> bytes:
    """``length key=value``, the length its own digits included."""
    rest = f" {key}={value}\n".encode()
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return str(length).encode() + rest


SAMPLE = header() + padded(b"png")
HOSTILE: dict[str, tuple[bytes, str]] = {
    "size -512": (header(size=base256(-512)) + END, "a number below zero"),
    "octal size below zero": (header(size=b"-0000001000\0") + END, "where a number should be"),
    "size without end": (header(size=base256(2**70)) + END, "a.png ends after 1024 of"),
    "pax header of digits": (extended(b"x", b"1" * 60_000) + SAMPLE + END, "no list of records"),
    "large pax header": (extended(b"x", b"1" * 100_000) + SAMPLE + END, "an extended header of 100000 bytes"),
    "pax size below zero": (extended(b"x", record("size", "-512")) + SAMPLE + END, "a size of '-512'"),
    "pax size of 5000 digits": (extended(b"x", record("size", "9" * 5000)) + SAMPLE + END, "a size of"),
    "pax size without end": (extended(b"x", record("size", "9" * 18)) + SAMPLE + END, "a.png ends after"),
    "pax record of length 0": (extended(b"x", b"0 path=b\n" * 9) + SAMPLE + END, "no list of records"),
    "pax record past the end": (extended(b"x", b"99 path=b\n") + SAMPLE + END, "no list of records"),
    "pax size of no number": (header(b"x", b"\0" * 12, b"x") + header(size=b"what is it?\0") + END, "should be"),
    "large long name": (extended(b"L", b"a" * (MAX_EXTENDED_BYTES + 1)) + SAMPLE + END, "an extended header of"),
    "extended header cut off": (header(size=octal(9000), kind=b"x") + END, "an extended header of 9000 bytes"),
    "wrong checksum": (SAMPLE + b"\1" + header()[1:] + END, "a wrong checksum"),
    "cut inside a header": (SAMPLE + header()[:100], "a header of 100 bytes"),
    "link with a size": (header(b"l", octal(10**9), b"2") + SAMPLE + END, "is no plain file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_crafted_tar_is_damage_and_soon_over(case: str) -> None:
    data, words = HOSTILE[case]
    started = time.process_time()
    items = []
    for item in walk(io.BytesIO(data), len(data)):
        items.append(item)
        assert len(items) < 100
    assert time.process_time() - started < BOUND_S
    assert any(isinstance(item, Damage) and words in item.what for item in items), items


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_headers_that_extend_each_other_five_thousand_times_are_no_recursion(kind: bytes) -> None:
    said = b"long-name.png" if kind in b"LK" else record("comment", "n") * 50
    started = time.process_time()
    data = extended(kind, said) * 5000 + SAMPLE + END
    (sample,) = walk(io.BytesIO(data), len(data))
    assert time.process_time() - started < BOUND_S
    assert not isinstance(sample, Damage)
    assert sample.key == ("long-name" if kind == b"L" else "a") and sample.members["png"].data == b"png"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tarfile_writes_is_read_as_it_was(form: int) -> None:
    deep = "folder/" * 30 + "k" * 70 if form != tarfile.USTAR_FORMAT else "f" * 60 + "/" + "k" * 70
    files = {"a.png": b"1" * 511, "b.png": b"", "c.jpg": b"3" * 512, f"{deep}.cls": b"4", "größe.png": b"5"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers={"comment": "of all"}) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(data))
    found = {}
    for sample in walk(io.BytesIO(out.getvalue()), out.tell()):
        assert not isinstance(sample, Damage)
        for ext, member in sample.members.items():
            found[f"{sample.key}.{ext}"] = member.data
            assert out.getvalue()[member.offset :].startswith(member.data)
    assert found == files


def test_the_check_goes_on_after_a_crafted_tar(tiny_shards: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_shards, tmp_path / "copy"))
    (copy / "train-00001.tar").write_bytes(HOSTILE["size -512"][0])
    (copy / "val-00000.tar").unlink()
    problems = [str(problem) for problem in check_dataset(str(copy))]
    assert any("train-00001.tar: is no readable tar after byte 0 (a number below zero)" in line for line in problems)
    assert any("val-00000.tar" in line and "does not exist" in line for line in problems)
