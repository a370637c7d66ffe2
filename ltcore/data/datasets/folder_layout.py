"""Which image is of which class and split, read off the folders."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ltcore.data.datasets.image_root import Root, is_hidden
from ltcore.data.datasets.lists import split_of
from ltcore.data.datasets.skipped import is_document, kinds_words, skipped_words
from ltcore.errors import DataError
from ltcore.text import few_words, storable

SPLITS = ("train", "val", "test")
MOST_NAMED = 20
"""Of folders that one message is about."""
LAYOUTS = "train|val|test/<class>/<image> or <class>/<image>"


@dataclass(frozen=True, slots=True)
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
    outer: str = ""
    """Folders around everything, with a ``/`` at the end: part of every path, but of no meaning."""
    skipped: str = ""
    """What lies among the images and is none, in words; '' where there is nothing or list files choose the images."""
    attributes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What a person should know of how it was read."""


def read_folders(root: Root, *, needs_train: bool = True, classes_from: str | None = None) -> Layout:
    """Reads the layout ``train|val|test/<class>/<image>``, or ``<class>/<image>`` as one split ``train``.

    Classes are sorted by name; folders around everything, as many zips have them, are ignored, and splits may have any
    name of ``SPLIT_WORDS``. Without ``needs_train`` there may be a test folder alone, with any number of classes, to
    evaluate on. Of deeper folders, ``classes_from`` says which part is the class: ``depth``, the first level alone, or
    ``path``, all levels (``cats/siamese``). Raises DataError that names what does not fit, class folders without images,
    or a single class.
    """
    if not root.files:
        held = f" but {kinds_words(root.skipped)}" if root.skipped else ""
        raise DataError(f"{root.where} holds no images{held}; expected {LAYOUTS}.")
    outer = _outer(root.files)
    parts = {path: PurePosixPath(path.removeprefix(outer)).parts for path in root.files}
    with_splits = any(split_of(p[0]) and len(p) >= 3 for p in parts.values())
    no_classes = _without_images(root, outer, with_splits, classes_from)
    named = _by_split(root.where, parts, with_splits, classes_from)
    if needs_train and "train" not in named:
        raise DataError(f"{root.where} has {', '.join(named)} but no train folder; expected {LAYOUTS}.")
    classes = tuple(sorted({name for _, name in named.get("train") or itertools.chain(*named.values())}))
    labels = {name: label for label, name in enumerate(classes)}
    _refuse_strangers(root.where, named, labels)
    if "train" in named:
        expected = f"expected {LAYOUTS}, with one folder for each class; is this a level too high?"
        refuse_one_class(root.where, classes, expected)
    order = [split for split in SPLITS if split in named]
    splits = {s: [Entry(path, labels[name]) for path, name in named[s]] for s in order}
    return Layout(classes, splits, outer, skipped_words(root.skipped, no_classes))


def _outer(files: Sequence[str]) -> str:
    """Returns the folders around everything, ``photos/`` say, or ''. Images outside of all folders do not count."""
    outer, parts = "", [PurePosixPath(path).parts for path in files]
    while True:
        parts = [p for p in parts if len(p) > 1]
        firsts = {p[0] for p in parts}
        if len(firsts) != 1 or split_of(first := firsts.pop()) or all(len(p) == 2 for p in parts):
            return outer
        outer, parts = f"{outer}{first}/", [p[1:] for p in parts]


def _without_images(root: Root, outer: str, with_splits: bool, classes_from: str | None) -> list[str]:
    """Returns folders of documents, which are no classes. Raises DataError for splits and classes that hold no image."""
    documents, empty = list[str](), dict[str, Sequence[str]]()
    for folder in root.empty:
        parts = PurePosixPath(folder.removeprefix(outer)).parts
        outside = not f"{folder}/".startswith(outer) or (with_splits and not split_of(parts[0]))
        level = len(parts) - with_splits
        if level > 1 and classes_from != "path" and not outside:
            continue  # inside of a class
        held = root.skipped[bisect_left(root.skipped, f"{folder}/") : bisect_left(root.skipped, f"{folder}0")]
        visible = [path for path in held if not is_hidden(path)]
        if visible and all(map(is_document, visible)) and (outside or not with_splits):
            documents.append(folder)
        elif not outside:
            empty[folder] = held
    if empty:
        _refuse_empty(root.where, empty)
    return _topmost(documents)


