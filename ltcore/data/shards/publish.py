"""Makes a whole data set appear at once, or not at all.

What is removed to make room is what the manifest of an earlier data set names, and nothing else. In an object store, where
nothing can be renamed, the names that are about to go or come stand in ``manifest.json.partial`` until the new manifest is
there: so what a killed process leaves behind is still known for a data set's and not for somebody's files.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from pyarrow import fs as pafs

from ltcore import storage
from ltcore.data.shards.manifest import MANIFEST, read_manifest
from ltcore.errors import ConfigError, DataError

PARTIAL = f"{MANIFEST}.partial"


@contextlib.contextmanager
def published(uri: str, progress: Callable[[str], None] | None = None) -> Iterator[Path]:
    """Yields a folder to write in, whose content appears at ``uri`` when the block ends well.

    It vanishes when the block fails. ``progress`` is told when an earlier data set is replaced. Raises ConfigError
    where other files would have to be removed.
    """
    storage.refuse_read_only(uri)
    _replaceable(uri)
    if storage.is_local(uri):
        target = storage.local_path(uri).absolute().resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex}")
        aside.mkdir()
        try:
            yield aside
            _swap(aside, target, _replaced(uri, progress))
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
            _upload(Path(temporary), uri, _replaced(uri, progress))


def _replaced(uri: str, progress: Callable[[str], None] | None) -> list[str]:
    """Returns the files to remove, looked up again because making the new data set took a while."""
    names = _replaceable(uri)
    if names and progress:
        progress(f"replacing the data set at {uri} ({len(names)} files)")
    return names


def _replaceable(uri: str) -> list[str]:
    """Returns the names of the files at ``uri``, all of an earlier data set.

    Raises ConfigError where there is anything else.
    """
    filesystem, path = storage.open_fs(uri)
    entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    files = {entry.base_name for entry in entries if entry.type == pafs.FileType.File}
    known = _known(uri, files)
    foreign = sorted(entry.base_name for entry in entries if entry.base_name not in known & files)
    if foreign:
        raise ConfigError(
            f"{uri} holds other files ({foreign[0]}, {len(foreign)} in all), which no {MANIFEST} there names. Choose an "
            "empty place, or remove them."
        )
    return sorted(files)


def _known(uri: str, files: Collection[str]) -> set[str]:
    """Returns the names that belong to a data set, whole or half-replaced."""
    known: set[str] = set()
    try:
        if MANIFEST in files:
            known |= read_manifest(uri).own_files
        if PARTIAL in files:
            known |= {PARTIAL, *json.loads(storage.read_bytes(storage.join(uri, PARTIAL)))}
    except (DataError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{uri} holds a damaged data set, of which nobody knows the files ({str(error).rstrip('.')}). Choose an empty "
            "place, or remove it."
        ) from error
    return known


def _swap(aside: Path, target: Path, names: Collection[str]) -> None:
    """Puts the finished folder in its place.

    Open files of the old one, which held ``names``, stay readable.
    """
    if target.exists():
        old = target.with_name(f".{target.name}.old-{uuid.uuid4().hex}")
        target.rename(old)
        aside.rename(target)
        for name in names:
            (old / name).unlink()
        old.rmdir()
    else:
        aside.rename(target)
    storage.sync_to_disk(target.parent)


def _upload(folder: Path, uri: str, old: Collection[str]) -> None:
    """Removes the old data set, manifest first, then copies the new one, manifest last: readers need the manifest."""
    filesystem, path = storage.open_fs(uri)
    new = sorted((file.name for file in folder.iterdir()), key=lambda name: (name == MANIFEST, name))
    storage.write_bytes_atomic(storage.join(uri, PARTIAL), json.dumps(sorted({*old, *new})).encode())
    for name in sorted({*old} - {PARTIAL}, key=lambda name: name != MANIFEST):
        filesystem.delete_file(f"{path}/{name}")
    for name in new:
        pafs.copy_files(
            str(folder / name),
            f"{path}/{name}",
            source_filesystem=pafs.LocalFileSystem(),
            destination_filesystem=filesystem,
        )
    filesystem.delete_file(f"{path}/{PARTIAL}")
