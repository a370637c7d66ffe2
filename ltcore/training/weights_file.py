"""Files of pretrained weights: a copy on this node, its sha256, and the tensors in it."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from ltcore.errors import CheckpointError
from ltcore.fsspec_stores import FileInfo
from ltcore.storage import (
    TooLargeError,
    cache_folder,
    describe_file,
    download,
    find_bytes,
    is_local,
    locked_in_cache,
    open_fs,
    write_bytes_atomic,
    written,
)
from ltcore.training import checkpoint as ckpt

_LOG = logging.getLogger("ltcore.storage")
FOLDER = "LTCORE_WEIGHTS_DIR"
"""Variable with a folder in which files of weights are looked for that are no longer where a run had them."""
REMEDY = f"Put the file there, or name the folder that has it by {FOLDER}; what begins may have other weights, or null."
SHA256 = "sha256"
"""Name of the file's hash beside ``weights`` in what a run notes of its start."""
TEXT_WEIGHTS, TEXT_SHA256 = "text_weights", "text_sha256"
"""Names of the text encoder's file and of its hash there, of a run with ``model.head_init=text``."""
NAMES_SETTING, NAMES_SHA256 = "model.text.names", "text_names_sha256"
"""The key of a file with words for classes, and the name of its hash there."""


_NOTE_BYTES = 64
"""Of a sha256 in hexadecimal digits."""


def node_file(uri: str, setting: str = "model.weights") -> Path:
    """Returns the file ``uri`` on this node: itself, or a copy that all processes of the node share.

    It is fetched by one of them, again where the file in the store is another one since. Raises CheckpointError where there is
    none.
    """
    if is_local(uri):
        return _local_file(uri, setting)
    copy = _copy_of(uri, setting)
    with locked_in_cache(_lock_of(copy)):
        if not copy.is_file() or _noted(copy) is None:
            _fetch(uri, copy)
    return copy


def whole_file(uri: str, setting: str = "model.weights") -> tuple[Path, str]:
    """Returns the file as ``node_file`` does, and its sha256; a damaged copy is fetched again, once."""
    file = node_file(uri, setting)
    found = sha256(file)
    if is_local(uri) or found == _noted(file):
        return file, found
    with locked_in_cache(_lock_of(file)):
        if sha256(file) != _noted(file):  # else another process was here first
            _LOG.warning("this node's copy %s was damaged and is fetched again", file)
            _fetch(uri, file)
        if (found := sha256(file)) != _noted(file):
            raise CheckpointError(
                f"{setting}={uri}: this node's copy {file} is damaged, also after it was fetched again. Check this node's disk."
            )
    return file, found


def _copy_of(uri: str, setting: str) -> Path:
    path, info = Path(open_fs(uri)[1]), check_exists(uri, setting)
    key = hashlib.sha256("\n".join((uri, str(info.size), info.version)).encode()).hexdigest()[:16]
    return cache_folder("weights") / key / path.name


def _lock_of(copy: Path) -> Path:
    return copy.parent.with_suffix(".lock")


def _fetch(uri: str, copy: Path) -> None:
    """Fetches the file, and notes its sha256 beside it before it is there. The caller holds its lock."""
    for left in copy.parent.glob(".*"):  # of a process that was killed
        left.unlink()
    with written(str(copy)) as aside:
        download(uri, aside)
        write_bytes_atomic(str(_note_of(copy)), sha256(aside).encode())


def _note_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.{SHA256}")


def _noted(copy: Path) -> str | None:
    try:
        data = find_bytes(str(_note_of(copy)), _NOTE_BYTES)
    except TooLargeError:  # damaged: the file is fetched again
        return None
    return None if data is None else data.decode(errors="replace")


def check_exists(uri: str, setting: str = "model.weights") -> FileInfo:
    """Returns size and version of the file ``uri``. Raises CheckpointError where there is none."""
    info = describe_file(str(_local_file(uri, setting)) if is_local(uri) else uri)
    if info is None:
        raise CheckpointError(f"{setting}={uri} does not exist. {REMEDY}")
    return info


def _local_file(uri: str, setting: str) -> Path:
    """Returns the file at a path, or the one of its name in the folder for those that have moved."""
    path, folder = Path(open_fs(uri)[1]), os.environ.get(FOLDER)
    moved = [Path(folder).expanduser() / path.name] if folder else []
    found = next((file for file in (path, *moved) if file.is_file()), None)
    if found is None:
        raise CheckpointError(f"{setting}={uri} does not exist. {REMEDY}")
    return found


def sha256(path: Path) -> str:
    """Returns the hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensors(path: Path) -> Any:
    """Returns the content of a file of weights, on the CPU. Raises errors of any type where it is none."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with path.open("rb") as stream:
            ckpt.refuse_long_description(int.from_bytes(stream.read(8), "little"))
        return load_file(path)
    with path.open("rb") as stream:
        return ckpt.read_tensors(stream)
