"""Every call to a store bears its bad days: errors, throttling, silence, answers cut short, and answers that are lost."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltcore import lease, retry, storage, stores
from ltcore.config.json_record import RecordFile
from ltcore.data.config import DataConfig
from ltcore.data.datasets.registry import recognize
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import DamagedFileError, DataError, StorageError, is_retryable
from ltcore.training import stored
from ltcore.training.sync import RunSync
from tests.data.web import served
from tests.flaky import Flaky, flaky
from tests.records import run_record
from tests.s3 import Bucket
from tests.tars import pictures, write_tar, write_tars

pytest_plugins = ["tests.s3"]
CONTENT = bytes(range(256)) * 8


@pytest.fixture
def proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    """A proxy before the server, which ltcore goes through and the tests' own client does not."""
    monkeypatch.delenv(retry.VARIABLE, raising=False)
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(retry, "_known", retry._Outages())
    with flaky(bucket.server.endpoint) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server


def downloaded(uri: str, folder: Path) -> bytes:
    storage.download(f"{uri}/a/x.bin", folder / "x.bin")
    return (folder / "x.bin").read_bytes()


def uploaded(uri: str, folder: Path) -> bytes:
    (folder / "y.bin").write_bytes(CONTENT)
    storage.upload(folder / "y.bin", f"{uri}/b/y.bin")
    return storage.read_bytes(f"{uri}/b/y.bin")


def written(uri: str, folder: Path) -> bytes:
    storage.write_bytes_atomic(f"{uri}/b/y.bin", CONTENT)
    return storage.read_bytes(f"{uri}/b/y.bin")


def removed(uri: str, folder: Path) -> list[str]:
    storage.remove_folder(f"{uri}/a", first="x.bin")
    return storage.list_files(f"{uri}/a")


CALLS: dict[str, tuple[Callable[[str, Path], object], object]] = {
    "read": (lambda uri, _: storage.read_bytes(f"{uri}/a/x.bin"), CONTENT),
    "open": (lambda uri, _: storage.open_file(f"{uri}/a/x.bin").read(), CONTENT),
    "download": (downloaded, CONTENT),
    "write": (written, CONTENT),
    "upload": (uploaded, CONTENT),
    "exists": (lambda uri, _: (storage.exists(f"{uri}/a/x.bin"), storage.exists(f"{uri}/a/z")), (True, False)),
    "list": (lambda uri, _: storage.list_files(uri), ["a/x.bin"]),
    "describe": (lambda uri, _: getattr(storage.describe_file(f"{uri}/a/x.bin"), "size", None), len(CONTENT)),
    "entries": (lambda uri, _: storage.entries(uri), {"a": False}),
    "json": (lambda uri, _: storage.read_json(f"{uri}/none.json"), None),
    "remove": (removed, []),
}


