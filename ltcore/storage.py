"""Files on a disk or in an object store, through one set of small functions, and the node's cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs
import pyarrow as pa
from pyarrow import fs as pafs

from ltcore import fsspec_stores
from ltcore.errors import ConfigError, DamagedFileError, DataError, refuse_userinfo
from ltcore.fsspec_stores import READ_ONLY, FileInfo

REMOTE_SCHEMES = ("s3", "gs", "gcs")
"""Schemes that pyarrow opens itself, for results and data."""
COPY_BYTES = 4 * 2**20
"""What is in memory at a time of a file that is copied."""
DAMAGED = "It is damaged: restore it, or start again with --fresh."
"""The end of an error about a file that we wrote and cannot read."""


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def _scheme(uri: str) -> str:
    found = _SCHEME.match(uri)  # a file may be called [link=https://...]
    return found[1] if found else ""


def is_local(uri: str) -> bool:
    """Tells whether the URI is a plain path or ``file://``."""
    return _scheme(uri) in ("", "file")


def is_web(uri: str) -> bool:
    """Tells whether the URI is the address of one file in the web, which has no folders and no patterns."""
    return _scheme(uri) in ("http", "https")


def local_path(uri: str) -> Path:
    """Returns the path of a local URI; ``~`` is expanded."""
    return Path(uri.removeprefix("file://")).expanduser()


def join(uri: str, *parts: str) -> str:
    """Returns ``uri/part/part``."""
    return "/".join([uri.rstrip("/") or "/", *parts])


@functools.lru_cache(maxsize=16)
def _remote_fs(root: str, endpoint: str | None) -> pafs.FileSystem:
    """Returns the file system of ``scheme://bucket``.

    A given endpoint skips the region look-up, which only AWS answers.
    """
    if root.startswith("s3://") and endpoint:
        address = urlsplit(endpoint)
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return pafs.S3FileSystem(endpoint_override=address.netloc, scheme=address.scheme, region=region)
    return pafs.FileSystem.from_uri(root)[0]


def refuse_read_only(uri: str) -> None:
    """Raises ConfigError for a place that can only be read."""
    if _scheme(uri) in READ_ONLY:
        raise ConfigError(f"{uri}: {_scheme(uri)}:// is only read. Write to a path, file://, s3:// or gs://.")


def errors_of(uri: str) -> type[Exception]:
    """Returns what a store raises: the clients behind fsspec have errors of their own."""
    return Exception if _scheme(uri) in READ_ONLY else OSError


