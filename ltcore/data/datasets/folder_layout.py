"""Which image is of which class and split, read off the folders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ltcore.data.datasets.image_root import Root
from ltcore.data.datasets.lists import split_of
from ltcore.errors import DataError

SPLITS = ("train", "val", "test")
LAYOUTS = "train|val|test/<class>/<image> or <class>/<image>"


@dataclass(frozen=True)
class Entry:
    """One image and its class."""

    path: str
    label: int
    attribute: int = -1
    """Position in the attributes of the layout; -1 is unknown."""


@dataclass(frozen=True)
class Layout:
    """What belongs where; the split ``train`` is there unless the data are for evaluation alone."""

    classes: tuple[str, ...]
    splits: dict[str, list[Entry]]
    attributes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What a person should know of how it was read."""


def read_folders(root: Root, *, needs_train: bool = True) -> Layout:
    """Reads the layout ``train|val|test/<class>/<image>``, or ``<class>/<image>`` as one split ``train``.

    Classes are sorted by name; one folder around everything, as many zips have it, is ignored, and splits may have any
    name of ``SPLIT_WORDS``. Without ``needs_train`` there may be a test folder alone, with any number of classes, to
    evaluate on. Raises DataError that names the first file that does not fit, a folder without images, or a single
    class.
    """
    if not root.files:
        raise DataError(f"{root.where} holds no images; expected {LAYOUTS}.")
    if root.empty:
        raise DataError(f"{root.where}: the folder {root.empty[0]} holds no image. Fill or remove it.")
    named = _by_split(root.where, _inside(root.files))
    if needs_train and "train" not in named:
        raise DataError(f"{root.where} has {', '.join(named)} but no train folder; expected {LAYOUTS}.")
    classes = tuple(sorted({name for _, name in named.get("train") or itertools.chain(*named.values())}))
    labels = {name: label for label, name in enumerate(classes)}
    for split, files in named.items():
        for path, name in files:
            if name not in labels:
                raise DataError(f"{root.where}: {path} is of class {name!r} in {split}, which has no training image.")
    if "train" in named:
        expected = f"expected {LAYOUTS}, with one folder for each class; is this a level too high?"
        refuse_one_class(root.where, classes, expected)
    order = [split for split in SPLITS if split in named]
    return Layout(classes, {s: [Entry(path, labels[name]) for path, name in named[s]] for s in order})


def _inside(files: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Splits each path into its parts, and drops the one folder around everything where there is one."""
    parts = {path: PurePosixPath(path).parts for path in files}
    first = next(iter(parts.values()))[0]
    if not split_of(first) and all(p[0] == first and len(p) >= 3 for p in parts.values()):
        return {path: p[1:] for path, p in parts.items()}
    return parts


def _by_split(where: str, parts: Mapping[str, tuple[str, ...]]) -> dict[str, list[tuple[str, str]]]:
    """Sorts (path, class) by split. Raises DataError where a path does not fit the layout of the others."""
    with_splits = any(split_of(p[0]) and len(p) == 3 for p in parts.values())
    named: dict[str, list[tuple[str, str]]] = {}
    folders: dict[str, str] = {}
    for path, p in parts.items():
        split = split_of(p[0]) if with_splits else "train"
        if with_splits and (len(p) != 3 or not split):
            raise DataError(f"{where}: {path} does not fit {LAYOUTS.split(' or ')[0]}, as the other files do.")
        if not with_splits and len(p) != 2:
            raise DataError(f"{where}: {path} does not fit {LAYOUTS}. Move it, or give list files with --list.")
        if with_splits and folders.setdefault(split, p[0]) != p[0]:
            raise DataError(f"{where}: the folders {folders[split]} and {p[0]} both mean {split}. Merge them.")
        named.setdefault(split, []).append((path, p[-2]))
    return named


def refuse_one_class(where: str, classes: Sequence[str], expected: str) -> None:
    """Raises DataError where nothing can be told from anything else."""
    if len(classes) == 1:
        raise DataError(
            f"{where}: all training images are of one class, {classes[0]!r}, so nothing can be learned; {expected}"
        )