def test_the_fence_is_asked_before_every_attempt_of_the_client_to_write(
    bucket: Bucket, proxy: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    for number, act in enumerate((partial(storage.write_bytes_atomic, data=CONTENT), storage.remove), 1):
        bucket.put("x.bin", CONTENT)
        asked.clear()
        proxy.strike(2, "503", "^(PUT|POST|DELETE)")
        act(f"{bucket.uri}/x.bin", fence=lambda: asked.append(proxy.struck))
        assert asked == [0, 1, 2], number


def test_the_client_itself_survives_single_failures_of_a_read(
    bucket: Bucket, proxy: Flaky, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each began a large file anew, none would ever come to its end."""
    bucket.put("a/x.bin", CONTENT)
    monkeypatch.setenv(retry.VARIABLE, "0")
    for call in ("read", "list"):
        act, expected = CALLS[call]
        proxy.strike(stores.ATTEMPTS - 1, "503")
        assert act(bucket.uri, tmp_path) == expected and proxy.struck == stores.ATTEMPTS - 1
    assert caplog.text == ""


def test_an_attempt_without_an_answer_ends_before_a_lease_is_void(
    bucket: Bucket, proxy: Flaky, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object is created, filled and completed."""
    assert 3 * (stores.CONNECT_S + 2 * 5.0) < (1 - lease.FRESH_FRACTION) * lease.VOID_S
    monkeypatch.setenv(retry.VARIABLE, "0")
    began = time.monotonic()
    with proxy.disturbed("hangs"), pytest.raises(StorageError):
        storage.write_bytes_atomic(f"{bucket.uri}/x.bin", CONTENT)
    assert time.monotonic() - began < stores.CONNECT_S + 2 * stores.ANSWER_S


QUICK = [("read", "429"), ("write", "500"), ("list", "503"), ("json", "503")]
REST = [pytest.param(call, "503", marks=pytest.mark.slow) for call in CALLS if (call, "503") not in QUICK]


@pytest.mark.parametrize(("call", "fault"), [*QUICK, *REST])
def test_a_call_outlives_a_disturbance(
    bucket: Bucket, proxy: Flaky, tmp_path: Path, caplog: pytest.LogCaptureFixture, call: str, fault: str
) -> None:
    bucket.put("a/x.bin", CONTENT)
    act, expected = CALLS[call]
    proxy.strike(5, fault)
    assert act(bucket.uri, tmp_path) == expected
    assert proxy.struck == 5
    assert caplog.text.count(f"storage {bucket.uri} does not answer (") == 1
    assert caplog.text.count(f"storage {bucket.uri} answers again") == 1


@pytest.mark.parametrize("fault", [pytest.param("hangs", marks=pytest.mark.slow), "cut"])
def test_no_byte_is_missing_of_what_a_store_cuts_off(
    bucket: Bucket, proxy: Flaky, impatient: None, tmp_path: Path, fault: str
) -> None:
    bucket.put("a/x.bin", CONTENT)
    for act in (CALLS["read"][0], downloaded):
        proxy.strike(4, fault, "^GET .*x.bin")
        assert act(bucket.uri, tmp_path) == CONTENT and proxy.struck == 4


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_an_open_file_is_read_on_where_it_was(bucket: Bucket, proxy: Flaky, fault: str) -> None:
    bucket.put("a/x.bin", CONTENT)
    with storage.open_file(f"{bucket.uri}/a/x.bin") as file:
        found = file.read(100)
        proxy.strike(5, fault, "^GET")
        assert found + file.read(700) + file.read() == CONTENT and proxy.struck == 5
        proxy.strike(5, fault, "^GET")
        assert file.read_at(50, 1000) == CONTENT[1000:1050] and proxy.struck == 5
        assert file.size() == len(CONTENT) and file.read_at(10**9, len(CONTENT) - 3) == CONTENT[-3:]


def test_so_is_one_of_the_web(tmp_path: Path, proxy: Flaky) -> None:
    (tmp_path / "x.bin").write_bytes(CONTENT)
    with served(tmp_path) as address, flaky(address) as web, storage.open_file(f"{web.endpoint}/x.bin") as file:
        web.strike(5, "503")  # also where the file is opened again
        assert file.read(100) + file.read() == CONTENT and web.struck == 5


@pytest.mark.parametrize("other", [CONTENT + b"1", CONTENT[::-1]], ids=["of another size", "of the same size"])
def test_but_not_in_another_file_of_its_name(bucket: Bucket, proxy: Flaky, other: bytes) -> None:
    bucket.put("a/x.bin", CONTENT)
    with storage.open_file(f"{bucket.uri}/a/x.bin") as file:
        file.read(100)
        bucket.put("a/x.bin", other)
        proxy.strike(5, "503", "^GET")
        with pytest.raises(
            DataError, match=rf"x\.bin was replaced while it was read: it has {len(other)} bytes, and had"
        ):
            file.read(100)
        bucket.delete("a/x.bin")
        with pytest.raises(DataError, match=r"x\.bin does not exist"):
            file.read(100)


def test_an_open_file_that_stays_away_ends_in_one_sentence(
    bucket: Bucket, proxy: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retry.VARIABLE, "1")
    bucket.put("a/x.bin", CONTENT)
    with storage.open_file(f"{bucket.uri}/a/x.bin") as file, proxy.disturbed("503", "^GET"):
        with pytest.raises(
            StorageError, match=r"x\.bin cannot be read: .*; it stayed so for 1 s\. Check the name"
        ) as error:
            file.read(1)
        assert is_retryable(error.value)


def tars(folder: Path) -> None:
    write_tars(folder / "train-%05d.tar", pictures(12), maxcount=6)


def packed(folder: Path) -> None:
    samples = pictures(12)
    images = [(f"{sample['__key__']}.png", sample["png"]) for sample in samples]
    labels = [(f"{sample['__key__']}.cls", b"%d" % sample["cls"]) for sample in samples]
    members = [member for pair in zip(images, labels, strict=True) for member in pair]
    write_tar(folder / "train.tar.gz", members, mode="w:gz")


def parquet(folder: Path) -> None:
    rows = pictures(12)
    table = pa.table({"image": [row["png"] for row in rows], "label": [row["cls"] for row in rows]})
    pq.write_table(table, folder / "train.parquet", row_group_size=4)


@pytest.mark.parametrize(
    "make", [packed, *(pytest.param(make, marks=pytest.mark.slow, id=make.__name__) for make in (tars, parquet))]
)
def test_an_import_outlives_a_disturbance_in_the_middle_of_a_file(
    bucket: Bucket, proxy: Flaky, tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    def images(uri: str, strike: Callable[[], None]) -> dict[str, list[bytes]]:
        data = recognize(uri)(DataConfig(uri=uri, val_per_class=0))
        strike()
        splits = data.source().splits
        strike()
        return {split: [row.image for row in rows] for split, rows in splits.items()}

    make(tmp_path)
    for file in tmp_path.iterdir():
        bucket.put(f"set/{file.name}", file.read_bytes())
    content = r"^GET /[^?]*\.(tar|gz|parquet)\b"  # files are opened by HEAD
    far = images(f"{bucket.uri}/set", lambda: proxy.strike(8, "503", content))
    assert far == images(str(tmp_path), lambda: None) and len(far["train"]) == 10
    assert "does not answer (503)" in caplog.text


def test_so_does_a_check(bucket: Bucket, proxy: Flaky, tiny_shards: str, caplog: pytest.LogCaptureFixture) -> None:
    for file in Path(tiny_shards).iterdir():
        bucket.put(f"set/{file.name}", file.read_bytes())
    proxy.strike(60, "503", r"^GET .*\.tar")
    assert check_dataset(f"{bucket.uri}/set") == []
    assert proxy.struck == 60 and "does not answer (503)" in caplog.text


def test_half_of_a_record_that_is_called_the_whole_is_damage(bucket: Bucket, proxy: Flaky) -> None:
    """Nothing but the content tells it, which the client fills up with whatever its memory holds."""
    bucket.put("run.json", b'{"schema": 1, "status": "finished", "reason": ""}')
    with proxy.disturbed("short", "^GET .*run.json"), pytest.raises(DamagedFileError, match=r"run\.json is not JSON"):
        storage.read_json(f"{bucket.uri}/run.json")


def test_a_write_whose_answer_is_lost_is_made_again(bucket: Bucket, proxy: Flaky) -> None:
    proxy.strike(6, "lost", "^(PUT|POST)")
    storage.write_json(f"{bucket.uri}/run.json", {"a": 1})
    assert bucket.get("run.json") == b'{\n "a": 1\n}' and proxy.struck
    proxy.strike(6, "lost", "^(DELETE|POST)")
    storage.remove(f"{bucket.uri}/run.json")
    assert bucket.names() == []


def test_what_stays_away_ends_in_one_sentence(bucket: Bucket, proxy: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(retry.VARIABLE, "1")
    with proxy.disturbed("503"), pytest.raises(StorageError) as error:
        storage.write_bytes_atomic(f"{bucket.uri}/x", b"1")
    assert is_retryable(error.value)
    assert str(error.value).startswith(f"{bucket.uri}/x cannot be written: ")
    assert str(error.value).endswith("; it stayed so for 1 s. Check permissions and free space.")


@pytest.mark.parametrize("status", ["403", "400"])
def test_a_refusal_is_none(bucket: Bucket, proxy: Flaky, status: str, caplog: pytest.LogCaptureFixture) -> None:
    with proxy.disturbed(status), pytest.raises(DataError):
        storage.write_bytes_atomic(f"{bucket.uri}/x", b"1")
    with proxy.disturbed(status), pytest.raises(DataError):
        storage.list_files(bucket.uri)
    assert "waiting" not in caplog.text


class Opening:
    """A store in which something happens when an object is opened for writing."""

    def __init__(self, uri: str, event: Callable[[], None]) -> None:
        self.filesystem, self.path = storage.open_fs(uri)
        self.event = event

    def open_output_stream(self, path: str) -> Any:
        stream = self.filesystem.open_output_stream(path)
        self.event()
        return stream


def test_an_interrupted_write_leaves_the_whole_object(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object's stream that is closed early publishes what was written until then: nothing. And who writes next comes later."""
    uri = f"{bucket.uri}/sweep.json"
    storage.write_bytes_atomic(uri, b"before")

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

    store = Opening(uri, interrupted)
    monkeypatch.setattr(storage, "open_fs", lambda *_, **__: (store, store.path))
    for number in range(5):
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes_atomic(uri, b"after %d" % number)
        assert bucket.get("sweep.json") == b"after %d" % number


def test_nor_does_an_interrupt_while_the_thread_of_a_write_starts(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, uri = threading.Thread.start, f"{bucket.uri}/sweep.json"

    def interrupted(self: threading.Thread) -> None:
        start(self)
        if self.name == "ltcore-write":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    for number in range(5):
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes_atomic(uri, b"after %d" % number)
        assert bucket.get("sweep.json") == b"after %d" % number


Fence = Callable[[], None]
FENCED: dict[str, Callable[[str, Path, Fence], object]] = {
    "write": lambda uri, _, fence: storage.write_bytes_atomic(f"{uri}/run.json", b"old", fence),
    "upload": lambda uri, file, fence: storage.upload(file, f"{uri}/run.json", fence),
    "remove": lambda uri, _, fence: storage.remove(f"{uri}/run.json", fence),
    "remove a folder": lambda uri, _, fence: storage.remove_folder(uri, "run.json", fence),
    "make room": lambda uri, _, fence: stored.remove(uri, fence),
}


@pytest.mark.parametrize("change", FENCED)
def test_the_fence_is_asked_before_every_attempt(
    bucket: Bucket, proxy: Flaky, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    """A node that was cut off may try for minutes, in which another one takes over."""
    asked: list[bool] = []

    def fence() -> None:
        asked.append(bool(proxy.struck))
        if asked[-1]:
            raise DataError("taken over")

    monkeypatch.setenv(retry.VARIABLE, "1")
    owned = b'{"schema": 1, "status": "running"}'
    bucket.put("run/run.json", owned)
    (tmp_path / "old").write_bytes(b"old")
    with proxy.disturbed("503", "^(PUT|POST|DELETE)"), pytest.raises(DataError, match="taken over"):
        FENCED[change](f"{bucket.uri}/run", tmp_path / "old", fence)
    assert asked == [False, True] and bucket.get("run/run.json") == owned


def test_a_checkpoint_that_goes_is_fenced_too(
    bucket: Bucket, proxy: Flaky, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its name may be that of a successor's."""

    def check() -> None:
        if proxy.struck:
            raise DataError("taken over")

    monkeypatch.setenv(retry.VARIABLE, "1")
    sync = RunSync(f"{bucket.uri}/run", tmp_path)
    sync.fence, sync.replaces = check, True
    (tmp_path / "checkpoints" / "last-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "last-1" / "meta.json").write_text("{}")
    sync.push()
    shutil.rmtree(tmp_path / "checkpoints")
    with proxy.disturbed("503", "^DELETE"), pytest.raises(DataError, match="taken over"):
        sync.close()
    assert bucket.names() == ["run/checkpoints/last-1/meta.json"]


def test_a_record_is_fenced_too(bucket: Bucket, proxy: Flaky) -> None:
    """That of a run or a sweep, whose driver may have been cut off for longer than its claim holds."""

    def check() -> None:
        if proxy.struck:
            raise DataError("taken over")

    bucket.put("run.json", b"the new owner's")
    with proxy.disturbed("503"), pytest.raises(DataError, match="taken over"):
        RecordFile(bucket.uri, run_record(), check).write()
    assert bucket.get("run.json") == b"the new owner's"
