"""What opens a store, and how everything is asked of it: through one policy of retries, and with one kind of error."""

from __future__ import annotations

import datetime
import functools
import os
import threading
from collections.abc import Callable
from concurrent import futures
from typing import TypeVar
from urllib.parse import urlsplit

from pyarrow import fs as pafs

from ltcore import fsspec_stores
from ltcore.errors import ConfigError, DataError, LtcoreError, StorageError
from ltcore.retry import retrying
from ltcore.uris import READ_ONLY, REMOTE_SCHEMES, check_uris, is_local, local_path, scheme_of

T = TypeVar("T")
ACCESS = "Check the name and the credentials"
SPACE = "Check permissions and free space"
LAND_S = 10.0
"""How long an interrupt waits for the object that is being written; another interrupt does not wait."""
CONNECT_S, ANSWER_S = 4.0, 5.0
"""How long S3's client waits for a connection, and then, up to twice as long, for a byte. An object is made by three requests,
which have to end while a lease that was fresh at their beginning is good (``lease.FRESH_FRACTION``)."""
ATTEMPTS = 3
"""How often S3's client tries a request by itself, so that a large file does not begin anew with each that fails."""


@functools.lru_cache(maxsize=16)
def _remote_fs(root: str, endpoint: str | None, attempts: int) -> pafs.FileSystem:
    """Returns the file system of ``scheme://bucket``.

    A given endpoint skips the region look-up, which only AWS answers. Google's client has no number of attempts; it would
    retry for a quarter of an hour by itself, without a word.
    """
    scheme, bucket = root.split("://")
    if scheme != "s3":
        return pafs.GcsFileSystem(retry_time_limit=datetime.timedelta(seconds=10))
    s3 = functools.partial(
        pafs.S3FileSystem,
        connect_timeout=CONNECT_S,
        request_timeout=ANSWER_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )
    if endpoint:
        address = urlsplit(endpoint)
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return s3(endpoint_override=address.netloc, scheme=address.scheme, region=region)
    return s3(region=pafs.resolve_s3_region(bucket))


def errors_of(uri: str) -> type[Exception]:
    """Returns what a store raises: the clients behind fsspec have errors of their own."""
    return Exception if scheme_of(uri) in READ_ONLY else OSError


def place_of(uri: str) -> str:
    """Returns what is disturbed as a whole where a call to ``uri`` is: its bucket or host, or the folder on a disk."""
    if is_local(uri):
        return str(local_path(uri).absolute().parent)
    scheme, _, path = uri.partition("://")
    return f"{scheme}://{path.split('/', 1)[0]}"


def asked(uri: str, what: str, advice: str, act: Callable[[], T]) -> T:
    """Returns what ``act`` does with ``uri``, after a disturbance where there is one.

    Raises StorageError, which says that it cannot be ``what``.
    """
    try:
        return retrying(place_of(uri), act)
    except LtcoreError:
        raise
    except errors_of(uri) as error:
        raise StorageError(f"{uri} cannot be {what}: {error}. {advice}.") from error


def open_fs(uri: str, *, attempts: int = ATTEMPTS) -> tuple[pafs.FileSystem, str]:
    """Returns the pyarrow file system of a URI and the path inside it.

    Takes plain paths, ``file://``, ``s3://`` (honors AWS_ENDPOINT_URL), ``gs://``, and for reading those of ``READ_ONLY``.
    Call it through ``asked``. A write that has a fence sets ``attempts`` of S3's client to one, since a second one would pass
    by the fence. Raises ConfigError for anything else.
    """
    variable = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    endpoint = os.environ.get(variable)
    scheme, _, path = uri.partition("://")
    try:
        if is_local(uri):
            check_uris(path=uri.partition(",")[0])
            return pafs.LocalFileSystem(), str(local_path(uri).absolute())
        check_uris(**{f"{scheme}://...": uri, variable: endpoint})
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    if scheme in READ_ONLY:
        return fsspec_stores.open_fs(uri)
    if scheme not in REMOTE_SCHEMES:
        only = ", ".join(f"{each}://" for each in READ_ONLY)
        raise ConfigError(
            f"{uri}: {scheme}:// is not supported. Use a path, file://, s3:// or gs://, or for data {only}."
        )
    root = place_of(uri)
    return asked(root, "opened", ACCESS, lambda: _remote_fs(root, endpoint, attempts)), path


def encoded(path: str) -> str | bytes:
    """Returns the path as pyarrow takes it: a name on a disk may be no text, and pyarrow knows only UTF-8."""
    return path if path.isascii() else os.fsencode(path)


class MissingError(DataError):
    """There is no file of that name."""


def present(act: Callable[[], T]) -> T:
    try:
        return act()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError("There is no such file.") from error


def undisturbed(act: Callable[[], None]) -> None:
    """Acts where no signal interrupts.

    An interrupt between the opening of an object's stream and its end would close the stream, which publishes what was
    written until then: nothing, in the place of what was there.
    """
    done: futures.Future[None] = futures.Future()

    def run() -> None:
        try:
            act()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    thread = threading.Thread(target=run, name="ltcore-write")  # no daemon: the process does not end before it has
    try:
        thread.start()  # within: it waits until the thread runs, which may have written by the time of an interrupt
        done.result()
    finally:  # after an interrupt: what is written next in its place must not be overtaken by it
        futures.wait([done], timeout=LAND_S)
