"""Makes a whole data set appear at once, or not at all.

What is removed to make room is what the manifest of an earlier data set names, and nothing else. In an object store, where
nothing can be renamed, the names that are about to go or come stand in ``manifest.json.partial`` until the new manifest is
there: so what a killed process leaves behind is still known for a data set's and not for somebody's files.

In a store, files that lie there as they should are not written again, so that processes which make the same data set, on
whatever machines, disturb neither each other nor its readers. Two things stay open. A store keeps one content for each name,
so a replacement by other data takes the manifest away while the names that both have change their content: who opens the data
set then is told that there is none, and who reads the old one that a file is not the manifest's. And no lock reaches
across machines: two that upload different data to one place at the same time, as with different versions of a library, may
leave a mixture, which the checksums in the manifest tell.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ltcore import storage
from ltcore.data.shards.exchange import OLD, beside, place_of
from ltcore.data.shards.manifest import MANIFEST, read_manifest
from ltcore.errors import ConfigError, DataError
from ltcore.limits import MAX_MANIFEST_BYTES, load_json
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
        _upload(folder, uri, progress)


def _replaced(uri: str, progress: Callable[[str], None] | None) -> list[str]:
    """Returns the files to remove, looked up again because making the new data set took a while."""
    names = _replaceable(uri)
    _tell(uri, names, progress)
    return names


def _tell(uri: str, names: Collection[str], progress: Callable[[str], None] | None) -> None:
    if names and progress:
        progress(f"replacing the data set at {uri} ({counted(len(names), 'file')})")


def _replaceable(uri: str) -> list[str]:
    """Returns the names of the files at ``uri``, all of an earlier data set.

    Raises ConfigError where there is anything else.
    """
    entries = storage.entries(uri)
    files = {name for name, is_file in entries.items() if is_file}
    known = _known(uri, files)
    if PARTIAL in files - known:  # a process that made the same data set has just ended
        return _replaceable(uri)
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
        if (
            PARTIAL in files
            and (data := storage.find_bytes(storage.join(uri, PARTIAL), MAX_MANIFEST_BYTES)) is not None
        ):
            known |= {PARTIAL, *load_json(data)}
    except (DataError, ValueError, TypeError) as error:
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


def _upload(folder: Path, uri: str, progress: Callable[[str], None] | None) -> None:
    """Copies the data set to an object store, its manifest last, and removes what an earlier one has in addition.

    The manifest there stays until files change that it names, and where none does, it is there all the time.
    """
    old, manifest = _replaceable(uri), read_manifest(str(folder))
    earlier = read_manifest(uri) if MANIFEST in old else None
    new, before = manifest.file_hashes, earlier.file_hashes if earlier else {}
    there = {name for name in new if name in old and before.get(name) == new[name] == _hash(storage.join(uri, name))}
    changed = sorted(new.keys() - there)
    if earlier == manifest and not changed and {*old} == manifest.own_files:
        if progress:
            progress(f"the same data set is at {uri} already; nothing is replaced")
        return
    _tell(uri, old, progress)
    storage.write_bytes_atomic(storage.join(uri, PARTIAL), json.dumps(sorted({*old, *manifest.own_files})).encode())
    spoiling = [name for name in changed if before.get(name, new[name]) != new[name]]
    for name in changed:
        if name not in spoiling:
            storage.upload(folder / name, storage.join(uri, name))
    if spoiling:
        storage.remove(storage.join(uri, MANIFEST))
    for name in [*spoiling, MANIFEST]:
        storage.upload(folder / name, storage.join(uri, name))
    for name in sorted({*old} - manifest.own_files - {PARTIAL}):
        storage.remove(storage.join(uri, name))
    storage.remove(storage.join(uri, PARTIAL))


def _hash(uri: str) -> str:
    """Returns the sha256 of a file as it lies in the store."""
    with storage.open_file(uri) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
