"""Errors that say what is wrong, where, what was expected, and what to do next.

Every message that a user can cause is one of these; the command line prints it as one sentence without a traceback
unless ``--debug`` is given.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
_LONGEST_GUESS = 200
"""Characters of a name for which similar ones are looked up, in a time that grows with their square."""
USERINFO = re.compile(
    r"(?<!\babfs)(?<!\babfss)(?<!\baz)://[^/\s]*@"  # of Azure, what stands there is a container
    r"|\b(abfss?|az)://[^/\s@]*:[^/\s]*@"
    r"|://[^/\s:@\[]+:(?!\d+(/|$))\S*@"  # a slash in the password ends the host too early, with a port that is no number
    r"|\b(s3|gs|gcs)://[^/\s:@]+:\S*@"  # a bucket has no port at all
    r"|\bhttps?://\S+[?&](sig|signature|token|access_token|api_?key|x-(amz|goog)-(signature|security-token))=",
    re.IGNORECASE,
)
"""What stands before the host in ``s3://KEY:SECRET@bucket`` or ``http://user@host``; a secret of AWS may hold a slash.
A signature in an address of the web is as good as a password."""
_PLAIN_NAME = re.compile(r"\w[\w.-]*")


class LtcoreError(Exception):
    """Base of all errors that are meant for the user. ``exit_code`` is what a pipeline exits with."""

    exit_code = 1
    retryable = True
    """Whether the same command may fare better: a disk was full, a store or a node was gone, a file is restored meanwhile.
    Errors that are final come again for as long as the command says the same.
    """


class ConfigError(LtcoreError):
    """A key, a value or a combination of them is wrong."""

    exit_code = 2
    retryable = False


class PluginError(LtcoreError):
    """A plugin is missing, has changed, or cannot be used as it is; ``plugin`` is its name, where one is broken."""

    exit_code = 2
    retryable = False

    def __init__(self, message: str, plugin: str = "") -> None:
        super().__init__(message)
        self.plugin = plugin


class CallbackError(PluginError):
    """A callback of a plugin failed, which says nothing of the run: with the callback repaired, the same command goes on."""

    retryable = True


class DataError(LtcoreError):
    """Input data, a manifest or a shard is not what it should be."""


class StorageError(DataError):
    """A place that files are read from or written to does not do what is asked of it."""


class RemovedError(DataError):
    """Somebody removed what this process works on. Nothing is written in its place, and only the person begins it anew."""


class BadImageError(DataError):
    """An image cannot be read or decoded. ``problem`` says why, without its name and without advice."""

    def __init__(self, message: str, problem: str = "") -> None:
        super().__init__(message)
        self.problem = problem or message


class DamagedFileError(DataError):
    """A record of ours cannot be parsed."""


class CheckpointError(LtcoreError):
    """A checkpoint is unreadable, foreign, or belongs to another configuration."""


class NumericError(LtcoreError):
    """A loss or metric is not finite."""

    retryable = False


class CapacityError(LtcoreError):
    """What was asked for can never be placed on the machines at hand."""

    exit_code = 2


class GpuShareError(CapacityError):
    """The part of a GPU that a run had is too small for it."""


class StallError(LtcoreError):
    """Nothing happened for ``stall_s`` seconds."""

    exit_code = 3


class RunFailedError(LtcoreError):
    """A run failed in another process, which wrote down why, and whether that is ``retryable``."""

    def __init__(self, message: str, retryable: bool) -> None:
        super().__init__(message, retryable)
        self.retryable = retryable

    def __str__(self) -> str:
        return str(self.args[0])


def is_retryable(error: BaseException) -> bool:
    """Tells whether the same command may fare better than with this error.

    Ours know it themselves. An error that crossed a process in a wrapper of Ray's counts as what is inside. All others
    come from outside of a run's configuration and count as gone by the next time: those of the operating system, of
    stores, of W&B, of CUDA and of lost processes.
    """
    seen = {id(error)}
    while not isinstance(error, LtcoreError):
        inner = getattr(error, "cause", None)
        if not isinstance(inner, BaseException) or id(inner) in seen:
            return True
        seen.add(id(inner))
        error = inner
    return error.retryable


class RayLostError(LtcoreError):
    """A server of Ray on this machine died, and with it everything that ran there."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: the command ends as after Ctrl-C, with another exit code."""


