"""Background synchronization of a run's local directory to shared storage.

Training always writes to a local disk. Where the run belongs on an object store, one thread copies changed files. Their
order leaves something to continue from whenever the node dies: first what a resumed run reads beside its checkpoint,
then checkpoints with their ``meta.json`` last, then ``run.json``, which refers to them. An old checkpoint is removed
only after a newer one is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from ltcore import dist
from ltcore.errors import StorageError
from ltcore.limits import MAX_RECORD_BYTES, MAX_RECORD_VALUES, load_json
from ltcore.retry import is_disturbed, still_here
from ltcore.storage import (
    download_whole,
    find_own,
    is_local,
    join,
    list_files,
    locked,
    open_fs,
    read_bytes,
    remove_folder,
    remove_unfinished,
    upload,
    write_bytes_atomic,
)
from ltcore.stores import place_of

_LOCK, _RECORD = ".lock", "run.json"
LOOK_S = 0.5
"""Between two looks at the storage while a copy takes long."""

Stamp = tuple[int, int]


class RunSync:
    """Mirrors ``local`` to ``uri``. With a local ``uri`` the two are the same directory and nothing is copied."""

    def __init__(self, uri: str, scratch: Path) -> None:
        self.uri = uri
        self.fence: Callable[[], None] = lambda: None
        """Asked before every write to the storage; raises where the run is another process's by now, or removed."""
        self.remote = not is_local(uri)
        self.local = scratch if self.remote else Path(open_fs(uri)[1])
        self.ahead = False
        """Whether the local directory was found to be newer than the storage: a last copy failed."""
        self.replaces = False
        """Whether the storage keeps no checkpoint that is not here, not even the only one of its kind."""
        self._sent: dict[str, Stamp | None] = {}
        """File on the storage -> stamp of the local file that was copied; None where unknown, so that it is copied
        again.
        """
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ltcore-sync") if self.remote else None
        self._last: Future[None] | None = None

    def pull(self) -> None:
        """Makes the local directory equal to the storage.

        A local directory from which the storage's copy was made is kept: it is the same or newer. Any other belongs to
        an earlier attempt of the run (another node continued it, or ``--fresh`` removed it) and is replaced.
        """
        if not self.remote:
            return
        with locked(self.local / _LOCK):  # ranks of one node share the directory
            remove_unfinished(self.local)
            empty = [path.name for path in self.local.iterdir()] == [_LOCK]
            if not empty and dist.rank() != 0:
                return
            names = [name for name in list_files(self.uri) if not _hidden(name)]
            stored = read_bytes(join(self.uri, _RECORD), MAX_RECORD_BYTES) if _RECORD in names else b""
            if not empty:
                local = find_own(str(self.local / _RECORD), MAX_RECORD_BYTES) or b""
                if _comes_from(stored, local):
                    self.ahead = stored != local
                    self._sent = dict.fromkeys(names)
                    return
                self._clear()
            for name in sorted(
                names, key=lambda name: name == _RECORD
            ):  # the record last: it marks the copy as complete
                target = self.local / name
                if name == _RECORD:
                    write_bytes_atomic(str(target), stored)
                else:
                    download_whole(join(self.uri, name), target)
                self._sent[name] = _stamp(target.stat())

    def push(self, *, wait: bool = True) -> None:
        """Starts copying what changed, and what the previous copy failed to copy.

        Raises the error of the previous copy: it was refused, or has waited for the storage as long as any call does.
        While the previous copy is still running, waits for it; without ``wait``, or while the storage is disturbed, it
        leaves the change to the next push, so that training goes on. Call it from the thread that saves checkpoints: it
        copies the checkpoints that exist at this moment.
        """
        if self._pool is None:
            return
        if self._last is not None:
            while wait and not self._last.done() and not is_disturbed(place_of(self.uri)):
                futures.wait([self._last], timeout=LOOK_S)
                still_here()
            if not self._last.done():
                return
            self._last.result()
        self._last = self._pool.submit(self._copy, self._read_record(), self._open_checkpoints())

    def close(self) -> None:
        """Copies what is left, including what an earlier copy failed to copy, and waits."""
        if self._pool is None:
            return
        if self._last is not None:
            _wait_for(self._last)
            self._last = None
        with self._pool:
            self.push()
            assert self._last is not None
            _wait_for(self._last)
        self._last.result()

    def push_end(self) -> None:
        """Starts copying the run's end, after copies that are still running, whose errors ``close`` makes good or raises."""
        if self._pool is not None:
            self._last = self._pool.submit(self._copy, self._read_record(), self._open_checkpoints())

    def discard(self) -> None:
        """Removes this node's checkpoints of a run that is whole on the storage: nobody else would, and disks fill up.

        Without a record the rest does not count as a copy. It is small, and W&B may still be uploading its part.
        """
        if self.remote:
            with locked(self.local / _LOCK), contextlib.suppress(OSError):  # what cannot be removed harms no run
                (self.local / _RECORD).unlink(missing_ok=True)
                shutil.rmtree(self.local / "checkpoints", ignore_errors=True)

    def _clear(self) -> None:
        for path in self.local.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=path.name == "wandb")  # whose service may still be writing
            elif path.name != _LOCK:
                path.unlink()

    def _open_checkpoints(self) -> dict[str, dict[str, BinaryIO]]:
        """Opens all files of all checkpoints: folder -> name -> open file.

        Training may remove them meanwhile; open files stay readable.
        """
        found: dict[str, dict[str, BinaryIO]] = {}
        for name in _visible(self.local, "checkpoints"):
            found.setdefault(name.rpartition("/")[0], {})[name] = (self.local / name).open("rb")
        return found

    def _copy(self, record: tuple[Stamp, bytes] | None, checkpoints: dict[str, dict[str, BinaryIO]]) -> None:
        with contextlib.ExitStack() as stack:
            for files in checkpoints.values():
                for file in files.values():
                    stack.enter_context(file)
            for name in _visible(self.local):
                if name != _RECORD and not name.startswith("checkpoints/"):
                    self._upload(name)
            for files in checkpoints.values():
                for name, file in sorted(files.items(), key=lambda item: item[0].endswith("/meta.json")):
                    stamp = _stamp(os.fstat(file.fileno()))
                    if self._sent.get(name) != stamp:
                        self._send(name, stamp, file.read())
        if record is not None:
            self._send(_RECORD, *record)
        stored = {name.rpartition("/")[0] for name in self._sent if name.startswith("checkpoints/")}
        for folder in sorted(stored - checkpoints.keys()):
            if self.replaces or _tag(folder) in map(_tag, checkpoints):
                remove_folder(join(self.uri, folder), first="meta.json", fence=self.fence)
                self._sent = {name: stamp for name, stamp in self._sent.items() if not name.startswith(f"{folder}/")}

    def _read_record(self) -> tuple[Stamp, bytes] | None:
        """Reads the record, if it exists and the storage does not have its present content."""
        stamp = self._changed(_RECORD)
        data = None if stamp is None else find_own(str(self.local / _RECORD), MAX_RECORD_BYTES)
        return None if stamp is None or data is None else (stamp, data)

    def _changed(self, name: str) -> Stamp | None:
        """Returns the stamp of the file, if it exists and the storage does not have its present content."""
        try:
            stamp = _stamp((self.local / name).stat())
        except FileNotFoundError:
            return None
        return None if self._sent.get(name) == stamp else stamp

    def _upload(self, name: str) -> None:
        """Copies the file as ``_changed`` tells, in pieces: W&B and TensorBoard bound none of theirs."""
        if (stamp := self._changed(name)) is None:
            return
        path = self.local / name
        try:
            upload(path, join(self.uri, name), self.fence)
        except StorageError:
            if path.exists():
                raise
            return  # it vanished meanwhile
        self._sent[name] = stamp

    def _send(self, name: str, stamp: Stamp, data: bytes) -> None:
        write_bytes_atomic(join(self.uri, name), data, self.fence)
        self._sent[name] = stamp


def _wait_for(copy: Future[None]) -> None:
    while not copy.done():
        futures.wait([copy], timeout=LOOK_S)
        still_here()


def _visible(root: Path, start: str = "") -> Iterator[str]:
    """Yields names below ``root`` of all plain files that are not hidden.

    Folders may appear and vanish meanwhile, which ``rglob`` does not tolerate.
    """
    for folder, below, files in os.walk(root / start):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _tag(folder: str) -> str:
    return Path(folder).name.rpartition("-")[0]


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_mtime_ns, stat.st_size


def _comes_from(stored: bytes, local: bytes) -> bool:
    """Tells whether the stored record is an earlier or equal state of the local one.

    Both must be of the same start, and the stored one not ahead.
    """
    try:
        there, here = (load_json(record, MAX_RECORD_VALUES) for record in (stored, local))
        same = (there["started_at"], there["pid"]) == (here["started_at"], here["pid"])
        return bool(same and there["images_seen"] <= here["images_seen"])
    except (ValueError, KeyError, TypeError):  # missing or damaged
        return False
