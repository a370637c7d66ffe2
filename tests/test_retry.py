"""One policy: what passes is waited for, for a stated time and said once; what is refused is not."""

from __future__ import annotations

import errno
import logging
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import aiohttp
import pytest
import requests

from ltcore import retry
from ltcore.errors import CheckpointError, DataError
from ltcore.retry import Postponed, ShortError, is_disturbed, is_passing, retrying


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(retry.VARIABLE, raising=False)
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.002)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(retry, "_known", retry._Outages())
    yield


class Disturbed:
    """Fails some times with ``error``, then answers."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "well"


class HttpError(Exception):
    """As clients behind fsspec raise it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def named(module: str, name: str, base: Exception | None = None) -> Exception:
    """An error as a package raises it that is not installed here."""
    error: Exception = type(name, (type(base) if base else Exception,), {"__module__": module})()
    return error


KEY = aiohttp.client_reqrep.ConnectionKey("example.org", 443, True, True, None, None, None)
AWS = "When getting information for key 'x' in bucket 'b': AWS Error {} during HeadObject operation: {}"


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(AWS.format("INTERNAL_FAILURE", "No response body.")), True),
        (OSError(AWS.format("SLOW_DOWN", "Please reduce your request rate.")), True),
        (OSError(AWS.format("SERVICE_UNAVAILABLE", "")), True),
        (OSError(AWS.format("NETWORK_CONNECTION", "curlCode: 7, Couldn't connect to server")), True),
        (OSError(AWS.format("UNKNOWN (HTTP status 503)", "")), True),
        (OSError(AWS.format("UNKNOWN (HTTP status 429)", "")), True),
        (OSError(AWS.format("UNKNOWN (HTTP status 400)", "")), False),
        (OSError(AWS.format("ACCESS_DENIED", "No response body.")), False),
        (OSError(AWS.format("NO_SUCH_BUCKET", "")), False),
        (OSError(AWS.format("INVALID_ACCESS_KEY_ID", "")), False),
        (OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)"), True),
        (OSError("google::cloud::Status(PERMISSION_DENIED: no)"), False),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.EROFS, "Read-only file system"), False),
        (OSError(errno.EFBIG, "File too large"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (ShortError("3 bytes came of 6"), True),
        (HttpError(503), True),
        (HttpError(404), False),
        *((HttpError(status), False) for status in (501, 505, 507)),  # of what the store cannot do, or has no room for
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ClientPayloadError("Response payload is not completed"), True),
        (aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(socket.EAI_AGAIN, "try again")), True),
        (aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError()), False),
        (aiohttp.InvalidURL("https:///"), False),
        (requests.ConnectionError("Remote end closed connection"), True),
        (requests.exceptions.ChunkedEncodingError(), True),
        (requests.exceptions.SSLError(), False),
        (named("httpx", "ReadError", named("httpx", "NetworkError")), True),
        (named("httpx", "UnsupportedProtocol", named("httpx", "TransportError")), False),
        (named("azure.core.exceptions", "ServiceResponseError"), True),
        (ValueError("AWS Error SLOW_DOWN"), False),
        (DataError("no plain file"), False),
    ],
)
def test_which_errors_are_waited_for(error: Exception, passes: bool) -> None:
    assert is_passing(error) is passes
    act = Disturbed(2, error)
    if passes:
        assert retrying("s3://b", act) == "well" and act.calls == 3
    else:
        with pytest.raises(type(error)) as raised:
            retrying("s3://b", act)
        assert raised.value is error and act.calls == 1


def test_a_disturbance_is_said_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    act = Disturbed(4, OSError(AWS.format("UNKNOWN (HTTP status 503)", "")))
    assert retrying("s3://b", act) == "well"
    assert [record.getMessage().partition(", after")[0] for record in caplog.records] == [
        "storage s3://b does not answer (503): waiting, up to 10 min",
        "storage s3://b answers again",
    ]
    assert not is_disturbed("s3://b")


def test_it_ends_after_the_stated_time_and_what_follows_does_not_wait_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(retry.VARIABLE, "0.3")
    error = OSError(errno.ESTALE, "Stale file handle")
    began = time.monotonic()
    with pytest.raises(OSError, match=r"Stale file handle; it stayed so for") as raised:
        retrying("/mnt", Disturbed(10**6, error))
    assert 0.25 < time.monotonic() - began < 1.5 and raised.value.errno == errno.ESTALE
    act = Disturbed(10**6, error)
    with pytest.raises(OSError, match="Stale"):
        retrying("/mnt", act)
    assert act.calls == 1 and is_disturbed("/mnt") and not is_disturbed("/elsewhere")
    monkeypatch.setattr(retry, "FORGOTTEN_S", 0.0)
    assert retrying("/mnt", Disturbed(3, error)) == "well", "a later disturbance is another one"


def test_zero_never_waits(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(retry.VARIABLE, "0")
    act = Disturbed(1, TimeoutError("no answer"))
    with pytest.raises(OSError, match=r"^no answer$"):
        retrying("s3://b", act)
    assert act.calls == 1 and caplog.text == ""


def test_waiting_moves_no_generator_and_whoever_listens_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    monkeypatch.setitem(retry.listeners, "a test", lambda: heard.append(1))
    state = random.getstate()
    retrying("s3://b", Disturbed(3, TimeoutError()))
    assert random.getstate() == state and len(heard) == 3


def full_disk(times: int) -> Callable[[], None]:
    act = Disturbed(times, OSError(errno.ENOSPC, "No space left on device"))

    def save() -> None:
        try:
            act()
        except OSError as error:
            raise CheckpointError("it could not be written") from error

    return save


def test_what_can_wait_is_left_out_for_the_stated_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    later, save = Postponed("/runs/a"), full_disk(2)
    assert [later.attempt(save, "the checkpoint of step 7") for _ in range(4)] == [False, False, True, True]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said[0] == (
        "storage /runs/a cannot be used (No space left on device): the checkpoint of step 7 is left out for now; training "
        "goes on, for up to 10 min"
    )
    assert said[1].startswith("storage /runs/a can be used again, after") and len(said) == 2
    monkeypatch.setenv(retry.VARIABLE, "0.05")
    save = full_disk(10**6)
    assert not later.attempt(save, "x")
    time.sleep(0.06)
    with pytest.raises(CheckpointError):
        later.attempt(save, "x")


def test_inside_of_it_nothing_waits() -> None:
    later, act = Postponed("/runs/a"), Disturbed(10**6, OSError(errno.ENOSPC, "No space left on device"))
    assert not later.attempt(lambda: retrying("/runs/a", act) and None, "x")
    assert act.calls == 1


def test_other_errors_pass_through_at_once() -> None:
    with pytest.raises(KeyError):
        Postponed("/runs/a").attempt(lambda: {}["x"], "x")


def test_long_work_that_went_well_uses_up_no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills after half an hour of a download is waited for as one that was full from the start."""
    monkeypatch.setenv(retry.VARIABLE, "0.5")
    calls = []

    def fetch() -> str:
        calls.append(time.sleep(0.6) if not calls else None)
        if len(calls) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return "well"

    assert retrying("/disk", fetch) == "well"
    assert len(calls) == 3