# Checks of configuration fields: ``at_least(1, lanes=self.lanes)``. Each takes any number of values by name, lets null pass,
# which is what an optional field may be, and raises a ValueError that starts with the name, so that a dotted key can be told.


def positive(**values: float | None) -> None:
    """Refuses a value that is not a finite number above 0."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be {_finite(value)}> 0, got {value}")


def at_least(least: float, **values: float | None) -> None:
    """Refuses a value that is not a finite number from ``least`` on."""
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{name} must be {_finite(value)}>= {least:g}, got {value}")


def _finite(value: float) -> str:
    return "" if isinstance(value, int) else "a finite number "


def within(interval: str, what: str = "", /, **values: float | None) -> None:
    """Refuses a value outside of an interval, written as in mathematics: ``[0, 1)`` has no 1.

    ``what`` says in a few words what the number is: a fraction of training, a cosine.
    """
    low, high = map(float, interval[1:-1].split(","))
    for name, value in values.items():
        if value is None:
            continue
        above = low <= value if interval.startswith("[") else low < value
        below = value <= high if interval.endswith("]") else value < high
        if not (above and below):
            raise ValueError(f"{name} must be {f'{what} ' if what else ''}in {interval}, got {value}")


def one_of(allowed: Iterable[object], beginning: str = "", /, **values: object) -> None:
    """Refuses a value that is not one of those allowed, nor begins with ``beginning``, if that is given."""
    known = tuple(allowed)
    for name, value in values.items():
        if value is None or value in known or (beginning and str(value).startswith(beginning)):
            continue
        shown = [*map(str, known), *([f"{beginning}..."] if beginning else [])]
        raise ValueError(f"{name} must be one of {', '.join(shown)}, got {value!r}")


def different(what: str, **values: Sequence[object] | None) -> None:
    """Refuses an empty list, and one with the same entry twice. ``what`` names the entries in the message."""
    for name, value in values.items():
        if value is not None and not 0 < len(value) == len(set(value)):
            raise ValueError(f"{name} must be one or more different {what}, got {list(value)}")


def plain_name(**values: str) -> None:
    """Refuses what cannot be a folder's name everywhere."""
    for name, value in values.items():
        if not _PLAIN_NAME.fullmatch(value):
            raise ValueError(
                f"{name} must consist of letters, digits, '.', '_' and '-' and start with a letter, a digit or '_', "
                f"got {value!r}"
            )


def refuse_userinfo(**values: str | None) -> None:
    """Raises ValueError where a URI contains a user name or password, because URIs are stored and shown.

    The message does not repeat the value.
    """
    for name, value in values.items():
        if value is not None and USERINFO.search(value):
            raise ValueError(
                f"{name} is a URI with a user name or password in it, or a signature, which would be stored and shown with it. "
                "Take them out, and give credentials by environment or login, as for the store's own command"
            )


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns ' Did you mean a, b?' with the closest allowed names, or '' where nothing is close."""
    names = list(allowed)
    name = name[:_LONGEST_GUESS]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if not close:  # a dotted key is often right but for its section; the outer ones come to mind first
        same = [n for n in names if n.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
        close = [n for n in same if n.count(".") == min(n.count(".") for n in same)][:3]
    return f" Did you mean {', '.join(close)}?" if close else ""


def pick(table: Mapping[str, T], name: str, where: str) -> T:
    """Returns ``table[name]``, or raises ConfigError with ``where``, the nearest names and all of them."""
    try:
        return table[name]
    except KeyError:
        raise ConfigError(
            f"{where}={name!r} is unknown.{nearest(name, table)} Known: {', '.join(sorted(table))}."
        ) from None
