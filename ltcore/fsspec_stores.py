"""Stores that fsspec opens, for reading: Hugging Face, Azure and the web, as file systems of pyarrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from ltcore.errors import ConfigError, StorageError
from ltcore.uris import READ_ONLY

_VERSION_KEYS = ("etag", "ETag", "blob_id", "mtime", "last_modified", "LastModified", "Last-Modified", "created")
"""Where the file systems of fsspec tell that a file has changed."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file below a place."""

    name: str
    """Relative to the place, with ``/``."""
    size: int
    """In bytes; -1 where the store does not say."""
    version: str
    """Changes with the file, as its time or ETag do; '' where the store says nothing of the kind."""


class _Handler(pafs.FSSpecHandler):
    """Opens files with the store's own errors: pyarrow's handler takes a file of a store that is down for missing."""

    def open_input_file(self, path: str) -> pa.PythonFile:
        if self.fs.info(path)["type"] != "file":
            raise FileNotFoundError(path)
        return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")

    open_input_stream = open_input_file


def open_fs(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns what fsspec opens, as a pyarrow file system, and the path inside it."""
    import fsspec  # a part of a second, which only these stores need

    scheme = uri.partition("://")[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        package = READ_ONLY[scheme]
        raise ConfigError(
            f"{uri}: {scheme}:// needs the package {package} ({error}). Install it: pip install {package}."
        ) from error
    except Exception as error:  # whatever the store's client raises
        raise StorageError(
            f"{uri}: the store cannot be opened ({error}). Check the name and the credentials."
        ) from error
    return pafs.PyFileSystem(_Handler(filesystem)), path


def find_files(fs: Any, root: str, recursive: bool) -> list[FileInfo]:
    """Lists what fsspec finds; pyarrow's bridge would leave out what tells a change."""
    fs.invalidate_cache()  # it outlives the file system
    found = fs.find(root, maxdepth=None if recursive else 1, detail=True)
    return [_described(path[len(root) :].lstrip("/"), info) for path, info in found.items() if path != root]


def _described(name: str, info: dict[str, Any]) -> FileInfo:
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    size = info.get("size")
    return FileInfo(name, -1 if size is None else int(size), version)


def find_file(fs: Any, path: str) -> FileInfo | None:
    """Looks up what fsspec knows of a file; None where it is a folder."""
    fs.invalidate_cache()
    info = fs.info(path)
    return _described(path.rpartition("/")[2], info) if info["type"] == "file" else None
