"""Names of places: plain paths, ``file://``, and the schemes of stores."""

from __future__ import annotations

import re
from pathlib import Path

from ltcore.errors import ConfigError, refuse_userinfo

REMOTE_SCHEMES = ("s3", "gs", "gcs")
"""Schemes that pyarrow opens itself, for results and data."""
READ_ONLY = {
    **dict.fromkeys(("abfs", "abfss", "az"), "adlfs"),
    "hf": "huggingface_hub",
    **dict.fromkeys(("http", "https"), "aiohttp"),
}
"""Schemes of stores that are only read, through fsspec, and the package that each of them needs beside it."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_KNOWN = "|".join(("file", *REMOTE_SCHEMES, *READ_ONLY))
_WRONG = (
    (r"[A-Za-z]:[\\/]|\\\\", "is a path of Windows", "a path of this system, as /data/x"),
    (rf"(?i:{_KNOWN}):(?!//)", "lacks a slash", "two slashes after the colon and then a name, as s3://bucket/x"),
    (rf"(?!(?:{_KNOWN}):)(?i:{_KNOWN})://", "has its scheme in capitals", "small letters, as s3://bucket/x"),
    (rf"(?!file:)(?:{_KNOWN})://(?:[/?#]|$)", "names no bucket or host", "one after the two slashes, as s3://bucket/x"),
    (r"file://(?![/~])", "names another machine", "a path of this one, with three slashes, as file:///data/x"),
)
"""Forms that would be taken for something else, such as a folder called 's3:': (form, what it is, what to write)."""


def scheme_of(uri: str) -> str:
    """Returns what stands before ``://``; '' for a plain path."""
    found = _SCHEME.match(uri)  # a file may be called [link=https://...]
    return found[1] if found else ""


def is_local(uri: str) -> bool:
    """Tells whether the URI is a plain path or ``file://``."""
    return scheme_of(uri) in ("", "file")


def is_web(uri: str) -> bool:
    """Tells whether the URI is the address of one file in the web, which has no folders and no patterns."""
    return scheme_of(uri) in ("http", "https")


def local_path(uri: str) -> Path:
    """Returns the path of a local URI; ``~`` is expanded."""
    return Path(uri.removeprefix("file://")).expanduser()


def join(uri: str, *parts: str) -> str:
    """Returns ``uri/part/part``."""
    return "/".join([uri.rstrip("/") or "/", *parts])


def refuse_read_only(uri: str) -> None:
    """Raises ConfigError for a place that can only be read."""
    if scheme_of(uri) in READ_ONLY:
        raise ConfigError(f"{uri}: {scheme_of(uri)}:// is only read. Write to a path, file://, s3:// or gs://.")


def check_uris(**values: str | None) -> None:
    """Raises ValueError for a URI that is none, such as ``s3:/x`` or ``C:\\x``, or that has a password in it.

    A value may be several URIs with commas between them; null passes. The message starts with the name.
    """
    refuse_userinfo(**values)
    for name, value in values.items():
        for uri in (value or "").split(","):
            for form, wrong, instead in _WRONG:
                if re.match(form, uri):
                    raise ValueError(f"{name}={uri} {wrong}. Write {instead}")
