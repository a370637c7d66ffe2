"""Which tars a URI means, and which split each of them is of: by folders, or by words in the names of files."""

from __future__ import annotations

import fnmatch
import itertools
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ltcore import storage
from ltcore.data.datasets.folder_layout import SPLITS, split_of
from ltcore.data.datasets.image_root import is_hidden
from ltcore.data.shards.source import image_ext
from ltcore.errors import ConfigError, DataError
from ltcore.limits import MAX_FILES, MAX_TAR_DEPTH, MAX_TARS, at_most

LOOKING_UP = 16
"""Files that a store is asked about at once."""
_TAR = re.compile(r"\.(tar|tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst|lz4|z))$", re.IGNORECASE)
_WILD = re.compile(r"[*?\[]")
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")


@dataclass(frozen=True)
class Tar:
    """One tar file of somebody else."""

    base: str
    """Folder or URI prefix that all tars lie below."""
    path: str
    """Relative to the base."""
    bytes: int
    changed: str
    """Time of the last change, in any form."""
    split: str = "train"

    @property
    def uri(self) -> str:
        return storage.join(self.base, self.path)

    @property
    def stem(self) -> str:
        """Returns the path without what says that it is a tar."""
        return _TAR.sub("", self.path)


def means_tars(uri: str) -> bool:
    """Tells whether the URI names tars by a pattern or a file name, or a folder that holds tars and no class folders."""
    if names_tars(uri):
        return True
    if storage.is_local(uri):
        folder = storage.local_path(uri)
        return folder.is_dir() and _is_tar_folder(_local_names(folder))
    return not storage.is_web(uri) and not _WILD.search(uri) and _is_tar_folder(_remote_names(uri))


def has_class_folders(uri: str) -> bool:
    """Tells whether an image lies in a folder below the place: what else is there lies beside the data."""
    names = _local_names(storage.local_path(uri)) if storage.is_local(uri) else _remote_names(uri)
    return any("/" in name and image_ext(name) for name in names)


def names_tars(uri: str) -> bool:
    """Tells whether the URI is the name of a tar, or a pattern for such names, rather than a folder."""
    if storage.is_local(uri) and storage.local_path(uri).is_dir():
        return False
    last = uri.rpartition("/")[2].lower()
    return bool(_TAR.search(uri)) or bool(re.search(r"[*?\[{]", last) and re.search(r"\btar\b|\btgz\b", last))


def _is_tar_folder(names: Iterable[str]) -> bool:
    """Tells whether there is a tar, and no image in a folder: a tar beside class folders is a copy of them."""
    found = False
    for name in names:
        found = found or bool(_TAR.search(name))
        if "/" in name and image_ext(name):
            return False
    return found


def find_tars(uri: str, *, needs_train: bool = True) -> list[Tar]:
    """Returns the tars that the URI means, sorted by path, with their splits.

    The URI is a tar, a pattern with ``*``, ``?``, ``[...]``, ``{000..099}`` or ``{a,b}``, or a folder. Raises DataError
    where there is none, where only some have a split, or where ``needs_train`` and none is of training.
    """
    tars = _located(uri)
    if not tars:
        raise DataError(f"data.uri={uri!r}: there is no such tar. Check the pattern, and that the files are there.")
    for tar in tars:
        ending = tar.path[len(tar.stem) :].lower()
        if ending not in (".tar", ".tgz", ".tar.gz"):
            raise DataError(f"{tar.uri} is no .tar and no .tar.gz, and no others are read. Unpack it, or leave it out.")
    return _with_splits(uri, tars, needs_train)


def _located(uri: str) -> list[Tar]:
    if storage.is_local(uri):
        uri = str(storage.local_path(uri).absolute())
    if names_tars(uri):
        places = sorted({place for pattern in _expanded(uri) for place in _matching(pattern)})
        _refuse_many(uri, places)
        base = posixpath.commonpath([posixpath.dirname(place) for place in places]) if places else ""
        if not storage.is_local(uri):  # commonpath joins the slashes of the scheme
            base = re.sub(r"^(\w+):/+", r"\1://", base)
        names = [place[len(base.rstrip("/")) + 1 :] for place in places]
    else:
        base = uri.rstrip("/")
        found = _local_names(Path(base), whole=True) if storage.is_local(uri) else _remote_names(uri)
        names = sorted(filter(_TAR.search, found))
        _refuse_many(uri, names)
    with ThreadPoolExecutor(LOOKING_UP) as pool:
        return list(pool.map(_described, itertools.repeat(base), names))


def _refuse_many(uri: str, tars: Sequence[str]) -> None:
    if len(tars) > MAX_TARS:
        raise ConfigError(
            f"data.uri={uri!r} means {len(tars)} tars, expected at most {MAX_TARS}. Name fewer, or join them."
        )


def _expanded(pattern: str) -> Iterator[str]:
    """Yields the patterns that braces stand for, as a shell does."""
    import braceexpand

    for low, high in _RANGE.findall(pattern):  # whose numbers are all made at once
        if abs(int(high[:12]) - int(low[:12])) >= MAX_TARS:
            raise ConfigError(f"data.uri={pattern!r}: {{{low}..{high}}} means more than {MAX_TARS} tars. Shorten it.")
    try:
        yield from itertools.islice(braceexpand.braceexpand(pattern), MAX_TARS + 1)
    except ValueError as error:
        raise ConfigError(f"data.uri={pattern!r}: {error}. Write {{000..099}} or {{a,b}}.") from None