def open_fs(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the pyarrow file system of a URI and the path inside it.

    Takes plain paths, ``file://``, ``s3://`` (honors AWS_ENDPOINT_URL), ``gs://``, and for reading those of ``READ_ONLY``.
    Raises ConfigError for anything else.
    """
    if is_local(uri):
        return pafs.LocalFileSystem(), str(local_path(uri).absolute())
    variable = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    endpoint = os.environ.get(variable)
    try:
        refuse_userinfo(**{f"{uri.partition('://')[0]}://...": uri, variable: endpoint})
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    scheme, _, path = uri.partition("://")
    if scheme in READ_ONLY:
        return fsspec_stores.open_fs(uri)
    if scheme not in REMOTE_SCHEMES:
        only = ", ".join(f"{each}://" for each in READ_ONLY)
        raise ConfigError(
            f"{uri}: {scheme}:// is not supported. Use a path, file://, s3:// or gs://, or for data {only}."
        )
    try:
        return _remote_fs(f"{scheme}://{path.split('/', 1)[0]}", endpoint), path
    except OSError as error:
        raise DataError(f"{uri}: the store cannot be opened ({error}). Check the name and the credentials.") from error


def exists(uri: str) -> bool:
    """Tells whether there is a file or folder of that name."""
    filesystem, path = open_fs(uri)
    try:
        return bool(filesystem.get_file_info(_encoded(path)).type != pafs.FileType.NotFound)
    except errors_of(uri) as error:
        raise DataError(f"{uri} cannot be looked up: {error}. Check the name and the credentials.") from error


def _encoded(path: str) -> str | bytes:
    """Returns the path as pyarrow takes it: a name on a disk may be no text, and pyarrow knows only UTF-8."""
    return path if path.isascii() else os.fsencode(path)


def list_files(uri: str) -> list[str]:
    """Returns the names, relative to ``uri``, of all files below it, as ``describe_files`` does."""
    return [info.name for info in describe_files(uri)]


def describe_files(uri: str, *, recursive: bool = True) -> list[FileInfo]:
    """Returns all files below ``uri``, sorted by name; [] where there is nothing.

    The names are safe to join to a folder. An object store has no folders, and a name there may climb (``run/../x``):
    that raises DataError.
    """
    filesystem, root = open_fs(uri)
    root = root.rstrip("/")
    try:
        if _scheme(uri) in READ_ONLY:
            found = fsspec_stores.find_files(filesystem.handler.fs, root, recursive)
        else:
            selector = pafs.FileSelector(root, recursive=recursive, allow_not_found=True)
            infos = [info for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
            found = [FileInfo(info.path[len(root) + 1 :], info.size, str(info.mtime_ns or "")) for info in infos]
    except errors_of(uri) as error:
        raise DataError(f"{uri} cannot be listed: {error}. Check the name and the credentials.") from error
    for info in found:
        if not is_inner(info.name):
            raise DataError(
                f"{uri} holds an object named {info.name!r}, which is no path below it. Remove it, or use another place."
            )
    return sorted(found, key=lambda info: info.name)


def describe_file(uri: str) -> FileInfo | None:
    """Returns the file ``uri``; None where there is none, or a folder."""
    filesystem, path = open_fs(uri)
    try:
        if _scheme(uri) in READ_ONLY:
            return fsspec_stores.find_file(filesystem.handler.fs, path)
        found = filesystem.get_file_info(_encoded(path))
        is_file = found.type == pafs.FileType.File
        return FileInfo(found.base_name, found.size, str(found.mtime_ns or "")) if is_file else None
    except FileNotFoundError:
        return None
    except errors_of(uri) as error:
        raise DataError(f"{uri} cannot be looked up: {error}. Check the name and the credentials.") from error


def is_inner(name: str) -> bool:
    """Tells whether a name from elsewhere is a plain path below the folder that it is joined to."""
    return not {"", ".", ".."} & set(name.split("/")) and not re.search(r"[\\\0]", name)


def remove_folder(uri: str, first: str) -> None:
    """Removes a folder in an object store with all its files; the file ``first`` goes before the others."""
    filesystem, path = open_fs(uri)
    try:
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{path}/{first}")
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(path)
    except OSError as error:
        raise DataError(f"{uri} cannot be removed: {error}. Check permissions.") from error


def read_bytes(uri: str, most_bytes: int | None = None) -> bytes:
    """Reads the whole file. Raises DataError where it is missing, unreadable or larger than ``most_bytes``."""
    with open_file(uri) as stream:
        data = _read(uri, stream, None if most_bytes is None else most_bytes + 1)
    if most_bytes is not None and len(data) > most_bytes:
        raise DataError(f"{uri} is larger than {most_bytes} bytes.")
    return data


def _read(uri: str, stream: pa.NativeFile, count: int | None) -> bytes:
    try:
        return bytes(stream.read(count))
    except errors_of(uri) as error:
        raise DataError(f"{uri} cannot be read: {error}.") from error


def open_file(uri: str, *, seekable: bool = False) -> pa.NativeFile:
    """Opens the file for reading, from its start on unless it has to be ``seekable``.

    Raises DataError where it is missing or unreadable.
    """
    filesystem, path = open_fs(uri)
    try:
        if is_local(uri) and not is_plain(Path(path).stat()):
            raise DataError(f"{uri} is no plain file. Replace it by one, or remove it.")
        if seekable:
            return filesystem.open_input_file(_encoded(path))
        return filesystem.open_input_stream(_encoded(path), compression=None)  # else the bytes of a .gz were others
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{uri} does not exist. Check the path, or make the data set again.") from error
    except errors_of(uri) as error:
        raise DataError(f"{uri} cannot be read: {error}.") from error


def download(uri: str, path: Path) -> None:
    """Copies the file ``uri`` to the local file ``path``. Raises DataError where that fails."""
    try:
        with open_file(uri) as source, path.open("wb") as target:
            while chunk := _read(uri, source, COPY_BYTES):
                target.write(chunk)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}. Check permissions and free space.") from error


def is_plain(found: os.stat_result) -> bool:
    """Tells whether reading the file comes to an end.

    Pipes and devices may give nothing, or give data without end.
    """
    return stat.S_ISREG(found.st_mode)


def write_bytes_atomic(uri: str, data: bytes) -> None:
    """Writes the whole file or nothing: a temporary file, fsync and rename; object stores do so by themselves."""
    try:
        if is_local(uri):
            _write_local(local_path(uri), data)
        else:
            filesystem, path = open_fs(uri)
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
    except OSError as error:
        raise DataError(f"{uri} cannot be written: {error}. Check permissions and free space.") from error


def read_json(uri: str | Path) -> dict[str, Any] | None:
    """Reads the object in a JSON file; None where there is no such file.

    Raises DamagedFileError with the name of a file that is damaged.
    """
    place = str(uri)
    return _object(place, read_bytes(place)) if exists(place) else None


def write_json(uri: str | Path, value: Any) -> None:
    """Writes the whole file or nothing, as ``write_bytes_atomic``."""
    write_bytes_atomic(str(uri), json.dumps(value, indent=1).encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of a JSON-lines file; [] where there is none. A last line cut off by a kill is left out.

    Raises DamagedFileError with the name of a file that is damaged anywhere else.
    """
    if not path.exists():
        return []
    lines = read_bytes(str(path)).split(b"\n")[:-1]  # what follows the last newline is torn or empty
    return [_object(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line]


def _object(where: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{where} is not JSON ({error}). {DAMAGED}") from None
    if not isinstance(value, dict):
        raise DamagedFileError(f"{where} holds a {type(value).__name__}, expected a JSON object. {DAMAGED}")
    return value


def _write_local(path: Path, data: bytes) -> None:
    with _beside(path) as aside, aside.open("wb") as stream:
        stream.write(data)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yields the name of a temporary file, which becomes ``path`` when the block ends well and vanishes when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield aside
        sync_to_disk(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_to_disk(path.parent)


@contextlib.contextmanager
def written(uri: str) -> Iterator[Path]:
    """Yields a local path to write a large file to; it appears at ``uri`` when the block ends well, or not at all.

    The path has the same ending. Raises DataError where it cannot be written.
    """
    try:
        if is_local(uri):
            target = local_path(uri)
            if target.is_dir():
                raise DataError(f"{uri} is a folder. Give the name of a file.")
            with _beside(target) as aside:
                yield aside
        else:
            filesystem, path = open_fs(uri)
            with tempfile.TemporaryDirectory(prefix="ltcore-") as folder:
                aside = Path(folder) / uri.rpartition("/")[2]
                yield aside
                pafs.copy_files(
                    str(aside), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem
                )
    except OSError as error:
        raise DataError(f"{uri} cannot be written: {error}. Check permissions and free space.") from error


def sync_to_disk(path: Path) -> None:
    """Makes the content of a file, or the renames inside a folder, survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cache_root() -> Path:
    """Returns the node's cache folder: ``LTCORE_CACHE``, or ``ltcore`` in the user's cache folder."""
    chosen = os.environ.get("LTCORE_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("ltcore"))


def free_bytes(folder: str | Path) -> int:
    """Returns the free bytes on the disk of a folder, or of its nearest parent that exists."""
    place = Path(folder)
    return shutil.disk_usage(next(each for each in (place, *place.parents) if each.exists())).free


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock between processes (and threads) on the file ``path``, which is created if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
