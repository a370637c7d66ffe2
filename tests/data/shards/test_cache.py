"""The node's raw shards: the cap holds at every moment, also for downloads under way, and no killed one leaves a file.

Against a store that a test can stop in the middle; ``test_s3.py`` goes through a server.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ltcore import retry, storage
from ltcore.data.shards import cache as shard_cache
from ltcore.data.shards.cache import cached_path, fetch
from ltcore.data.shards.manifest import Shard
from ltcore.errors import DataError

SIZE = 5000
CHUNK = 1000


class Far:
    """An object store of generated shards, read ``CHUNK`` bytes at a time; ``at_read`` is called before each."""

    def __init__(self) -> None:
        self.at_read: Callable[[str], None] = lambda name: None
        self.content: dict[str, bytes] = {}
        self.downloads: list[str] = []

    def open_input_file(self, name: str) -> io.BytesIO:
        far, self.downloads = self, [*self.downloads, name]

        class Stream(io.BytesIO):
            def read(self, size: int | None = None) -> bytes:
                far.at_read(name)
                return super().read(CHUNK)

            def size(self) -> int:
                return len(self.getbuffer())

        return Stream(self.content[name])


def shard_of(number: int, size: int = SIZE) -> tuple[Shard, bytes]:
    data = bytes([number]) * size
    digest = hashlib.sha256(data).hexdigest()
    return Shard(
        path=f"{number}.tar",
        count=1,
        first_index=0,
        bytes=size,
        sha256=digest,
        index_path="",
        index_sha256="",
    ), data


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    store = Far()
    monkeypatch.setenv(retry.VARIABLE, "0")
    monkeypatch.setattr(storage, "open_fs", lambda uri: (store, uri))
    yield store


def get(far: Far, number: int, cache_bytes: int) -> bytes:
    """Fetches a shard and reads it through its descriptor."""
    shard, far.content[f"s3://b/{number}"] = shard_of(number)
    descriptor = fetch(f"s3://b/{number}", shard, cache_bytes)
    try:
        return os.pread(descriptor, 2 * SIZE, 0)
    finally:
        os.close(descriptor)


def files(ending: str = "") -> list[Path]:
    folder = storage.cache_root() / "shards"
    return sorted(p for p in folder.iterdir() if p.suffix in (".tar", ".partial") and p.name.endswith(ending))


def taken() -> int:
    """Bytes of all files, finished or not."""
    total = 0
    for path in files():
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # finished, or evicted, meanwhile
            continue
    return total


@pytest.mark.parametrize("room", [1, 2, 3])
def test_parallel_downloads_keep_the_cap_at_every_moment(far: Far, room: int) -> None:
    cap, most = room * SIZE + 10, []
    far.at_read = lambda name: most.append(taken())
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda number: get(far, number, cap), range(12)))
    assert found == [shard_of(number)[1] for number in range(12)]
    assert 0 < max(most) <= cap
    assert len(files(".tar")) == room and not files(".partial")
    assert len(far.downloads) == 12


def test_a_download_waits_while_others_take_all_the_room(far: Far) -> None:
    going_on, order = threading.Event(), list[str]()

    def at_read(name: str) -> None:
        order.append(name)
        if name.endswith("/0"):
            assert going_on.wait(10)

    far.at_read = at_read
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(get, far, 0, SIZE)
        while not order:
            time.sleep(0.001)
        second = pool.submit(get, far, 1, SIZE)
        time.sleep(5 * shard_cache._WAIT_S)
        assert set(order) == {"s3://b/0"}, "no room yet"
        going_on.set()
        assert (first.result(), second.result()) == (shard_of(0)[1], shard_of(1)[1])


def test_least_recently_used_goes_first_and_open_files_stay_readable(far: Far) -> None:
    shard, _ = shard_of(0)
    get(far, 0, 2 * SIZE)
    get(far, 1, 2 * SIZE)
    for number, age in ((0, 200), (1, 100)):
        then = time.time() - age
        os.utime(cached_path(shard_of(number)[0]), (then, then))
    descriptor = fetch("s3://b/0", shard, 2 * SIZE)  # used again
    get(far, 2, 2 * SIZE)
    assert {path.name for path in files()} == {f"{shard_of(n)[0].sha256}.tar" for n in (0, 2)}
    get(far, 3, SIZE)
    assert os.pread(descriptor, 2 * SIZE, 0) == shard_of(0)[1]
    os.close(descriptor)
    assert far.downloads == [f"s3://b/{n}" for n in range(4)]


def test_one_shard_is_downloaded_once_by_all_who_want_it(far: Far) -> None:
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda _: get(far, 0, SIZE), range(12))) == {shard_of(0)[1]}
    assert far.downloads == ["s3://b/0"]


def test_more_than_the_cap_is_refused_at_once(far: Far) -> None:
    with pytest.raises(DataError, match=r"has 5000 bytes, more than data\.cache_bytes=4999\. Raise it"):
        get(far, 0, SIZE - 1)
    assert not files() and not far.downloads


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\x00" * (SIZE - 1), "4999 bytes with sha256"),
        (b"\x01" * SIZE, "5000 bytes with sha256"),
        (b"\x00" * 100 * SIZE, "more than 5000 bytes, expected 5000 bytes with"),
    ],
)
def test_what_differs_from_the_manifest_leaves_nothing_and_takes_no_more_room(
    far: Far, sent: bytes, words: str
) -> None:
    most: list[int] = []
    far.at_read = lambda name: most.append(taken())
    far.content["s3://b/0"] = sent
    with pytest.raises(DataError, match=rf"^s3://b/0: {words}"):
        fetch("s3://b/0", shard_of(0)[0], 10 * SIZE)
    assert max(most) <= SIZE and not files()


@pytest.mark.parametrize("failing", ["posix_fallocate", "read"])
def test_a_download_that_fails_leaves_nothing(far: Far, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "read":
        far.at_read = fail
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(DataError, match=r"cannot be (fetched|read).*No space left on device.*Check"):
        get(far, 0, SIZE)
    assert not files()


def test_a_download_waits_for_room_on_the_disk(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve, waited = os.posix_fallocate, list[int]()

    def full_twice(*args: int) -> None:
        if len(waited) < 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(*args)

    monkeypatch.setattr(os, "posix_fallocate", full_twice)
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retry, "_known", retry._Outages())
    monkeypatch.setitem(retry.listeners, "a test", lambda: waited.append(1))
    monkeypatch.setenv(retry.VARIABLE, "10")
    assert get(far, 0, SIZE) == shard_of(0)[1] and len(waited) == 2


def test_a_disk_smaller_than_the_cap_evicts_before_it_waits(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk holds two of three shards that the cap would allow."""
    reserve = os.posix_fallocate

    def small(file: int, start: int, size: int) -> None:
        if len(files()) > 2:  # with the one that is about to be downloaded
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(file, start, size)

    monkeypatch.setattr(os, "posix_fallocate", small)
    for number in (0, 1, 2):
        assert get(far, number, 3 * SIZE) == shard_of(number)[1]
        time.sleep(0.01)  # times of use differ
    assert len(files()) == 2 and len(far.downloads) == 3
    for number in (2, 1):
        get(far, number, 3 * SIZE)
    assert len(far.downloads) == 3, "the first one went"


KILLED = """
import sys, time
from ltcore import storage
from tests.data.shards.test_cache import Far, get
far = Far()
storage.open_fs = lambda uri: (far, uri)
def at_read(name):
    print("reading", flush=True)
    time.sleep(60)
far.at_read = at_read
get(far, 0, 10**6)
"""


def test_what_a_killed_process_left_goes_and_what_a_running_one_writes_stays(far: Far) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "reading\n"
    (partial,) = files(".partial")
    assert partial.stat().st_size == SIZE, "its room is taken from the start"
    get(far, 1, 2 * SIZE)
    get(far, 2, 2 * SIZE)  # one of the two shards that fit is the one under way
    assert files(".partial") == [partial] and len(files(".tar")) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    get(far, 3, 2 * SIZE)
    assert not files(".partial") and len(files(".tar")) == 2
    assert get(far, 0, 2 * SIZE) == shard_of(0)[1]


def test_a_copy_of_another_size_is_replaced(far: Far) -> None:
    path = cached_path(shard_of(0)[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"short")
    assert get(far, 0, SIZE) == shard_of(0)[1]
    assert path.stat().st_size == SIZE
