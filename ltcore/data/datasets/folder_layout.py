"""Which image is of which class and split, read off the folders."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcore.data.datasets.columns import Columns, GrowingTexts, Positions, Texts
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


@dataclass(frozen=True, eq=False)
class Entries(Columns[Entry]):
    """The images of one split."""

    paths: Texts
    labels_N: NDArray[np.int32]
    attributes_N: NDArray[np.int32]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        """Reads the images one by one."""
        paths, labels, attributes = GrowingTexts(), array("i"), array("i")
        for entry in entries:
            paths.append(entry.path)
            labels.append(entry.label)
            attributes.append(entry.attribute)
        return cls(paths.whole(), np.frombuffer(labels, np.int32), np.frombuffer(attributes, np.int32))

    @classmethod
    def joined(cls, parts: Sequence[Entries]) -> Entries:
        """Returns the images of several splits, one split after the other; a single one is not copied."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            Texts.joined([part.paths for part in parts]),
            np.concatenate([part.labels_N for part in parts]),
            np.concatenate([part.attributes_N for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.labels_N)

    def at(self, position: int) -> Entry:
        return Entry(self.paths.at(position), int(self.labels_N[position]), int(self.attributes_N[position]))

    def take(self, positions_n: Positions) -> Entries:
        return Entries(self.paths.take(positions_n), self.labels_N[positions_n], self.attributes_N[positions_n])


@dataclass(frozen=True)
class Layout:
    """What belongs where; the split ``train`` is there unless the data are for evaluation alone."""

    classes: tuple[str, ...]
    splits: dict[str, Entries]
    outer: str = ""
    """Folders around everything, with a ``/`` at the end: part of every path, but of no meaning."""
    skipped: str = ""
    """What lies among the images and is none, in words; '' where there is nothing or list files choose the images."""
    attributes: tuple[str, ...] = ()
    shot_groups: tuple[str, ...] = ()
    """Of each class, as the data give them; () where they do not."""
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
    folders = _Folders.of(root.files)
    outer = _outer(folders.names)
    parts = [PurePosixPath(name.removeprefix(outer)).parts for name in folders.names]
    with_splits = any(len(p) >= 2 and split_of(p[0]) for p in parts)
    no_classes = _without_images(root, outer, with_splits, classes_from)
    named = _by_split(root, folders, parts, with_splits, classes_from)
    if needs_train and "train" not in named:
        raise DataError(f"{root.where} has {', '.join(named)} but no train folder; expected {LAYOUTS}.")
    known = [named["train"]] if "train" in named else named.values()
    classes = tuple(sorted({name for by_folder in known for name in by_folder.values()}))
    labels = {name: label for label, name in enumerate(classes)}
    _refuse_strangers(root, folders, named, labels)
    if "train" in named:
        expected = f"expected {LAYOUTS}, with one folder for each class; is this a level too high?"
        refuse_one_class(root.where, classes, expected)
    splits = {
        split: folders.entries({number: labels[name] for number, name in named[split].items()}, root.files)
        for split in SPLITS
        if split in named
    }
    return Layout(classes, splits, outer, skipped_words(root.skipped, no_classes))


@dataclass(frozen=True, eq=False)
class _Folders:
    """The folders in which images lie, each with a ``/`` at the end; '' is the root."""

    names: tuple[str, ...]
    """In the order of their first images."""
    of_N: NDArray[np.int32]
    """Number of each image's folder."""

    @classmethod
    def of(cls, files: Texts) -> _Folders:
        numbers: dict[str, int] = {}
        found = (numbers.setdefault(path[: path.rfind("/") + 1], len(numbers)) for path in files)
        of_N = np.fromiter(found, np.int32, len(files))
        return cls(tuple(numbers), of_N)

    def first(self, number: int) -> int:
        """Returns the position of a folder's first image."""
        return int(np.argmax(self.of_N == number))

    def count(self, numbers: Sequence[int]) -> int:
        """Returns how many images are in some of the folders."""
        return int(np.isin(self.of_N, numbers).sum())

    def entries(self, labels: Mapping[int, int], files: Texts) -> Entries:
        """Returns the images of the folders that have a label, with that."""
        label_F = np.full(len(self.names), -1, np.int32)
        label_F[list(labels)] = list(labels.values())
        label_N = label_F[self.of_N]
        paths = files.where(label_N >= 0)
        return Entries(paths, label_N[label_N >= 0], np.full(len(paths), -1, np.int32))


def _outer(folders: Iterable[str]) -> str:
    """Returns the folders around everything, ``photos/`` say, or ''. Images outside of all folders do not count."""
    outer, parts = "", [PurePosixPath(folder).parts for folder in folders]
    while True:
        parts = [p for p in parts if p]
        firsts = {p[0] for p in parts}
        if len(firsts) != 1 or split_of(first := firsts.pop()) or all(len(p) == 1 for p in parts):
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
    root: Root, folders: _Folders, parts: Sequence[tuple[str, ...]], with_splits: bool, classes_from: str | None
) -> dict[str, dict[int, str]]:
    """Returns split -> number of the folder -> class. Raises DataError where a path does not fit the layout of the others."""
    named: dict[str, dict[int, str]] = {}
    words: dict[str, str] = {}
    misfits, deep = list[int](), list[int]()
    for number, p in enumerate(parts):
        split, inner = (split_of(p[0]) if p else "", p[1:]) if with_splits else ("train", p)
        if not split or not inner:
            misfits.append(number)
        elif len(inner) > 1 and classes_from is None:
            deep.append(number)
        elif with_splits and words.setdefault(split, p[0]) != p[0]:
            raise DataError(f"{root.where}: the folders {words[split]} and {p[0]} both mean {split}. Merge them.")
        else:
            name = "/".join(inner) if classes_from == "path" else inner[0]
            named.setdefault(split, {})[number] = storable(name)
    if misfits:
        path, more = root.files[folders.first(misfits[0])], _more(folders.count(misfits))
        layout = f"{LAYOUTS.split(' or ')[0]}, as the other files do" if with_splits else LAYOUTS
        advice = (
            "Move or remove it"
            if with_splits
            else "Move it, or make shards of list files (ltcore shards IMAGES OUT --list train=FILE)"
        )
        raise DataError(f"{root.where}: {path} does not fit {layout}{more}. {advice}.")
    if deep:
        path, more = root.files[folders.first(deep[0])], _more(folders.count(deep))
        _refuse_deep(root.where, path, parts[deep[0]][int(with_splits) :], more)
    return named


