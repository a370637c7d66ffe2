"""Puts a data set on a disk in the place of an earlier one so that a kill at any point loses neither.

The earlier one moves to ``old`` in a folder beside the place before the new one moves there. That folder goes with its
process; whoever comes after one that was killed puts the earlier data set back where the place is empty, and removes the rest.
One process at a time does so to a place.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ltcore import storage
from ltcore.owned_folder import OwnedFolder, abandoned, enter, remove_abandoned
from ltcore.retry import retrying

OLD = "old"
_MARK, _TURN = ".partial-", ".turn"


def place_of(uri: str) -> Path:
    """Returns where a data set at a local URI is: of a link, where it leads to."""
    return storage.local_path(uri).absolute().resolve()


@contextlib.contextmanager
def beside(place: Path) -> Iterator[Path]:
    """Yields a folder on the disk of ``place``, which is gone when the block ends."""
    retrying(storage.disk_of(place), lambda: place.parent.mkdir(parents=True, exist_ok=True))
    _settle_abandoned(place.parent)
    folder, owned = place.with_name(f".{place.name}{_MARK}{uuid.uuid4().hex}"), None
    try:
        retrying(storage.disk_of(folder), lambda: folder.mkdir(exist_ok=True))
        with contextlib.suppress(OSError):  # of a file system without locks: what is left there after a kill stays
            owned = OwnedFolder(folder)
        yield folder
    finally:
        _settle(folder, place)
        if owned is not None:
            owned.release(keep=True)  # where an earlier data set could not be put back, it is there


@contextlib.contextmanager
def turn(place: Path, aside: Path) -> Iterator[None]:
    """Waits until no other process exchanges ``place``, on any machine, where its file system has locks.

    Where the block fails, what it moved to ``aside`` goes back before another process has its turn.
    """
    folder = place.with_name(f".{place.name}{_TURN}")
    make = partial(retrying, storage.disk_of(folder), lambda: folder.mkdir(exist_ok=True))
    owned = enter(folder, make, lambda: None)
    try:
        yield
    finally:
        _restore(aside, place)
        with contextlib.suppress(FileNotFoundError):  # where nothing is locked, another process may have moved it
            folder.rename(aside / _TURN)  # while it is locked: whoever waits makes one of its own at once
        if owned is not None:
            owned.release(keep=True)


def put_back(uri: str) -> bool:
    """Tells whether there is a data set again which a killed process had moved away from ``uri``."""
    if not storage.is_local(uri) or (place := place_of(uri)).exists():
        return False
    _settle_abandoned(place.parent)
    return place.exists()


def _settle_abandoned(parent: Path) -> None:
    remove_abandoned(parent, f".*{_TURN}")
    for folder in abandoned(parent, f".*{_MARK}*"):
        with contextlib.suppress(OSError):
            _settle(folder, folder.with_name(folder.name[1:].rpartition(_MARK)[0]))


def _settle(folder: Path, place: Path) -> None:
    _restore(folder, place)
    shutil.rmtree(folder, ignore_errors=True)


def _restore(folder: Path, place: Path) -> None:
    if (folder / OLD).exists() and not place.exists():
        (folder / OLD).rename(place)
