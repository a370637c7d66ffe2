"""Makes a whole data set appear at once, or not at all.

What is removed to make room is what the manifest of an earlier data set names, and nothing else. In an object store, where
nothing can be renamed, the names that are about to go or come stand in ``manifest.json.partial`` until the new manifest is
there: so what a killed process leaves behind is still known for a data set's and not for somebody's files.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ltcore import storage
from ltcore.data.shards.exchange import OLD, beside, place_of
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
        with beside(place_of(uri)) as aside:
            (new := aside / "new").mkdir()
            yield new
            _exchange(new, uri, _replaced(uri, progress), aside)
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
    if storage.is_local(uri):
        with beside(place_of(uri)) as aside:  # first, as it may put an earlier data set back
            _exchange(folder, uri, _replaced(uri, progress), aside)
    else:
        _upload(folder, uri, _replaced(uri, progress))


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
    _refuse_foreign(uri, entries.keys() - (known & files))
    return sorted(files)


def _refuse_foreign(uri: str, names: Collection[str]) -> None:
    if names:
        raise ConfigError(
            f"{uri} holds other files ({min(names)}, {len(names)} in all), which no {MANIFEST} there names. Choose an "
            "empty place, or remove them."
        )


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


def _exchange(folder: Path, uri: str, names: Collection[str], aside: Path) -> None:
    """Moves the finished folder to its place, and what was there, which held ``names``, aside.

    Open files of the old one stay readable. Where a file came to it at the last moment, it goes back.
    """
    place = place_of(uri)
    if place.exists():
        place.rename(aside / OLD)
        _refuse_foreign(uri, {path.name for path in (aside / OLD).iterdir()} - {*names})
    folder.rename(place)
    storage.sync_to_disk(place.parent)


def _upload(folder: Path, uri: str, old: Collection[str]) -> None:
    """Removes the old data set, manifest first, then copies the new one, manifest last: readers need the manifest."""
    new = sorted((file.name for file in folder.iterdir()), key=lambda name: (name == MANIFEST, name))
    storage.write_bytes_atomic(storage.join(uri, PARTIAL), json.dumps(sorted({*old, *new})).encode())
    for name in sorted({*old} - {PARTIAL}, key=lambda name: name != MANIFEST):
        storage.remove(storage.join(uri, name))
    for name in new:
        storage.upload(folder / name, storage.join(uri, name))
    storage.remove(storage.join(uri, PARTIAL))
