"""Files on a disk or in an object store, through one set of small functions, and the node's cache folder."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
import pyarrow as pa
from pyarrow import fs as pafs

from ltcore import fsspec_stores
from ltcore.errors import DamagedFileError, DataError, LtcoreError, StorageError
from ltcore.file_lock import locked as locked
from ltcore.fsspec_stores import FileInfo
from ltcore.limits import (
    MAX_DEPTH,
    MAX_FETCHED_BYTES,
    MAX_FILES,
    MAX_FOLDERS,
    MAX_METRICS_BYTES,
    MAX_RECORD_BYTES,
    MAX_RECORD_VALUES,
    MAX_ROW_VALUES,
    at_most,
    load_json,
)
from ltcore.retry import ShortError, retrying, retrying_disk
from ltcore.steady_file import SteadyFile
from ltcore.stores import ACCESS, SPACE, MissingError, asked, encoded, present, undisturbed
from ltcore.stores import errors_of as errors_of
from ltcore.stores import open_fs as open_fs
from ltcore.text import byte_size
from ltcore.uris import READ_ONLY, REMOTE_SCHEMES, scheme_of
from ltcore.uris import is_local as is_local
from ltcore.uris import is_web as is_web
from ltcore.uris import join as join
from ltcore.uris import local_path as local_path
from ltcore.uris import refuse_read_only as refuse_read_only

T = TypeVar("T")
COPY_BYTES = 4 * 2**20
"""What is in memory at a time of a file that is copied."""
UNFINISHED_S = 3600.0
"""Age from which a temporary file is not of a process that still writes it."""
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\..+")
DAMAGED = "It is damaged: restore it, or start again with --fresh."
"""The end of an error about a file that we wrote and cannot read."""


def exists(uri: str) -> bool:
    """Tells whether there is a file or folder of that name."""
    filesystem, path = open_fs(uri)
    found = asked(uri, "looked up", ACCESS, lambda: filesystem.get_file_info(encoded(path)))
    return bool(found.type != pafs.FileType.NotFound)


def list_files(uri: str) -> list[str]:
    """Returns the names, relative to ``uri``, of all files below it, as ``describe_files`` does."""
    return [info.name for info in describe_files(uri)]


def describe_files(uri: str, *, recursive: bool = True) -> list[FileInfo]:
    """Returns all files below ``uri``, sorted by name; [] where there is nothing.

    The names are safe to join to a folder. An object store has no folders, and a name there may climb (``run/../x``):
    that raises DataError, and so do more files than any data set has. The client of a store hands over all of them at once.
    """
    filesystem, root = open_fs(uri)
    root = root.rstrip("/")

    def find() -> list[FileInfo]:
        if scheme_of(uri) in READ_ONLY:
            found = fsspec_stores.find_files(filesystem.handler.fs, root, recursive)
            return list(at_most(found, MAX_FILES, uri, "files"))
        if is_local(uri) and recursive:  # pyarrow follows links around for ever, and hears no signal meanwhile
            return list(at_most(_files_below(root), MAX_FILES, uri, "files"))
        infos = [info for info in _listed(uri, filesystem, root, recursive) if info.type == pafs.FileType.File]
        return [FileInfo(info.path[len(root) + 1 :], info.size, str(info.mtime_ns or "")) for info in infos]

    found = asked(uri, "listed", ACCESS, find)
    for info in found:
        if not is_inner(info.name):
            raise DataError(
                f"{uri} holds an object named {info.name!r}, which is no path below it. Remove it, or use another place."
            )
    return sorted(found, key=lambda info: info.name)


def _files_below(root: str) -> Iterator[FileInfo]:
    """Yields all plain files below a local folder; links to folders are followed, unless one leads to a folder around it.

    What vanishes meanwhile is left out. Raises DataError for folders that lie deeper in each other than any should, and for
    more of them than any data set has, as links to each other make them.
    """
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    count = 0
    while waiting:
        below, around = waiting.pop()
        place = f"{root}/{below}"
        try:
            found = Path(place).stat()
            if (own := (found.st_dev, found.st_ino)) in around:
                continue
            entries = sorted(at_most(os.scandir(place), MAX_FILES, root, "files"), key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        count += 1
        if len(around) > MAX_DEPTH or count > MAX_FOLDERS:
            what = f"{MAX_DEPTH} folders deep" if len(around) > MAX_DEPTH else f"after {MAX_FOLDERS:,} other folders"
            raise DataError(
                f"{place[:200]} lies more than {what}: remove links between the folders, or name another one."
            )
        for entry in entries:
            with _nowhere():
                if entry.is_dir():
                    waiting.append((f"{below}{entry.name}/", (*around, own)))
                elif entry.is_file():
                    info = entry.stat()
                    yield FileInfo(f"{below}{entry.name}", info.st_size, str(info.st_mtime_ns))


@contextlib.contextmanager
def _nowhere() -> Iterator[None]:
    """Passes over what is not there, or is a link to itself."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise


