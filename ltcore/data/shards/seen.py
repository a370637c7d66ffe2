"""What a check keeps of the files in a shard: of an image, whether it can be decoded, and not its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.data.images.decode import decode_canvas
from ltcore.data.room import Room
from ltcore.data.shards.source import EXTENSIONS
from ltcore.data.shards.tar import Member, split_name
from ltcore.errors import DataError
from ltcore.limits import HELD_BYTES, MAX_IMAGE_BYTES, MAX_LABEL_BYTES, MAX_SAMPLE_JSON_BYTES

ROOM = Room(HELD_BYTES)
"""For the images of all shards that are checked beside one another."""


@dataclass(frozen=True)
class SeenImage(Member):
    """What is known of an image whose bytes are no longer held."""

    crc: int
    problem: str
    """Why it cannot be decoded, or ''."""


def seen(ext: str, member: Member) -> Member:
    """Decodes an image and lets go of it; the other files of a sample are small, and stay."""
    if ext not in EXTENSIONS:
        return member
    return SeenImage(b"", member.offset, member.size, member.crc32, image_problem(member))


def wanted(name: str, size: int) -> bool:
    """Tells whether a file of a sample is read; larger ones are named by their size."""
    ext = split_name(name)[1]
    if ext in EXTENSIONS:
        return size <= MAX_IMAGE_BYTES
    return size <= {"cls": MAX_LABEL_BYTES, "json": MAX_SAMPLE_JSON_BYTES}.get(ext, -1)


def image_problem(member: Member) -> str:
    """Returns why an image cannot be decoded, or ''."""
    if member.size > MAX_IMAGE_BYTES:
        return f"its image has {member.size} bytes, expected at most {MAX_IMAGE_BYTES}"
    try:
        decode_canvas(member.data, 1, "its image")
    except DataError as error:
        return str(error)
    return ""
