"""The one retry policy for every call to a place that holds files: wait, with growing pauses, while it is disturbed.

A store that throttles or does not answer, a network file system that lost its server, and a disk that is full are usually
well again after a while. Refusals (no permission, no such bucket, a read-only disk) are not, and are raised at once. The
clients below try a call up to three times within seconds, but a write that may have to give way to another process.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ltcore.errors import LtcoreError
from ltcore.text import duration

_LOG = logging.getLogger("ltcore.storage")
VARIABLE = "LTCORE_STORAGE_PATIENCE_S"
"""Environment variable with another patience, in seconds; 0 never waits. Workers on a cluster receive it."""
PATIENCE_S = 600.0
"""How long a disturbance may last before the error of a call counts."""
MOST_PATIENCE_S = 7 * 86400.0
"""The most that the variable sets, so that everything that waits for longer has a number."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
FORGOTTEN_S = 120.0
"""Age of the last failure at which the next one is another disturbance: longer than any pause and the call after it."""

_STATUSES = {408, 425, 429, *range(500, 600)} - {501, 505, 507}
_NUMBERS = {
    errno.EAGAIN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EDQUOT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOSPC,
    errno.ENOTCONN,
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_LOST = {
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "azure.core.exceptions.ServiceRequestError",
    "azure.core.exceptions.ServiceResponseError",
    "httpx.NetworkError",
    "httpx.RemoteProtocolError",
    "httpx.TimeoutException",
    "requests.exceptions.ChunkedEncodingError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
}
_REFUSED = {"aiohttp.client_exceptions.ClientSSLError", "requests.exceptions.SSLError"}
"""Errors of the clients behind fsspec, by name: none of them need be installed."""
_SAID = re.compile(
    r"HTTP status (?P<status>\d{3})"
    r"|AWS Error (?P<aws>INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTLING|SLOW_DOWN|NETWORK_CONNECTION|REQUEST_TIMEOUT)"
    r"|(?P<curl>curlCode: \d+, [^;)\]]+)"
    r"|Status\((?P<google>UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|INTERNAL|UNKNOWN)\b"
)
"""How pyarrow's clients, whose errors are one text, say what a store answered."""
_jitter = random.Random()
"""Of its own: waiting must not move the generator that others seed."""

T = TypeVar("T")


class ShortError(OSError):
    """Fewer bytes arrived than the place had promised."""


@dataclass(frozen=True)
class _Outage:
    began: float
    failed: float
    """When it was felt last."""


@dataclass(frozen=True)
class _Outages:
    """The disturbances that this process feels, by place."""

    at: dict[str, _Outage] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_known = _Outages()
listeners: dict[str, Callable[[], None]] = {}
"""Called by ``still_here``; each under a name, of which there is one."""
_here = threading.local()


def still_here() -> None:
    """Tells all listeners that this process waits, or works at something long, so that its silence is not taken for a hang."""
    for listener in list(listeners.values()):
        listener()


def patience_s() -> float:
    """Returns how long a disturbance may last, in seconds."""
    try:
        given = float(os.environ.get(VARIABLE, ""))
    except ValueError:
        return PATIENCE_S
    return min(max(0.0, given), MOST_PATIENCE_S) if given == given else PATIENCE_S


def is_passing(error: BaseException) -> bool:
    """Tells whether the place may answer well a little later."""
    if isinstance(error, ShortError | TimeoutError | ConnectionError) or _is_lost_connection(error):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NUMBERS
    return _status(error) in _STATUSES or (isinstance(error, OSError) and bool(_passing_words(error)))


def _is_lost_connection(error: BaseException) -> bool:
    """Tells whether it is what a client behind fsspec raises where the store does not answer, or not to the end."""
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return bool(kinds & _LOST) and not kinds & _REFUSED


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status that an error of a client behind fsspec carries."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code"):
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    return None


def _passing_words(error: OSError) -> str:
    """Returns what the store answered, in its words, where that may pass; else ''."""
    found = _SAID.search(str(error))
    if found is None or (found["status"] and int(found["status"]) not in _STATUSES):
        return ""
    return next(filter(None, found.groups()))