def _listed(uri: str, filesystem: pafs.FileSystem, root: str, recursive: bool) -> list[pafs.FileInfo]:
    found = filesystem.get_file_info(pafs.FileSelector(root, recursive=recursive, allow_not_found=True))
    return list(at_most(found, MAX_FILES, uri, "files"))


def entries(uri: str) -> dict[str, bool]:
    """Returns the names directly below ``uri``, and whether each is a file; {} for a file or for nothing."""
    filesystem, root = open_fs(uri)
    found = asked(uri, "listed", ACCESS, lambda: _listed(uri, filesystem, root, False))
    return {info.base_name: info.type == pafs.FileType.File for info in found}


def describe_file(uri: str) -> FileInfo | None:
    """Returns the file ``uri``; None where there is none, or a folder."""
    filesystem, path = open_fs(uri)

    def find() -> FileInfo | None:
        if scheme_of(uri) in READ_ONLY:
            return fsspec_stores.find_file(filesystem.handler.fs, path)
        found = filesystem.get_file_info(encoded(path))
        is_file = found.type == pafs.FileType.File
        return FileInfo(found.base_name, found.size, str(found.mtime_ns or "")) if is_file else None

    with contextlib.suppress(MissingError):
        return asked(uri, "looked up", ACCESS, lambda: present(find))
    return None


def is_inner(name: str) -> bool:
    """Tells whether a name from elsewhere is a plain path below the folder that it is joined to."""
    return not {"", ".", ".."} & set(name.split("/")) and not re.search(r"[\\\0]", name)


def remove(uri: str, fence: Callable[[], None] = lambda: None) -> None:
    """Removes a file, or a folder of a store with all that is in it, if it is there.

    ``fence`` is asked before every attempt, as by ``write_bytes_atomic``.
    """
    filesystem, path = open_fs(uri, attempts=1)

    def delete() -> None:
        fence()
        if filesystem.get_file_info(encoded(path)).type == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        else:
            filesystem.delete_file(encoded(path))

    with contextlib.suppress(MissingError):
        asked(uri, "removed", "Check permissions", lambda: present(delete))


def remove_folder(uri: str, first: str, fence: Callable[[], None] = lambda: None) -> None:
    """Removes a folder in an object store with all its files; the file ``first`` goes before the others.

    ``fence`` is asked before every attempt, as by ``write_bytes_atomic``.
    """
    remove(join(uri, first), fence)
    remove(uri, fence)


def read_bytes(uri: str, most_bytes: int | None = None) -> bytes:
    """Reads the whole file. Raises DataError where it is missing, unreadable or larger than ``most_bytes``."""
    data = find_bytes(uri, most_bytes)
    if data is None:
        raise _missing(uri)
    return data


