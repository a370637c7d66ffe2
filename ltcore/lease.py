"""Leases: only one process at a time works on a run or sweep, or uploads a data set, since a second one would undo its work.

A process writes a claim below ``<place>/.lease/`` and then lists all claims. Two claims never miss each other, because
each is written before its owner lists, and both disks and object stores list what was written. This needs no
conditional write, which pyarrow's stores do not offer. A single claim holds; one that meets another is withdrawn. Its
owner renews it; a claim is void once it is no longer renewed, or once its process has ended on this machine or was this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
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

from ltcore.errors import DataError, RemovedError, StorageError
from ltcore.limits import MAX_CLAIM_BYTES, load_json
from ltcore.retry import retrying, still_here
from ltcore.storage import (
    TooLargeError,
    exists,
    find_bytes,
    is_local,
    join,
    list_files,
    local_path,
    remove,
    remove_unfinished,
    write_bytes_atomic,
)

FOLDER = ".lease"
"""Name of the folder of claims, which is part of no run, sweep or data set."""
RENEW_S = 15.0
VOID_S = 60.0
"""Age at which a claim that is not renewed is void: its process is gone."""
FRESH_FRACTION = 4 / 15
"""Of that age, up to which a claim that was seen is not looked for again before a write: a little more than ``RENEW_S``."""
PREDECESSOR_S = 75.0
"""How long a process whose work was handed on may take to end. Longer than ``VOID_S``: it may live on, without the place and
without having reached the storage to say so."""


@dataclass(frozen=True)
class _Owner:
    """The owner of a claim, with what a process on the same machine needs to tell whether it still lives."""

    host: str
    machine: str
    """Boot id and process namespace, within which a pid identifies one process."""
    pid: int
    born: str
    """Start time of that process as the kernel reports it, since pids are reused."""
    since: str

    @property
    def is_here(self) -> bool:
        return self.machine == _machine()

    @property
    def is_me(self) -> bool:
        return self == dataclasses.replace(_me(), since=self.since)

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
        self._taken = self._removed = False
        self._seen = _clock()
        """When the claim was known to be there."""
        self.void: set[str] = set()
        """Names of others' claims that were void when this one was made."""
        self._thread = threading.Thread(target=self._keep, daemon=True, name="ltcore-lease")

    def check(self, *, look: bool = True) -> None:
        """Raises DataError where the place is not this process's any more.

        Another process took over because this one did not renew its claim in time, or, as a RemovedError, somebody removed the
        place. Call it before every write to the place. A claim that was seen lately is good against other processes, which
        wait for ``VOID_S`` after its last renewal. A process that stood still, or was cut off, looks before it writes
        anything; without ``look`` it says only what is known.
        """
        if look and not self._is_lost and (_clock() - self._seen > FRESH_FRACTION * VOID_S or not exists(self._file)):
            self._look()
        if self._removed:
            raise RemovedError(
                f"{self._place}, or {FOLDER} in it, was removed while this process worked there: what was removed is lost. This "
                "process ends without writing anything anew; the same command begins anew, or goes on from what is left."
            )
        if self._taken:
            raise DataError(
                f"{self._place} was taken over by another process while this one was suspended for over {VOID_S:g} s. This "
                "process ends without touching it; the other one continues."
            )

    @property
    def _place(self) -> str:
        return self._file.partition(f"/{FOLDER}/")[0]

    @property
    def _is_lost(self) -> bool:
        return self._taken or self._removed

    def _look(self) -> None:
        """Learns whether the place is still this process's: its claim is there, and no other.

        A claim alone says nothing: one that stood still in the middle of a renewal writes its own anew. Nor does its absence:
        whoever took over a void one may have ended since, but nobody else removes one that is good.
        """
        now = _clock()  # before the answer, which may be long on its way
        folder, _, own = self._file.rpartition("/")
        there = {*filter(_is_claim, list_files(folder))}
        for name in there - {own}:
            if name in self.void or _has_ended(f"{folder}/{name}"):
                _remove(f"{folder}/{name}")  # a renewal that was long on its way
            else:
                self._taken = True
        if own not in there and not self._taken:
            self._removed = now - self._seen <= VOID_S or not exists(self._place)
            self._taken = not self._removed
        if not self._is_lost:
            self._seen = now

    def _write(self, fence: Callable[[], None] = lambda: None) -> None:
        content = json.dumps({**asdict(self._owner), "renewals": self._renewals}).encode()
        write_bytes_atomic(self._file, content, fence)

    def _refuse_late(self) -> None:
        """Raises StorageError where a renewal may meet the claim of a successor by now, or bring back a place that is removed."""
        if (
            self._ended.is_set()
            or self._is_lost
            or _clock() - self._seen > FRESH_FRACTION * VOID_S
            or not exists(self._file)
        ):
            raise StorageError(f"{self._file} was not renewed in time.")

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S):
            with contextlib.suppress(Exception):  # whatever fails for a while; the claim stays good until it is void
                self._look()
                if self._is_lost:
                    return
                self._renewals += 1
                self._write(self._refuse_late)

    def _begin(self) -> None:
        self._seen = _clock()
        self._thread.start()

    def _end(self) -> None:
        self._ended.set()
        if self._thread.is_alive() and not self._is_lost:
            self._thread.join(RENEW_S)  # longer, where the storage does not answer
        _remove(self._file)


_held: dict[str, Lease] = {}
"""What this process holds, by place."""
_claims: set[str] = set()
"""Files of the claims that this process holds or is about to. Any other of its claims is one that it gave up while the
storage did not answer."""


def check_held(uri: str) -> None:
    """Raises DataError where this process held the place and it was taken over or removed. Call it before a record is written."""
    if uri in _held:
        _held[uri].check()


