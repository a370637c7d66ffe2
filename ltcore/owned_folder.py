"""Folders that go with the process that owns them: what one that was killed leaves, the next one removes."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

LOCK = "ltcore.lock"
"""File in such a folder that its owner keeps locked; a lock ends with its process, however that ends."""
PREFIX = "ltcore-"


class OwnedFolder:
    """A folder that is there already, from now on this process's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        unseen = path / f".{LOCK}"  # nobody may find it before it is locked
        self._lock = unseen.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unseen.rename(path / LOCK)

    def release(self, *, keep: bool = False) -> None:
        """Removes the folder, or with ``keep`` leaves it to whoever comes next."""
        self._lock.close()
        if not keep:
            shutil.rmtree(self.path, ignore_errors=True)


class TemporaryFolder:
    """A folder in ``root``, of a name that begins with ``prefix``, that goes with this object or with its process."""

    def __init__(self, root: Path, prefix: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        remove_abandoned(root, f"{prefix}*")
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        weakref.finalize(self, OwnedFolder(self.path).release)


def abandoned(root: Path, names: str) -> Iterator[Path]:
    """Yields the folders in ``root``, of names like the pattern ``names``, whose owner has ended without removing them.

    Each is this process's until the next is asked for.
    """
    for lock in root.glob(f"{names}/{LOCK}"):
        try:
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield lock.parent
        except OSError:  # in use, another user's, or gone by now
            continue


def remove_abandoned(root: Path, names: str) -> None:
    """Removes the folders that ``abandoned`` finds."""
    for folder in abandoned(root, names):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Puts the temporary files of this process, also those of libraries, into a folder of its own.

    Where none can be made, as on a full disk, the process goes on without: whoever needs room will say so.
    """
    owned, before = None, tempfile.tempdir
    with contextlib.suppress(OSError):
        remove_abandoned(Path(tempfile.gettempdir()), f"{PREFIX}*")
        owned = OwnedFolder(Path(tempfile.mkdtemp(prefix=PREFIX)))
        tempfile.tempdir = str(owned.path)
    try:
        yield
    finally:
        tempfile.tempdir = before
        if owned is not None:
            owned.release()