def find_bytes(uri: str, most_bytes: int | None = None) -> bytes | None:
    """Reads the whole file as ``read_bytes`` does; None where there is none."""
    filesystem, path = open_fs(uri)
    count = None if most_bytes is None else most_bytes + 1

    def read() -> bytes:
        with _open(uri, filesystem, path, seekable=False) as stream:
            if most_bytes is not None and _told_size(uri, path, stream) > most_bytes:  # before any of it is held
                raise _too_large(uri, most_bytes)
            data = bytes(stream.read()) if count is None else _read_most(stream, count)
            if count is None or len(data) < count:
                _refuse_short(uri, stream, len(data))
            return data

    try:
        data = asked(uri, "read", ACCESS, lambda: present(read))
    except MissingError:
        return None
    if most_bytes is not None and len(data) > most_bytes:
        raise _too_large(uri, most_bytes)
    return data


class TooLargeError(DataError):
    """A file has more bytes than any of its kind."""


def _too_large(uri: str, most_bytes: int) -> TooLargeError:
    return TooLargeError(f"{uri} is larger than {most_bytes} bytes.")


def _told_size(uri: str, path: str, stream: pa.NativeFile) -> int:
    """Returns the size of an open file as its place tells it, 0 where it does not."""
    if is_local(uri):
        return Path(path).stat().st_size
    return int(stream.size()) if scheme_of(uri) in REMOTE_SCHEMES else 0


def _read_most(stream: pa.NativeFile, count: int) -> bytes:
    """Reads at most ``count`` bytes in parts: all that is asked for at once takes memory at once."""
    parts = list[bytes]()
    while count > 0 and (part := bytes(stream.read(min(count, COPY_BYTES)))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _refuse_short(uri: str, stream: pa.NativeFile, count: int) -> None:
    """Raises ShortError where ``count`` bytes came of a file in a store, and it has another size."""
    if scheme_of(uri) in REMOTE_SCHEMES and count != stream.size():
        raise ShortError(f"{count} bytes came of {stream.size()}")


def _missing(uri: str) -> DataError:
    return DataError(f"{uri} does not exist. Check the path, or make the data set again.")


def _open(uri: str, filesystem: pafs.FileSystem, path: str, *, seekable: bool) -> pa.NativeFile:
    if is_local(uri) and not is_plain(Path(path).stat()):
        raise DataError(f"{uri} is no plain file. Replace it by one, or remove it.")
    if seekable or scheme_of(uri) in REMOTE_SCHEMES:  # which then knows its size
        return filesystem.open_input_file(encoded(path))
    return filesystem.open_input_stream(encoded(path), compression=None)  # else the bytes of a .gz were others


def open_file(uri: str, *, seekable: bool = False) -> pa.NativeFile:
    """Opens the file for reading, from its start on unless it has to be ``seekable``.

    A read of a file in a store outlives a disturbance as opening it does. Raises DataError where the file is missing or
    unreadable.
    """
    filesystem, path = open_fs(uri)
    near = is_local(uri)

    def reopen() -> pa.NativeFile:
        try:
            return present(lambda: _open(uri, filesystem, path, seekable=seekable or not near))
        except MissingError as error:
            raise _missing(uri) from error

    opened = asked(uri, "read", ACCESS, reopen)
    return opened if near else pa.PythonFile(SteadyFile(uri, opened, reopen), mode="r")


def download(uri: str, path: Path) -> None:
    """Copies the file ``uri`` to the local file ``path``, and waits for room on the disk of that.

    Raises DataError where that fails, and where the file is larger than any, by what its place says of it or by what comes.
    """
    if (info := describe_file(uri)) is None:
        raise _missing(uri)

    def copy() -> None:
        try:
            with path.open("wb") as target:

                def begin() -> Callable[[bytes], object]:
                    target.seek(0)
                    target.truncate()
                    return _at_most(target.write, uri, info.size, path.parent)

                pass_on(uri, begin)
        except (LtcoreError, OSError):
            path.unlink(missing_ok=True)  # so that what is half there takes no room, also while it is waited for
            raise

    try:
        retrying_disk(disk_of(path), copy)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}. {SPACE}.") from error


