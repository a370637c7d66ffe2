"""Makes a whole data set appear at once, or not at all.

What is removed to make room is what the manifest of an earlier data set names, and nothing else. In an object store, where
nothing can be renamed, the names that are about to go or come stand in ``manifest.json.partial`` until the new manifest is
there: so what a killed process leaves behind is still known for a data set's and not for somebody's files.

One process at a time puts a data set to a place, on whatever machines they are: one in a store waits for the lease there, and
one on a disk for a lock beside the place. In a store, files that lie there as they should are not written again, so that
processes which make the same data set disturb none of its readers. One thing stays open. A store keeps one content for each
name, so a replacement by other data takes the manifest away while the names that both have change their content: who opens
the data set then is told that there is none, and who reads the old one that a file is not the manifest's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ltcore import storage
from ltcore.data.shards.exchange import OLD, beside, place_of, turn
from ltcore.data.shards.manifest import MANIFEST, read_manifest
from ltcore.errors import ConfigError, DataError
from ltcore.lease import FOLDER as LEASE
from ltcore.lease import exclusive
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
            _exchange(new, uri, aside, progress)
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

    To a local place it is moved, so it must lie on the same disk. It waits for other processes that put one there.
    """
    if storage.is_local(uri):
        with beside(place_of(uri)) as aside:  # first, as it may put an earlier data set back
            _exchange(folder, uri, aside, progress)
        return
    if not _is_there(folder, uri):
        with exclusive(uri, progress, patient=True) as lease:
            if not _is_there(folder, uri):  # from a process that this one has waited for
                _upload(folder, uri, progress, lease.check)
                return
    if progress:
        progress(f"the same data set is at {uri} already; nothing is replaced")


def _tell(uri: str, names: Collection[str], progress: Callable[[str], None] | None) -> None:
    if names and progress:
        progress(f"replacing the data set at {uri} ({counted(len(names), 'file')})")


def _replaceable(uri: str) -> list[str]:
    """Returns the names of the files at ``uri``, all of an earlier data set.

    Raises ConfigError where there is anything else.
    """
    entries = storage.entries(uri)
    if not storage.is_local(uri):
        entries.pop(LEASE, None)
    files = {name for name, is_file in entries.items() if is_file}
    known = _known(uri, files)
    if files & {MANIFEST, PARTIAL} - known:  # a process that puts a data set there has just removed it
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
        if MANIFEST in files and not storage.exists(storage.join(uri, MANIFEST)):
            return known
        raise ConfigError(
            f"{uri} holds a damaged data set, of which nobody knows the files ({str(error).rstrip('.')}). Choose an empty "
            "place, or remove it."
        ) from error
    return known


def _exchange(folder: Path, uri: str, aside: Path, progress: Callable[[str], None] | None) -> None:
    """Moves the finished folder to its place, and an earlier data set there aside.

    Open files of the old one stay readable. Where a file came to it at the last moment, it goes back.
    """
    place = place_of(uri)
    with turn(place, aside):
        names = _replaceable(uri)  # again, as making the new data set took a while
        _tell(uri, names, progress)
        if place.exists():
            place.rename(aside / OLD)
            _refuse_foreign(uri, {path.name for path in (aside / OLD).iterdir()} - {*names})
        folder.rename(place)
        storage.sync_to_disk(place.parent)


def _is_there(folder: Path, uri: str) -> bool:
    """Tells whether the data set lies in the store already, whole and with nothing beside it."""
    manifest = read_manifest(str(folder))
    if {*_replaceable(uri)} == manifest.own_files:
        with contextlib.suppress(DataError):  # of files that another process replaces meanwhile
            return read_manifest(uri) == manifest and all(
                _hash(storage.join(uri, name)) == sha256 for name, sha256 in manifest.file_hashes.items()
            )
    return False


def _upload(folder: Path, uri: str, progress: Callable[[str], None] | None, fence: Callable[[], None]) -> None:
    """Copies the data set to an object store, its manifest last, and removes what an earlier one has in addition.

    The manifest there stays until files change that it names, and where none does, it is there all the time. ``fence`` is
    asked before each write and removal.
    """
    old, manifest = _replaceable(uri), read_manifest(str(folder))
    earlier = read_manifest(uri) if MANIFEST in old else None
    new, before = manifest.file_hashes, earlier.file_hashes if earlier else {}
    there = {name for name in new if name in old and before.get(name) == new[name] == _hash(storage.join(uri, name))}
    changed = sorted(new.keys() - there)
    _tell(uri, old, progress)
    partial = json.dumps(sorted({*old, *manifest.own_files})).encode()
    storage.write_bytes_atomic(storage.join(uri, PARTIAL), partial, fence)
    spoiling = [name for name in changed if before.get(name, new[name]) != new[name]]
    for name in changed:
        if name not in spoiling:
            storage.upload(folder / name, storage.join(uri, name), fence)
    if spoiling:
        storage.remove(storage.join(uri, MANIFEST), fence)
    for name in [*spoiling, MANIFEST]:
        storage.upload(folder / name, storage.join(uri, name), fence)
    for name in sorted({*old} - manifest.own_files - {PARTIAL}):
        storage.remove(storage.join(uri, name), fence)
    storage.remove(storage.join(uri, PARTIAL), fence)


def _hash(uri: str) -> str:
    """Returns the sha256 of a file as it lies in the store."""
    with storage.open_file(uri) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
