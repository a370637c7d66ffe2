"""Images that cannot be decoded: all of them are named at once."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from ltcore import storage
from ltcore.errors import BadImageError, DataError
from ltcore.hashing import hash64
from ltcore.text import printable

_LISTED = 20


class BrokenImagesError(DataError):
    """Some images of a source cannot be decoded. ``found`` has the problem of each by its path."""

    def __init__(self, message: str, found: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.found = dict(found or {})


def broken_images(where: str, errors: Mapping[str, BadImageError]) -> BrokenImagesError:
    """Makes the error that names all broken images of ``where``; where they are very many, a file has the full list."""
    found = {path: errors[path].problem for path in sorted(errors)}
    leave_out = f"data.max_bad_samples={len(found)} (make_shards.py: --max-bad-samples)"
    if len(found) == 1:
        return BrokenImagesError(f"{next(iter(errors.values()))} To go on without it: {leave_out}.", found)
    lines = [f"  {printable(f'{path}: {problem}')}" for path, problem in islice(found.items(), _LISTED)]
    if len(found) > _LISTED:
        lines.append(f"  and {len(found) - _LISTED:,} more; all are listed in {_write_list(where, found)}")
    head = f"{where}: {len(found):,} images are broken. Remove or replace them; to go on without them: {leave_out}."
    return BrokenImagesError("\n".join([head, *lines]), found)


def _write_list(where: str, found: Mapping[str, str]) -> str:
    """Writes all of them into the cache folder, a line each, and returns the place."""
    uri = str(storage.cache_root() / "broken" / f"{hash64(where):016x}.txt")
    text = "".join(f"{printable(f'{path}: {problem}')}\n" for path, problem in found.items())
    storage.write_bytes_atomic(uri, text.encode())
    return uri
