"""One process at a time works on a run or sweep, wherever its storage is: another one would remove its checkpoints.

Whoever works on a place writes a claim below ``<place>/.lease/`` and then lists what is there. Two claims can never miss
each other, because each is written before its owner lists, and both disks and object stores list what was written. So no
conditional write is needed, which pyarrow's stores do not offer. A claim that stands alone holds; one that meets another
is taken back. Its owner renews it; one that is not renewed any more, or whose process is gone from this machine, is void.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ltcore.errors import DataError
from ltcore.storage import is_local, join, list_files, local_path, open_fs, write_bytes_atomic

FOLDER = ".lease"
RENEW_S = 15.0
VOID_S = 60.0
"""A claim that nobody renews for this long belongs to a process that is gone."""
PREDECESSOR_S = 60.0
"""How long a process whose work was handed on may take to end."""


@dataclass(frozen=True)
class _Owner:
    """Who holds a claim, in words and so that the same machine can look whether it still lives."""

    host: str
    machine: str
    """Boot and process namespace: inside them a pid means one process."""
    pid: int
    born: str
    """When that process was started, in the kernel's words: a pid is used again."""
    since: str

    @property
    def is_here(self) -> bool:
        return self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        return self.is_here and _born(self.pid) != self.born

    def __str__(self) -> str:
        return f"process {self.pid} of {'this machine' if self.is_here else self.host}, since {self.since}"


class Lease:
    """The claim that this process holds on a place."""

    def __init__(self, file: str, owner: _Owner) -> None:
        self._file, self._owner, self._renewals = file, owner, 0
        self._ended = threading.Event()
        self._taken = False
        self._thread = threading.Thread(target=self._keep, daemon=True, name="ltcore-lease")

    def check(self) -> None:
        """DataError where another process took the place over, because this one did not renew its claim in time."""
        if self._taken:
            place = self._file.partition(f"/{FOLDER}/")[0]
            raise DataError(
                f"{place} was taken over by another process while this one stood still for over {VOID_S:g} s. This one ends "
                "without touching it; the other one goes on."
            )

    def _write(self) -> None:
        write_bytes_atomic(self._file, json.dumps({**asdict(self._owner), "renewals": self._renewals}).encode())

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S):
            with contextlib.suppress(
                DataError
            ):  # storage that fails for a while; the claim stays good until it is void
                if _read(self._file) is None:
                    self._taken = True
                    return
                self._renewals += 1
                self._write()

    def _begin(self) -> None:
        self._thread.start()

    def _end(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        _remove(self._file)


@contextlib.contextmanager
def exclusive(uri: str, say: Callable[[str], None] | None = None) -> Iterator[Lease]:
    """Holds the run or sweep at ``uri`` against other processes, of any machine that reaches its storage.

    Waits for a predecessor to end, and says so by ``say``. Raises DataError where one goes on for longer.
    """
    if is_local(uri):
        make_folder(local_path(uri))
    claim = Lease(join(uri, FOLDER, f"{uuid.uuid4().hex}.json"), _me())
    _acquire(claim, uri, say)
    claim._begin()
    try:
        yield claim
    finally:
        claim._end()


def make_folder(path: Path) -> None:
    """Makes a folder for results; DataError where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path} cannot be made: {error.strerror}. Choose another place with --storage or LTCORE_STORAGE."
        ) from error


def _acquire(claim: Lease, uri: str, say: Callable[[str], None] | None) -> None:
    started, told = time.monotonic(), False
    seen: dict[str, tuple[bytes, float]] = {}
    while True:
        others = _living(uri, claim._file, seen)
        if not others:
            claim._write()
            others = _living(uri, claim._file, seen)
            if not others:
                return
            _remove(claim._file)
        owner = next(iter(others.values()))
        if time.monotonic() - started > (PREDECESSOR_S if owner.is_here else VOID_S + PREDECESSOR_S):
            raise DataError(f"{uri} is in use by {owner}. Let it end, or give this one another --name.")
        if say is not None and not told:
            say(f"{uri} is in use by {owner}; waiting for it to end")
            told = True
        time.sleep(random.uniform(0.1, 0.3) if is_local(uri) else random.uniform(1, 3))


def _living(uri: str, own: str, seen: dict[str, tuple[bytes, float]]) -> dict[str, _Owner]:
    """Other processes' claims that are not void; void ones are removed. ``seen``: content and when it was first met."""
    found: dict[str, _Owner] = {}
    for name in list_files(join(uri, FOLDER)):
        file = join(uri, FOLDER, name)
        data = None if file == own or not name.endswith(".json") else _read(file)
        if data is None:
            continue
        if file not in seen or seen[file][0] != data:
            seen[file] = (data, time.monotonic())
        owner = _owner(data)
        if time.monotonic() - seen[file][1] > VOID_S or (owner is not None and owner.is_dead):
            _remove(file)
        else:
            found[file] = owner or _Owner("an unknown machine", "", 0, "", "an unknown time")
    return found


def _owner(data: bytes) -> _Owner | None:
    try:
        fields: dict[str, Any] = json.loads(data)
        return _Owner(**{key: value for key, value in fields.items() if key != "renewals"})
    except (ValueError, TypeError, AttributeError):  # someone's damage: void when its time is up
        return None


def _read(file: str) -> bytes | None:
    filesystem, path = open_fs(file)
    try:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}.") from error


def _remove(file: str) -> None:
    filesystem, path = open_fs(file)
    with contextlib.suppress(OSError):  # gone already; or void when its time is up
        filesystem.delete_file(path)


def _me() -> _Owner:
    pid = os.getpid()
    return _Owner(platform.node(), _machine(), pid, _born(pid), time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"  # containers share the boot, not their processes
    except OSError:  # no Linux
        return platform.node()


def _born(pid: int) -> str:
    """The start time of a process of this machine; '' where there is none, or (but on Linux) where it cannot be told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _alive_elsewhere(pid)
    state, *fields = text.rpartition(")")[2].split()
    return "" if state == "Z" else fields[18]  # a killed process whose parent has not looked yet


def _alive_elsewhere(pid: int) -> str:
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except OSError:
        return ""
    return "alive"