def _matching(pattern: str) -> Iterator[str]:
    """Yields the files that a pattern without braces means; one without wildcards is a file, also where it is missing."""
    if not _WILD.search(pattern) or (storage.is_local(pattern) and Path(pattern).is_file()):
        yield pattern
    elif storage.is_local(pattern):
        root = Path(pattern).anchor
        found = map(str, Path(root).glob(pattern[len(root) :]))
        yield from (name for name in found if _TAR.search(name) and not is_hidden(name))
    elif storage.is_web(pattern):
        raise ConfigError(
            f"data.uri={pattern!r}: the web cannot be searched. Name the tars, as in train-{{000..099}}.tar."
        )
    else:
        folder = posixpath.dirname(pattern[: _WILD.search(pattern).start()])  # type: ignore[union-attr]
        if folder.endswith(":"):
            raise ConfigError(f"data.uri={pattern!r}: the bucket must be named without wildcards.")
        depth = pattern.count("/")
        for name in filter(_TAR.search, _remote_names(folder)):
            place = f"{folder}/{name}"
            if fnmatch.fnmatchcase(place, pattern) and ("**" in pattern or place.count("/") == depth):
                yield place


def _remote_names(uri: str) -> list[str]:
    return [name for name in storage.list_files(uri) if not is_hidden(name)]


def _local_names(folder: Path, *, whole: bool = False) -> Iterator[str]:
    return at_most(_walk(folder, whole=whole), MAX_FILES, str(folder), "files")


def _walk(
    root: Path, prefix: str = "", seen: set[tuple[int, int]] | None = None, *, whole: bool = False
) -> Iterator[str]:
    """Yields the files below a local folder, relative to it; links to folders are followed, but none is read twice.

    Folders deeper than tars lie are left out, or raise DataError where the ``whole`` data set is asked for.
    """
    seen = set() if seen is None else seen
    try:
        found = root.stat()
        entries = sorted(
            at_most(os.scandir(root), MAX_FILES, str(root), "files"), key=lambda entry: (entry.is_symlink(), entry.name)
        )
    except OSError as error:
        raise DataError(f"{root} cannot be listed ({error.strerror}). Correct its permissions or remove it.") from error
    if (found.st_dev, found.st_ino) in seen:
        return
    seen.add((found.st_dev, found.st_ino))
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if not entry.is_dir():
            yield prefix + entry.name
        elif prefix.count("/") < MAX_TAR_DEPTH:
            yield from _walk(root / entry.name, f"{prefix}{entry.name}/", seen, whole=whole)
        elif whole and (deep := _tar_below(root / entry.name)):
            raise DataError(
                f"{deep} lies more than {MAX_TAR_DEPTH} folders below the one that was named. Name a folder nearer to the tars, "
                "or move it away."
            )


def _tar_below(root: Path) -> str:
    """Returns a tar anywhere below a folder; '' where there is none."""
    for folder, folders, names in os.walk(root):
        folders[:] = (name for name in folders if not is_hidden(name))
        if found := next((name for name in names if _TAR.search(name) and not is_hidden(name)), ""):
            return f"{folder}/{found}"
    return ""


def _described(base: str, name: str) -> Tar:
    uri = storage.join(base, name)
    info = storage.describe_file(uri)  # which tells more of its version than a list of files does
    if info is None:
        raise DataError(f"{uri} does not exist or is no file. Check data.uri, or restore it.")
    if info.size < 0:
        raise DataError(f"{uri}: the server does not tell its size, which a tar is read by. Download it first.")
    return Tar(base, name, info.size, info.version)


def _with_splits(uri: str, tars: Sequence[Tar], needs_train: bool) -> list[Tar]:
    found = [_split_word(tar.path) for tar in tars]
    if not any(found):
        # a folder's own name says something only to who evaluates: training data may lie in .../test/
        own = split_of(posixpath.basename(tars[0].base))
        return [replace(tar, split="train" if needs_train or not own else own) for tar in tars]
    if not all(found):
        first = tars[found.index("")]
        others = ", ".join(sorted(set(found) - {""}))
        raise DataError(
            f"{first.uri} is of no split, but other tars are of {others}, by their names. Name it train-..., val-... or "
            "test-..., or give a pattern that leaves it out."
        )
    if needs_train and "train" not in found:
        names = ", ".join(split for split in SPLITS if split in found)
        raise DataError(f"{uri} has tars of {names}, by their names, but none of train.")
    return [replace(tar, split=split) for tar, split in zip(tars, found, strict=True)]


def _split_word(path: str) -> str:
    """Returns the split that a tar's name says, else its nearest folder's; '' where none does."""
    *folders, file = path.split("/")
    words = [word for word in re.split(r"[^A-Za-z]+", file) if split_of(word)]
    return next((split_of(word) for word in (*words, *reversed(folders)) if split_of(word)), "")
