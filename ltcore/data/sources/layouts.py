"""Which image is of which class and split: read off the folders, or off list files."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ltcore.data.sources.roots import Root
from ltcore.errors import DataError

SPLITS = ("train", "val", "test")
LAYOUTS = "train|val|test/<class>/<image> or <class>/<image>"


@dataclass(frozen=True)
class Entry:
    """One image and its class."""

    path: str
    label: int


@dataclass(frozen=True)
class Layout:
    """What belongs where; the split ``train`` is always there."""

    classes: tuple[str, ...]
    splits: dict[str, list[Entry]]


def read_folders(root: Root) -> Layout:
    """The layout of ``train|val|test/<class>/<image>``, or of ``<class>/<image>`` as one split ``train``.

    Classes are sorted by name; one folder around everything, as many zips have it, is ignored. DataError names the first
    file that does not fit.
    """
    if not root.files:
        raise DataError(f"{root.where} holds no images; expected {LAYOUTS}.")
    parts = {path: PurePosixPath(path).parts for path in root.files}
    first = next(iter(parts.values()))[0]
    if first not in SPLITS and all(p[0] == first and len(p) >= 3 for p in parts.values()):
        parts = {path: p[1:] for path, p in parts.items()}
    with_splits = any(p[0] in SPLITS and len(p) == 3 for p in parts.values())
    named: dict[str, list[tuple[str, str]]] = {}
    for path, p in parts.items():
        if with_splits and (len(p) != 3 or p[0] not in SPLITS):
            raise DataError(f"{root.where}: {path} does not fit {LAYOUTS.split(' or ')[0]}, as the other files do.")
        if not with_splits and len(p) != 2:
            raise DataError(f"{root.where}: {path} does not fit {LAYOUTS}. Move it, or give list files with --list.")
        named.setdefault(p[0] if with_splits else "train", []).append((path, p[-2]))
    if "train" not in named:
        raise DataError(f"{root.where} has {', '.join(named)} but no train folder; expected {LAYOUTS}.")
    classes = tuple(sorted({name for _, name in named["train"]}))
    labels = {name: label for label, name in enumerate(classes)}
    for split, files in named.items():
        for path, name in files:
            if name not in labels:
                raise DataError(f"{root.where}: {path} is of class {name!r} in {split}, which has no training image.")
    order = [split for split in SPLITS if split in named]
    return Layout(classes, {s: [Entry(path, labels[name]) for path, name in named[s]] for s in order})


def read_lists(root: Root, lists: Mapping[str, str]) -> Layout:
    """The layout that list files give (OLTR style): a line is ``path label``, the path relative to the root.

    Files may be gzipped. Where every label has a folder of its own, the folders name the classes; else the numbers do.
    DataError names file and line.
    """
    if "train" not in lists:
        raise DataError(f"there are list files for {', '.join(lists)}, but none for train.")
    known = set(root.files)
    splits = {split: _read_list(root, known, file) for split, file in lists.items()}
    num_classes = 1 + max(entry.label for entry in splits["train"])
    for split, entries in splits.items():
        for entry in entries:
            if entry.label >= num_classes:
                raise DataError(
                    f"{lists[split]}: {entry.path} has label {entry.label}, but training labels end at {num_classes - 1}."
                )
    seen: dict[str, str] = {}
    for split, entries in splits.items():
        for entry in entries:
            if seen.setdefault(entry.path, split) != split:
                raise DataError(
                    f"{lists[split]}: {entry.path} is in {seen[entry.path]} as well; splits must be disjoint."
                )
    return Layout(_names(splits["train"], num_classes), splits)


def _read_list(root: Root, known: set[str], file: str) -> list[Entry]:
    try:
        data = Path(file).read_bytes()
        lines = (gzip.decompress(data) if file.endswith(".gz") else data).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no readable list ({error}); expected lines of 'path label'.") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal():
            raise DataError(f"{file}, line {number}: expected 'path label' with a label of 0 or more, found {line!r}.")
        if path not in known:
            raise DataError(f"{file}, line {number}: there is no {path} in {root.where}.")
        entries.append(Entry(path, int(label)))
    if not entries:
        raise DataError(f"{file} is empty; expected lines of 'path label'.")
    return entries


def _names(entries: Sequence[Entry], num_classes: int) -> tuple[str, ...]:
    folders: dict[int, set[str]] = {}
    for entry in entries:
        folders.setdefault(entry.label, set()).add(PurePosixPath(entry.path).parent.name)
    names = [next(iter(folders[c])) for c in range(num_classes) if len(folders.get(c, ())) == 1]
    return tuple(names) if len(set(names)) == num_classes else tuple(str(c) for c in range(num_classes))
