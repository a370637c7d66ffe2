"""Tars of others as files that are read at offsets; what is compressed is unpacked for that."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ltcore import storage
from ltcore.data.datasets.tar_places import Tar
from ltcore.data.shards.stream import open_hashed
from ltcore.errors import DataError, LtcoreError
from ltcore.limits import MAX_RATIO, PACKED_BYTES
from ltcore.retry import retrying_disk

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class TarFile:
    """A tar, and where its bytes are read."""

    tar: Tar
    num_bytes: int
    unpacked: Path | None = None
    """The node's own copy of a compressed one."""

    @property
    def uri(self) -> str:
        return self.tar.uri if self.unpacked is None else str(self.unpacked)

    def read(self, offset: int, size: int) -> bytes:
        """Reads a part. Raises DataError where the tar has changed so much that it is not there."""
        try:
            with storage.open_file(self.uri, seekable=True) as stream:
                data = bytes(stream.read_at(size, offset))
        except LtcoreError:
            raise
        except storage.errors_of(self.uri) as error:
            raise DataError(f"{self.uri} cannot be read ({error}). Check access and the disk.") from error
        if len(data) != size:
            raise DataError(f"{self.uri} ends before byte {offset + size}: it has changed. Run again.")
        return data


def is_packed(tar: Tar) -> bool:
    """Tells whether the tar is compressed as a whole, by its name."""
    return not tar.path.lower().endswith(".tar")


def unpacked(tar: Tar, target: Path) -> TarFile:
    """Unpacks a compressed tar into the file ``target``.

    Raises DataError where it is damaged, or larger than any tar of images is compared with its packed size.
    """
    try:
        count = retrying_disk(storage.disk_of(target), lambda: _unpack(tar, target))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{tar.uri} cannot be unpacked ({error}). Copy or download it again, free space.") from error
    return TarFile(tar, count, target)


def _unpack(tar: Tar, target: Path) -> int:
    """Writes the content of a compressed tar, and returns its number of bytes; the file is gone where it does not fit."""
    try:
        with target.open("wb") as out:
            count = sum(out.write(chunk) for chunk in _chunks(tar))
            out.flush()
            os.fsync(out.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        raise
    return count


def _chunks(tar: Tar) -> Iterator[bytes]:
    """Yields the content of a compressed tar. Raises DataError where it is larger than any."""
    most, count = max(PACKED_BYTES, MAX_RATIO * tar.bytes), 0
    with open_hashed(tar.uri) as packed, gzip.GzipFile(fileobj=packed, mode="rb") as stream:  # type: ignore[call-overload]  # it only reads
        while chunk := stream.read(_CHUNK_BYTES):
            count += len(chunk)
            if count > most:
                raise DataError(
                    f"{tar.uri} has {tar.bytes} bytes and more than {most} unpacked, which no images have. Unpack it "
                    "yourself if it is right."
                )
            yield chunk