def _refuse_empty(where: str, empty: Mapping[str, Sequence[str]]) -> None:
    top = _topmost(empty)
    held = kinds_words(path for folder in top for path in empty[folder])
    some, hold, them = ("folder", "holds", "it") if len(top) == 1 else ("folders", "hold", "them")
    raise DataError(
        f"{where}: the {some} {few_words(top, MOST_NAMED)} {hold} no image{f' but {held}' if held else ''}. Fill or remove "
        f"{them}."
    )


def _topmost(folders: Iterable[str]) -> list[str]:
    known = set(folders)
    return [folder for folder in folders if str(PurePosixPath(folder).parent) not in known]


def _by_split(
    where: str, parts: Mapping[str, tuple[str, ...]], with_splits: bool, classes_from: str | None
) -> dict[str, list[tuple[str, str]]]:
    """Sorts (path, class) by split. Raises DataError where a path does not fit the layout of the others."""
    named: dict[str, list[tuple[str, str]]] = {}
    words: dict[str, str] = {}
    misfits, deep = [], []
    for path, p in parts.items():
        split, folders = (split_of(p[0]), p[1:-1]) if with_splits else ("train", p[:-1])
        if not split or not folders:
            misfits.append(path)
        elif len(folders) > 1 and classes_from is None:
            deep.append((path, folders))
        elif with_splits and words.setdefault(split, p[0]) != p[0]:
            raise DataError(f"{where}: the folders {words[split]} and {p[0]} both mean {split}. Merge them.")
        else:
            name = "/".join(folders) if classes_from == "path" else folders[0]
            named.setdefault(split, []).append((path, storable(name)))
    if misfits:
        layout = f"{LAYOUTS.split(' or ')[0]}, as the other files do" if with_splits else LAYOUTS
        advice = (
            "Move or remove it"
            if with_splits
            else "Move it, or make shards of list files (ltcore shards IMAGES OUT --list train=FILE)"
        )
        raise DataError(f"{where}: {misfits[0]} does not fit {layout}{_more(misfits)}. {advice}.")
    if deep:
        _refuse_deep(where, deep)
    return named


def _refuse_deep(where: str, deep: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    path, folders = deep[0]
    if inner := next(filter(split_of, folders[1:]), ""):
        raise DataError(
            f"{where}: {path} has {inner} inside of {folders[0]}, expected {LAYOUTS}{_more(deep)}. Give one of the folders "
            f"around {inner} as the data."
        )
    raise DataError(
        f"{where}: {path} lies deeper than <class>/<image>{_more(deep)}. Say which folders are the class: "
        f"data.classes_from=depth makes it {folders[0]!r}, data.classes_from=path makes it {'/'.join(folders)!r} "
        "(make_shards.py: --classes-from)."
    )


def _more(found: Sized) -> str:
    return f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""


def _refuse_strangers(where: str, named: Mapping[str, Sequence[tuple[str, str]]], labels: Mapping[str, int]) -> None:
    strangers: dict[str, tuple[str, str]] = {}
    for split, files in named.items():
        for path, name in files:
            if name not in labels:
                strangers.setdefault(name, (path, split))
    if strangers:
        name, (path, split) = next(iter(strangers.items()))
        raise DataError(
            f"{where}: {path} is of class {name!r} in {split}, which has no training image{_more(strangers)}. Add "
            "some, or take its folder away."
        )


def refuse_one_class(where: str, classes: Sequence[str], expected: str) -> None:
    """Raises DataError where nothing can be told from anything else."""
    if len(classes) == 1:
        raise DataError(
            f"{where}: all training images are of one class, {classes[0]!r}, so nothing can be learned; {expected}"
        )