def is_lost(uri: str) -> bool:
    """Tells whether this process knows that it held the place and lost it; it looks as often as it renews its claim."""
    return uri in _held and _held[uri]._is_lost


@contextlib.contextmanager
def exclusive(uri: str, say: Callable[[str], None] | None = None, *, patient: bool = False) -> Iterator[Lease]:
    """Holds the run, sweep or data set at ``uri`` against other processes, on any machine that reaches its storage.

    Waits for a predecessor to end, and reports that to ``say``. Raises DataError where it continues for too long; a
    ``patient`` process waits for as long as the other one works.
    """
    if is_local(uri):
        make_folder(local_path(uri))
    claim = Lease(join(uri, FOLDER, f"{uuid.uuid4().hex}.json"), _me())
    _claims.add(claim._file)
    try:
        _acquire(claim, uri, say, patient)
        claim._begin()
        _held[uri] = claim
        try:
            if is_local(uri):
                remove_unfinished(local_path(uri))
            yield claim
        finally:
            del _held[uri]
            claim._end()
    finally:
        _claims.discard(claim._file)


def remove_ended(uri: str) -> None:
    """Removes claims of processes that have ended, here, on runs of the sweep at ``uri``, which this process holds.

    One that is killed right after its run has ended leaves a claim where nobody comes again.
    """
    with contextlib.suppress(DataError):  # they are void anyway
        for name in list_files(uri):
            folder, _, file = name.rpartition("/")
            if folder.endswith(f"/{FOLDER}") and _is_claim(file) and _has_ended(claim := join(uri, name)):
                _remove(claim)


def make_folder(path: Path) -> None:
    """Creates a folder for results. Raises DataError where that is not possible."""
    try:
        retrying(str(path.parent), lambda: path.mkdir(parents=True, exist_ok=True))
    except OSError as error:
        raise DataError(
            f"{path} cannot be created: {error.strerror or error}. Choose another place with --storage or LTCORE_STORAGE."
        ) from error


def _acquire(claim: Lease, uri: str, say: Callable[[str], None] | None, patient: bool) -> None:
    started, told = time.monotonic(), False
    seen: dict[str, tuple[bytes, float]] = {}
    while True:
        others = _living(uri, claim, seen)
        if not others:
            claim._write()
            others = _living(uri, claim, seen)
            if not others:
                return
            _remove(claim._file)
        owner = next(iter(others.values()))
        most_s = math.inf if patient else PREDECESSOR_S if owner.is_here else VOID_S + PREDECESSOR_S
        if time.monotonic() - started > most_s:
            raise DataError(f"{uri} is in use by {owner}. Let it end, or give this one another --name.")
        if say is not None and not told:
            say(f"{uri} is in use by {owner}; waiting for it to end")
            told = True
        still_here()
        time.sleep(random.uniform(0.1, 0.3) if is_local(uri) else random.uniform(1, 3))


def _living(uri: str, claim: Lease, seen: dict[str, tuple[bytes, float]]) -> dict[str, _Owner]:
    """Returns other processes' claims that are not void, and removes void ones, which ``claim`` notes.

    ``seen`` keeps the content of each claim and when it was first seen.
    """
    found: dict[str, _Owner] = {}
    for name in list_files(join(uri, FOLDER)):
        file = join(uri, FOLDER, name)
        data = _find(file) if _is_claim(name) and file != claim._file else None
        if data is None:
            continue
        if file not in seen or seen[file][0] != data:
            seen[file] = (data, time.monotonic())
        owner = _owner(data)
        if (owner is not None and _is_over(owner, file)) or time.monotonic() - seen[file][1] > VOID_S:
            claim.void.add(name)
            _remove(file)
        else:
            found[file] = owner or _Owner("an unknown machine", "", 0, "", "an unknown time")
    return found


def _is_claim(name: str) -> bool:
    """Tells whether a file is a claim, not half of one that is being written."""
    return name.endswith(".json") and not name.startswith(".")


def _has_ended(file: str) -> bool:
    """Tells whether a claim is none any more: it is gone, or its owner has ended or given it up, here."""
    data = _find(file)
    owner = None if data is None else _owner(data)
    return data is None or (owner is not None and _is_over(owner, file))


def _find(file: str) -> bytes | None:
    """Reads a claim; None where it is gone. Raises DataError where it is larger than any."""
    try:
        return find_bytes(file, MAX_CLAIM_BYTES)
    except TooLargeError as error:
        raise DataError(f"{error} It is no claim of a process: remove it.") from None


def _is_over(owner: _Owner, file: str) -> bool:
    return owner.is_dead or (owner.is_me and file not in _claims)


def _owner(data: bytes) -> _Owner | None:
    try:
        fields: dict[str, Any] = load_json(data)
        return _Owner(**{key: value for key, value in fields.items() if key != "renewals"})
    except (ValueError, TypeError, AttributeError):  # damaged; becomes void like any claim
        return None


def _remove(file: str) -> None:
    with contextlib.suppress(StorageError):  # otherwise it becomes void
        remove(file)


def _clock() -> float:
    """Returns seconds that also pass while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _me() -> _Owner:
    pid = os.getpid()
    return _Owner(platform.node(), _machine(), pid, _born(pid), time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"  # containers share the boot id, but not processes
    except OSError:  # not Linux
        return platform.node()


def _born(pid: int) -> str:
    """Returns the start time of a process of this machine; '' where there is none.

    Where the system is not Linux, it is 'alive' for a process that exists.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _alive_elsewhere(pid)
    state, *fields = text.rpartition(")")[2].split()
    return "" if state == "Z" else fields[18]  # "Z": ended, but not yet collected by its parent


def _alive_elsewhere(pid: int) -> str:
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except OSError:
        return ""
    return "alive"