def download_whole(uri: str, path: Path) -> None:
    """Copies the file ``uri`` as ``download`` does; it has its name once it is whole and on the disk."""
    with written(str(path)) as aside:
        download(uri, aside)


def _at_most(write: Callable[[bytes], object], uri: str, told: int, folder: Path) -> Callable[[bytes], object]:
    """Returns what writes the pieces of a file of ``told`` bytes (-1: unknown), and no more, into ``folder``.

    Of a file of unknown size that is half of what is free, as more comes to be written than the file itself. Raises DataError
    for a file larger than any, and OSError where it does not fit.
    """
    free = free_bytes(folder)
    if told > MAX_FETCHED_BYTES:
        raise DataError(
            f"{uri} has {told} bytes, expected at most {MAX_FETCHED_BYTES}. Fetch it yourself, and name the copy."
        )
    if told > free:
        raise OSError(errno.ENOSPC, f"{uri} needs {byte_size(told)}, and {byte_size(free)} are free")
    most, count = min(MAX_FETCHED_BYTES, free // 2) if told < 0 else told, 0

    def take(piece: bytes) -> None:
        nonlocal count
        count += len(piece)
        if count > most:
            why = f"does not tell its size, and {byte_size(free)} are free in {folder}" if told < 0 else "tells no more"
            raise DataError(
                f"{uri} has more than {most} bytes, and its server {why}. Fetch it yourself, and name the copy."
            )
        write(piece)

    return take


def pass_on(uri: str, begin: Callable[[], Callable[[bytes], object]]) -> None:
    """Hands the pieces of a file to what ``begin`` returns, which is asked anew where reading starts again.

    Raises DataError where the file is missing or unreadable; errors of the receiver pass as they are.
    """
    filesystem, path = open_fs(uri)

    def read() -> None:
        take, count = _received(begin), 0
        with _open(uri, filesystem, path, seekable=False) as stream:
            while piece := bytes(stream.read(COPY_BYTES)):
                count += len(piece)
                _received(partial(take, piece))
            _refuse_short(uri, stream, count)

    try:
        asked(uri, "read", ACCESS, lambda: present(read))
    except MissingError as error:
        raise _missing(uri) from error
    except _ReceiverError as error:
        raise error.problem from None


def _received(act: Callable[[], T]) -> T:
    """Returns what the receiver's ``act`` returns; its error is no disturbance of the store, also where it may pass."""
    try:
        return act()
    except OSError as error:
        raise _ReceiverError(error) from None


class _ReceiverError(LtcoreError):
    """What took the pieces of a file failed."""

    def __init__(self, problem: OSError) -> None:
        super().__init__(str(problem))
        self.problem = problem


def is_plain(found: os.stat_result) -> bool:
    """Tells whether reading the file comes to an end.

    Pipes and devices may give nothing, or give data without end.
    """
    return stat.S_ISREG(found.st_mode)


def write_bytes_atomic(uri: str, data: bytes, fence: Callable[[], None] = lambda: None) -> None:
    """Writes the whole file or nothing: a temporary file, fsync and rename; object stores do so by themselves.

    ``fence`` is asked before every attempt, of which there may be some over minutes; what it raises ends them.
    """
    filesystem, path = open_fs(uri, attempts=1)

    def write() -> None:
        fence()
        if is_local(uri):
            _write_local(Path(path), data)
        else:
            undisturbed(lambda: _write_object(filesystem, path, data))

    asked(uri, "written", SPACE, write)


def _write_object(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def read_json(uri: str | Path) -> dict[str, Any] | None:
    """Reads the object in a JSON file; None where there is no such file.

    Raises DamagedFileError with the name of a file that is damaged, or larger than any that we write.
    """
    place = str(uri)
    data = find_own(place, MAX_RECORD_BYTES)
    return None if data is None else _object(place, data, MAX_RECORD_VALUES)


def find_own(place: str, most_bytes: int) -> bytes | None:
    """Reads a file of ours as ``find_bytes`` does. Raises DamagedFileError where it is larger than any that we write."""
    try:
        return find_bytes(place, most_bytes)
    except TooLargeError as error:
        raise DamagedFileError(f"{error} {DAMAGED}") from None


def write_json(uri: str | Path, value: Any, fence: Callable[[], None] = lambda: None) -> None:
    """Writes the whole file or nothing, as ``write_bytes_atomic``."""
    write_bytes_atomic(str(uri), json.dumps(value, indent=1).encode(), fence)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of a JSON-lines file; [] where there is none. A last line cut off by a kill is left out.

    Raises DamagedFileError with the name of a file that is damaged anywhere else, or larger than any that we write.
    """
    data = find_own(str(path), MAX_METRICS_BYTES) or b""
    lines = data.split(b"\n")[:-1]  # what follows the last newline is torn or empty
    return [_object(f"{path}, line {number}", line, MAX_ROW_VALUES) for number, line in enumerate(lines, 1) if line]


def _object(where: str, data: bytes, most_values: int) -> dict[str, Any]:
    try:
        value = load_json(data, most_values)
    except ValueError as error:
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


def remove_unfinished(folder: Path) -> None:
    """Removes files that a killed process had begun in ``folder`` and the folders directly in it, once they are old."""
    for left in itertools.chain(folder.glob(".*"), folder.glob("*/.*")):
        with contextlib.suppress(OSError):  # it is gone, or another person's
            if _UNFINISHED.fullmatch(left.name) and time.time() - left.stat().st_mtime > UNFINISHED_S:
                left.unlink()


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
            with tempfile.TemporaryDirectory(prefix="ltcore-") as folder:
                aside = Path(folder) / uri.rpartition("/")[2]
                yield aside
                upload(aside, uri)
    except OSError as error:
        raise StorageError(f"{uri} cannot be written: {error}. {SPACE}.") from error


def upload(path: Path, uri: str, fence: Callable[[], None] = lambda: None) -> None:
    """Copies a local file to an object store, as a whole or not at all, and holds a part of it at a time.

    ``fence`` is asked before it begins, and again where it has to begin anew. Raises DataError where copying fails.
    """
    filesystem, target = open_fs(uri)

    def copy() -> None:
        fence()
        pafs.copy_files(str(path), target, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)

    asked(uri, "written", SPACE, copy)


def append(file: io.FileIO, data: bytes, place: str) -> None:
    """Writes all of ``data`` at the end of an unbuffered file; waits while its disk, ``place``, is full or does not answer."""
    end = os.fstat(file.fileno()).st_size

    def write() -> None:
        os.ftruncate(file.fileno(), end)  # what a full disk took of it
        file.seek(end)
        left = data
        while left:
            left = left[file.write(left) or 0 :]

    retrying(place, write)


def disk_of(path: Path) -> str:
    """Returns where a file of ours is written, for messages: the nearest folder around it that is not hidden."""
    return str(next(folder for folder in path.absolute().parents if not folder.name.startswith(".")))


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


def cache_folder(*names: str) -> Path:
    """Returns a folder in the node's cache folder, made if missing. Raises StorageError where nothing can be written there."""
    folder = cache_root().joinpath(*names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):  # of a folder that is there: mkdir says nothing
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except OSError as error:
        raise _of_cache(folder, error) from error
    return folder


@contextlib.contextmanager
def locked_in_cache(file: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock ``file`` of a ``cache_folder`` as ``locked`` does, and tidies up after killed processes there.

    Raises StorageError where the lock cannot be had.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(file, on_wait))
            remove_unfinished(file.parent)
        except OSError as error:
            raise _of_cache(file.parent, error) from error
        yield


def _of_cache(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{folder} cannot be written: {error}. Correct its permissions, free space, or set LTCORE_CACHE to another place."
    )


def free_bytes(folder: str | Path) -> int:
    """Returns the free bytes on the disk of a folder, or of its nearest parent that exists."""
    place = Path(folder)
    return shutil.disk_usage(next(each for each in (place, *place.parents) if each.exists())).free
