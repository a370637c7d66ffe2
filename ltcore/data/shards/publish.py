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

from ltcore import storage
from ltcore.data.shards.manifest import MANIFEST, read_manifest
from ltcore.errors import ConfigError, DataError
from ltcore.text import counted

PARTIAL = f"{MANIFEST}.partial"


@contextlib.contextmanager
def published(uri: str, progress: Callable[[str], None] | None = None) -> Iterator[Path]:
    """Yields a folder to write in, whose content appears at ``uri`` when the block ends well.

    It vanishes when the block fails. ``progress`` is told when an earlier data set is replaced. Raises ConfigError
    where other files would have to be removed.
    """
    refuse_occupied(uri)
    if storage.is_local(uri):
        target = storage.local_path(uri).absolute().resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex}")
        aside.mkdir()
        try:
            yield aside
            publish(aside, uri, progress)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
            publish(Path(temporary), uri, progress)


def refuse_occupied(uri: str) -> None:
    """Raises ConfigError where no data set can be put without removing other files."""
    storage.refuse_read_only(uri)
    _replaceable(uri)


def publish(folder: Path, uri: str, progress: Callable[[str], None] | None = None) -> None:
    """Puts a finished folder at ``uri``, in the place of an earlier data set, of which ``progress`` is told.

    To a local place it is moved, so it must lie on the same disk.
    """
    names = _replaced(uri, progress)
    if storage.is_local(uri):
        _swap(folder, storage.local_path(uri).absolute().resolve(), names)
    else:
        _upload(folder, uri, names)


def _replaced(uri: str, progress: Callable[[str], None] | None) -> list[str]:
    """Returns the files to remove, looked up again because making the new data set took a while."""
    names = _replaceable(uri)
    if names and progress:
        progress(f"replacing the data set at {uri} ({counted(len(names), 'file')})")
    return names


def _replaceable(uri: str) -> list[str]:
    """Returns the names of the files at ``uri``, all of an earlier data set.

    Raises ConfigError where there is anything else.
    """
    entries = storage.entries(uri)
    files = {name for name, is_file in entries.items() if is_file}
    known = _known(uri, files)
    foreign = sorted(entries.keys() - (known & files))
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
    except (DataError, ValueError, TypeError, RecursionError) as error:
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
    new = sorted((file.name for file in folder.iterdir()), key=lambda name: (name == MANIFEST, name))
    storage.write_bytes_atomic(storage.join(uri, PARTIAL), json.dumps(sorted({*old, *new})).encode())
    for name in sorted({*old} - {PARTIAL}, key=lambda name: name != MANIFEST):
        storage.remove(storage.join(uri, name))
    for name in new:
        storage.upload(folder / name, storage.join(uri, name))
    storage.remove(storage.join(uri, PARTIAL))