def _refuse_deep(where: str, path: str, folders: Sequence[str], more: str) -> None:
    if inner := next(filter(split_of, folders[1:]), ""):
        raise DataError(
            f"{where}: {path} has {inner} inside of {folders[0]}, expected {LAYOUTS}{more}. Give one of the folders "
            f"around {inner} as the data."
        )
    raise DataError(
        f"{where}: {path} lies deeper than <class>/<image>{more}. Say which folders are the class: "
        f"data.classes_from=depth makes it {folders[0]!r}, data.classes_from=path makes it {'/'.join(folders)!r} "
        "(make_shards.py: --classes-from)."
    )


def _more(count: int) -> str:
    return f" (and {count - 1:,} more)" if count > 1 else ""


def _refuse_strangers(
    root: Root, folders: _Folders, named: Mapping[str, Mapping[int, str]], labels: Mapping[str, int]
) -> None:
    strangers: dict[str, tuple[int, str]] = {}
    for split, by_folder in named.items():
        for number, name in by_folder.items():
            if name not in labels:
                strangers.setdefault(name, (number, split))
    if strangers:
        name, (number, split) = next(iter(strangers.items()))
        raise DataError(
            f"{root.where}: {root.files[folders.first(number)]} is of class {name!r} in {split}, which has no training image"
            f"{_more(len(strangers))}. Add some, or take its folder away."
        )


def refuse_one_class(where: str, classes: Sequence[str], expected: str) -> None:
    """Raises DataError where nothing can be told from anything else."""
    if len(classes) == 1:
        raise DataError(
            f"{where}: all training images are of one class, {classes[0]!r}, so nothing can be learned; {expected}"
        )
