"""Folders that go with the process that owns them: what one that was killed leaves, the next one removes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from ltcore.retry import still_here

LOCK = "ltcore.lock"
"""File in such a folder that its owner keeps locked; a lock ends with its process, however that ends."""
PREFIX = "ltcore-"
WAIT_S = 0.2


class OwnedFolder:
    """A folder that is there already, from now on this process's; ``lock`` is its file where that is locked already."""

    def __init__(self, path: Path, lock: TextIO | None = None) -> None:
        self.path = path
        if lock is None:
            unseen = path / f".{LOCK}"  # nobody may find it before it is locked
            lock = unseen.open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            unseen.rename(path / LOCK)
        self._lock = lock

    def release(self, *, keep: bool = False) -> None:
        """Removes the folder, or with ``keep`` leaves it to whoever comes next."""
        self._lock.close()
        if not keep:
            shutil.rmtree(self.path, ignore_errors=True)


def enter(path: Path, make: Callable[[], None], on_wait: Callable[[], None]) -> OwnedFolder | None:
    """Returns a folder of a name that others may know, on any machine, once no other process is in it.

    ``make`` makes it where it is missing; ``on_wait`` is called before this process waits. None where the file system has no
    locks. Raises OSError where the folder cannot be made or written.
    """
    told = False
    while True:
        make()
        try:
            lock = (path / LOCK).open("a")
        except FileNotFoundError:  # removed by whoever was in it, since
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):  # whoever was in it has removed it, or is about to
                if os.path.samestat(os.fstat(lock.fileno()), (path / LOCK).stat()):
                    make()  # what one that was in it moved away while this one made it
                    return OwnedFolder(path, lock)
        except BlockingIOError:
            if not told:
                on_wait()
            told = True
        except OSError as error:
            if error.errno != errno.ESTALE:  # of a file that another machine removed
                lock.close()
                return None
        lock.close()
        still_here()
        time.sleep(WAIT_S)


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
