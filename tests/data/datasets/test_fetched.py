"""Files that are fetched whole: no server and no store decides how much of a disk they take."""

from __future__ import annotations

import shutil
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ltcore import retry, storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import prepare
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import DataError, StorageError
from ltcore.limits import MAX_FETCHED_BYTES
from tests.data.small import tiny_png
from tests.data.web import served
from tests.faults import full_disk

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket

pytest_plugins = ["tests.s3"]


@contextmanager
def endless(*told: int | None) -> Iterator[tuple[str, list[str]]]:
    """A server of one file without end, of which it tells one of these sizes (None: none) after the other, the last for ever.

    Yields its address and what was asked.
    """
    asked: list[str] = []

    class Endless(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

        def do_HEAD(self) -> None:
            asked.append("HEAD")
            self.send_response(200)
            size = told[min(asked.count("HEAD"), len(told)) - 1]
            if size is not None:
                self.send_header("Content-Length", str(size))
            self.end_headers()

        def do_GET(self) -> None:
            asked.append("GET")
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(4096):
                    self.wfile.write(bytes(2**16))
            except OSError:
                asked.append("left")

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/photos.zip", asked
        finally:
            server.shutdown()
            thread.join()


def left_behind() -> list[Path]:
    return [path for path in storage.cache_root().rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_what_says_that_it_is_larger_than_any_is_not_begun() -> None:
    with endless(2**43) as (uri, asked):
        words = rf"photos\.zip has {2**43} bytes, expected at most {MAX_FETCHED_BYTES}\. Fetch it yourself, and name the copy\."
        with pytest.raises(DataError, match=words):
            prepare(DataConfig(uri=uri))
        assert set(asked) == {"HEAD"} and not left_behind()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (
            (None,),
            r"more than 1048576 bytes, and its server does not tell its size, and [\d.]+ GiB are free in /",
        ),
        ((100_000, None), r"more than 100000 bytes, and its server tells no more"),
    ],
)
def test_what_says_nothing_or_another_size_later_is_ended_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: tuple[int | None, ...], words: str
) -> None:
    monkeypatch.setattr(storage, "MAX_FETCHED_BYTES", 2**20)
    monkeypatch.setattr(storage, "COPY_BYTES", 2**16)
    with endless(*told) as (uri, asked):
        with pytest.raises(DataError, match=rf"photos\.zip has {words}") as found:
            storage.download(uri, tmp_path / "x.zip")
        assert "GET" in asked and not (tmp_path / "x.zip").exists() and "\n" not in str(found.value)


def test_of_what_sends_more_than_it_says_no_more_is_taken(tmp_path: Path) -> None:
    with endless(100_000) as (uri, asked):
        storage.download(uri, tmp_path / "x.zip")
        assert (tmp_path / "x.zip").stat().st_size == 100_000 and "GET" in asked


def test_of_an_unknown_size_half_of_what_is_free_is_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 2**21 + 1)
    monkeypatch.setattr(storage, "COPY_BYTES", 2**16)
    with endless(None) as (uri, _), pytest.raises(DataError, match=r"more than 1048576 bytes, .* 2\.0 MiB are free in"):
        storage.download(uri, tmp_path / "x.zip")


def photos(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for n in range(12):
            archive.writestr(f"{('ant', 'bee')[n % 2]}/{n}.png", tiny_png(n))
        archive.writestr("notes.txt", bytes(2**20))
    return folder / "photos.zip"


def test_a_store_is_held_to_it_too(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photos(tmp_path).read_bytes()
    bucket.put("photos.zip", data)
    monkeypatch.setattr(storage, "MAX_FETCHED_BYTES", len(data) - 1)
    words = rf"photos\.zip has {len(data)} bytes, expected at most {len(data) - 1}\."
    with pytest.raises(DataError, match=words):
        prepare(DataConfig(uri=f"{bucket.uri}/photos.zip"))
    assert not bucket.reads("photos.zip") and not left_behind()
    monkeypatch.setattr(storage, "MAX_FETCHED_BYTES", len(data))
    assert read_manifest(prepare(DataConfig(uri=f"{bucket.uri}/photos.zip"))).classes == ("ant", "bee")


def test_what_does_not_fit_is_not_begun_and_the_sentence_says_what_is_needed_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web").mkdir()
    photos(tmp_path / "web")
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 2**19)
    with served(tmp_path / "web") as address:
        words = r"downloads/zip-.*cannot be written: .*photos\.zip needs 1\.0 MiB, and 0\.5 MiB are free\. Check permissions"
        with pytest.raises(StorageError, match=words) as found:
            prepare(DataConfig(uri=f"{address}/photos.zip"))
    assert "\n" not in str(found.value) and not left_behind()


def test_room_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """On a disk that is too small until something on it is removed."""
    (tmp_path / "web").mkdir()
    file = photos(tmp_path / "web")
    monkeypatch.setenv(retry.VARIABLE, "60")
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.05)
    with full_disk(tmp_path / "disk", 2 * 2**20) as disk, served(tmp_path / "web") as address:
        (ballast := disk / "ballast").write_bytes(bytes(3 * 2**19))
        monkeypatch.setattr(storage, "free_bytes", lambda _: 0 if ballast.exists() else shutil.disk_usage(disk).free)
        threading.Timer(1, ballast.unlink).start()
        storage.download(f"{address}/photos.zip", disk / "x.zip")
        assert (disk / "x.zip").read_bytes() == file.read_bytes()
    assert "needs 1.0 MiB, and 0.0 MiB are free): waiting, up to 1 min" in caplog.text


def test_so_is_room_that_others_take_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "web").mkdir()
    file = photos(tmp_path / "web")
    monkeypatch.setenv(retry.VARIABLE, "60")
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(storage, "free_bytes", lambda _: 2**30)
    heard: list[bool] = []
    with full_disk(tmp_path / "disk", 2 * 2**20) as disk, served(tmp_path / "web") as address:
        (ballast := disk / "ballast").write_bytes(bytes(3 * 2**19))

        def free(*_: Any) -> None:
            heard.append((disk / "x.zip").exists())
            ballast.unlink(missing_ok=True)

        monkeypatch.setitem(retry.listeners, "a test", free)
        storage.download(f"{address}/photos.zip", disk / "x.zip")
        assert (disk / "x.zip").read_bytes() == file.read_bytes()
    assert heard == [False], "what was half there is gone while it waits"
    assert "disk cannot be used (No space left on device): waiting, up to 1 min" in caplog.text
    assert "does not answer" not in caplog.text