def retrying(place: str, act: Callable[[], T]) -> T:
    """Returns what ``act`` returns, and repeats it while the place is disturbed.

    Repeating must do no harm. Raises the error of ``act`` where it is a refusal, or where the disturbance has lasted
    for ``patience_s``; then the message says so. ``place`` is what may be disturbed as a whole: a bucket, a folder.
    """
    began = math.inf
    for attempt in itertools.count():
        try:
            result = act()
        except Exception as error:
            began = min(began, time.monotonic())  # a long act that worked until now has used up no patience
            cause = passing_cause(error)
            if cause is None or getattr(_here, "at_once", False):
                if attempt:  # a refusal is an answer
                    well_again(place)
                raise
            left_s = _felt(place, cause, began)
            if left_s <= 0:
                if isinstance(error, LtcoreError):  # which has its own words
                    raise
                raise _given_up(error) from error
            still_here()
            pause_s = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S) * _jitter.uniform(0.5, 1.0)
            time.sleep(min(pause_s, left_s))
        else:
            if attempt:
                well_again(place)
            return result
    raise AssertionError("the loop has no end of its own")


def retrying_disk(place: str, act: Callable[[], T]) -> T:
    """Acts as ``retrying`` does, where what is written to a disk is read elsewhere: errors of ours pass as they are.

    Those are of other places, which have been waited for where that is of use.
    """

    def attempt() -> T | LtcoreError:
        try:
            return act()
        except LtcoreError as error:
            return error

    found = retrying(place, attempt)
    if isinstance(found, LtcoreError):
        raise found
    return found


def _felt(place: str, error: Exception, began: float) -> float:
    """Notes a disturbance, says so where it is a new one, and returns for how long to wait yet.

    A disturbance of the whole place counts from its beginning, whoever felt it: what ends a run does not wait anew.
    """
    now, patience = time.monotonic(), patience_s()
    with _known.lock:
        before = _known.at.get(place)
        new = before is None or now - before.failed > FORGOTTEN_S
        outage = _Outage(now if before is None or new else before.began, now)
        _known.at[place] = outage
    left_s = patience - (now - min(began, outage.began))
    if new and left_s > 0:
        does = "does not answer" if "://" in place else "cannot be used"
        _LOG.warning("storage %s %s (%s): waiting, up to %s", place, does, _reason(error), duration(patience))
    return left_s


def _reason(error: Exception) -> str:
    words = _passing_words(error) if isinstance(error, OSError) and error.errno is None else ""
    if words:
        return words
    status = _status(error)
    if status is not None:
        return str(status)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _given_up(error: Exception) -> OSError:
    waited = f"; it stayed so for {duration(patience_s())}" if patience_s() else ""
    said = OSError(f"{error}{waited}")
    said.errno = getattr(error, "errno", None)
    return said


def well_again(place: str) -> None:
    """Notes that a place answered that was disturbed, and says so."""
    with _known.lock:
        outage = _known.at.pop(place, None)
    if outage is not None:
        _LOG.warning("storage %s answers again, after %s", place, duration(time.monotonic() - outage.began))


def is_disturbed(place: str) -> bool:
    """Tells whether somebody in this process waits for the place right now."""
    with _known.lock:
        outage = _known.at.get(place)
        return outage is not None and time.monotonic() - outage.failed <= FORGOTTEN_S


class Postponed:
    """Acts that may wait for their place while other work goes on, such as writing a checkpoint.

    ``attempt`` tries one at once. A disturbance is said once and leaves the act out; the next attempt is the
    caller's, when it likes. Once the disturbance has lasted for ``patience_s`` the error is raised.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._began: float | None = None

    def attempt(self, act: Callable[[], object], what: str) -> bool:
        """Returns whether the act was done. ``what`` names it where it is left out."""
        _here.at_once = True
        try:
            act()
        except Exception as error:
            cause = passing_cause(error)
            now = time.monotonic()
            began = self._began = now if self._began is None else self._began
            if cause is None or now - began >= patience_s():
                raise
            if began == now:
                _LOG.warning(
                    "storage %s cannot be used (%s): %s is left out for now; training goes on, for up to %s",
                    self._place,
                    _reason(cause),
                    what,
                    duration(patience_s()),
                )
            return False
        finally:
            _here.at_once = False
        if self._began is not None:
            _LOG.warning(
                "storage %s can be used again, after %s", self._place, duration(time.monotonic() - self._began)
            )
            self._began = None
        return True


def passing_cause(error: BaseException | None) -> Exception | None:
    """Returns the error in the chain behind ``error`` that may pass, or None."""
    while error is not None:
        if isinstance(error, Exception) and is_passing(error):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None
