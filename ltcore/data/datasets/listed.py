"""From rows that list images to the layout of a data set: splits, classes in order, attributes, and what is wrong."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from ltcore.data.config import DataConfig
from ltcore.data.datasets.folder_layout import SPLITS, Entries, Entry, Layout, refuse_one_class
from ltcore.data.datasets.image_root import Root
from ltcore.data.datasets.json_lists import BALANCED, VALIDATION_OF_BOTH, for_both_trainings, listed_rows, rows_of_split
from ltcore.data.datasets.lists import Row, is_json, named_split, read_list_file
from ltcore.data.shards.remarks import LABELS, LISTED_TWICE
from ltcore.errors import ConfigError, DataError
from ltcore.text import storable

USUAL = DataConfig()
"""Finds columns by their usual names."""
MOST_NAMED = 20
"""Of rows that one message is about."""
_WHOLE = re.compile(r"[0-9]+")
_NO_CLASS = re.compile(r"-[0-9]+|[+-]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""Labels that are numbers, but not of classes."""


def read_lists(root: Root, lists: Iterable[tuple[str, str]], cfg: DataConfig = USUAL) -> Layout:
    """Reads the layout from list files (split, path), whose paths are relative to the root.

    A file is a list of ``path label``, a table, or json of COCO's or GLT's kind, and may be gzipped. Raises DataError with
    file and line.
    """
    rows, files, known = list[Row](), dict[str, str](), set(root.files)
    for word, file in lists:
        split = named_split(word, f"--list {word}=...")
        if split in files:
            raise ConfigError(
                f"--list {word}={file}: there is a list for {split} already, {files[split]}. Merge the two."
            )
        files[split] = file
    if "train" not in files:
        raise DataError(f"there are list files for {', '.join(files)}, but none for train.")
    for split, file in files.items():
        rows += rows_of_split(listed_rows(read_list_file(file), file, cfg), split, file)
    rows, noted = [replace(row, path=beneath(row.path, known)) for row in rows], {}
    if BALANCED in files and is_json(files[BALANCED]):
        rows, noted = for_both_trainings(rows), {"val": VALIDATION_OF_BOTH}
    skipped = set(root.skipped)
    if odd := next((row for row in rows if row.path in skipped), None):
        raise DataError(f"{odd.place}: {odd.path} is no image in {root.where}. Remove the line, or rename the file.")
    refuse_missing(rows, known.__contains__, root.where)
    layout = layout_of(rows, files["train"])
    return replace(layout, provenance={**layout.provenance, **noted})


def beneath(path: str, known: Collection[str]) -> str:
    """Returns the known relative path that a path means, or the path as it is where there is none.

    It may be written ``./cat/1.png`` or ``cat\\1.png``. Lists made on another machine hold its paths:
    ``/data/imagenet/train/n01440764/1.JPEG``. The longest known part counts, and it has a folder at least.
    """
    if path in known:
        return path
    if not path.startswith("/"):
        spellings = (posixpath.normpath(path), posixpath.normpath(path.replace("\\", "/")))
        return next((spelling for spelling in spellings if spelling in known), path)
    parts = path.strip("/").split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts) - 1))
    return next((tail for tail in tails if tail in known), path)


def refuse_missing(rows: Sequence[Row], exists: Callable[[str], bool], where: str) -> None:
    """Raises DataError that names all images at once that are not there, as far as they fit into a message."""
    if missing := [row for row in rows if not exists(row.path)]:
        first = f"{missing[0].place}: there is no {missing[0].path} in {where}"
        if len(missing) == 1:
            raise DataError(f"{first}. Restore it, or remove the line.")
        raise DataError(
            f"{len(missing)} listed images are not in {where}: {_named(missing)}. Restore them, or correct the paths."
        )


def _named(rows: Sequence[Row]) -> str:
    shown = ", ".join(f"{row.path} ({row.place})" for row in rows[:MOST_NAMED])
    return shown + (f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else "")


def layout_of(rows: Sequence[Row], where: str, *, order: Sequence[str] = (), needs_train: bool = True) -> Layout:
    """Returns the layout of listed images; an image without a split is for training.

    Classes are sorted by name, or, where all labels are whole numbers, by number; then their names are those of the
    folders, where every class has a folder of its own. Raises DataError with the rows that contradict each other.

    Args:
        rows: the images; each path may come again with the same label and split, and then counts once.
        where: what to name in a message about all of them.
        order: classes in the order that the data give them, as far as they do.
        needs_train: refuse rows without training images, which can only be evaluated on.
    """
    _refuse_no_labels(rows)
    once = _once(rows)
    splits: dict[str, list[Row]] = {}
    for row in once:
        splits.setdefault(row.split or "train", []).append(row)
    if needs_train and "train" not in splits:
        raise DataError(f"{where} has {', '.join(splits)} but no training image; expected the split train.")
    known = splits.get("train") or once
    classes = _Classes.of(known, order)
    if absent := next((row for row in once if row.label not in classes.numbers), None):
        raise DataError(f"{absent.place}: {absent.path} has label {absent.label}, which no training image has.")
    if "train" in splits:
        refuse_one_class(where, classes.names, "expected two labels or more")
    attributes = tuple(sorted_labels({row.attribute for row in once} - {""}, where))
    attribute_of = {"": -1, **{name: number for number, name in enumerate(attributes)}}
    names = sorted(splits, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    return Layout(
        classes=classes.names,
        splits={
            split: Entries.of(
                Entry(row.path, classes.numbers[row.label], attribute_of[row.attribute]) for row in splits[split]
            )
            for split in names
        },
        attributes=attributes,
        shot_groups=_shot_groups(known, classes),
        provenance={**classes.provenance, **({LISTED_TWICE: len(rows) - len(once)} if len(once) < len(rows) else {})},
    )


def _shot_groups(rows: Sequence[Row], classes: _Classes) -> tuple[str, ...]:
    """Returns the shot group of each class as the rows say it; () where they do not, or not of each class."""
    said: dict[int, Row] = {}
    for row in rows:
        first = said.setdefault(classes.numbers[row.label], row)
        if row.shots != first.shots:
            raise DataError(
                f"{row.place}: {row.path} is of a class with {row.shots or 'unknown'} shots, but {first.path} of the same class "
                f"of {first.shots or 'unknown'} ({first.place}); correct one of them."
            )
    groups = tuple(said[c].shots for c in range(len(classes.names)))
    return groups if all(groups) else ()


def _refuse_no_labels(rows: Sequence[Row]) -> None:
    if empty := [row for row in rows if not row.label]:
        if len(empty) == 1:
            raise DataError(f"{empty[0].place}: {empty[0].path} has no label. Fill it in, or remove the row.")
        raise DataError(f"{len(empty)} images have no label: {_named(empty)}. Fill in the labels, or remove the rows.")
    if odd := next((row for row in rows if _NO_CLASS.fullmatch(row.label)), None):
        raise DataError(
            f"{odd.place}: expected a label that is a class name or a whole number of 0 or more, found {odd.label}. Choose "
            "another column, or write 3 for 3.0."
        )


def _once(rows: Sequence[Row]) -> list[Row]:
    """Returns every image once in each split. Raises DataError where two rows say different things of one.

    Splits of one kind may share images, such as train and train_cbl, or two tests.
    """
    first: dict[str, Row] = {}
    shown: dict[str, Row] = {}
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        by_path, by_picture = first.setdefault(row.path, row), shown.setdefault(row.identity, row)
        found.setdefault((row.path, row.split or "train"), row)
        if row is by_path is by_picture:  # the first that is heard of either
            continue
        said_of_both = [(what, seen) for what in ("label", "split") for seen in (by_path, by_picture)]
        for what, seen in (*said_of_both, ("attribute", by_path)):
            one, other = getattr(seen, what), getattr(row, what)
            if one != other and not (what == "split" and _kind(one) == _kind(other)):
                advice = "splits must be disjoint" if what == "split" else "correct or remove one of the rows"
                as_what = "" if row.path == seen.path else f" as {seen.path}, which shows the same"
                raise DataError(
                    f"{row.place}: {row.path} has the {what} {other or 'train'!r}, but {one or 'train'!r} in {seen.place}"
                    f"{as_what}; {advice}."
                )
    return list(found.values())


def _kind(split: str) -> str:
    """Returns ``train`` for train and train_cbl, and so on."""
    return (split or "train").partition("_")[0]


@dataclass(frozen=True)
class _Classes:
    """The classes of a data set, and how its labels name them."""

    names: tuple[str, ...]
    numbers: Mapping[str, int]
    """Label as it is listed -> class."""
    provenance: Mapping[str, Any]

    @staticmethod
    def of(rows: Sequence[Row], order: Sequence[str]) -> _Classes:
        found = {row.label for row in rows}
        named = [label for label in order if label in found]
        labels = [*named, *sorted_labels(found - set(named), rows[0].origin)]
        numbers = {label: number for number, label in enumerate(labels)}
        if named or not all(map(_WHOLE.fullmatch, labels)):
            return _Classes(tuple(map(storable, labels)), numbers, {})
        names = _folder_names(rows, numbers)
        first, last = int(labels[0]), int(labels[-1])
        if (first, last) == (0, len(labels) - 1):
            return _Classes(names, numbers, {})
        gaps = "" if last - first == len(labels) - 1 else " with gaps"
        said = f"{first} to {last}{gaps}, numbered 0 to {len(labels) - 1} in that order"
        return _Classes(names, numbers, {LABELS: said})


def sorted_labels(labels: Collection[str], where: str) -> list[str]:
    """Sorts by number where all are whole numbers, else by name."""
    if not all(map(_WHOLE.fullmatch, labels)):
        return sorted(labels)
    ordered = sorted(labels, key=lambda label: (int(label), label))
    for one, other in itertools.pairwise(ordered):
        if int(one) == int(other):
            raise DataError(f"{where}: {one!r} and {other!r} are the same number. Write it in one way.")
    return ordered


def _folder_names(rows: Iterable[Row], numbers: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the folder of each class, or the labels as they are where not every class has one of its own."""
    folders: dict[str, set[str]] = {}
    for row in rows:
        folders.setdefault(row.label, set()).add(PurePosixPath(row.path).parent.name)
    names = [storable(next(iter(folders[label]))) for label in numbers if len(folders[label]) == 1]
    return tuple(names) if len(set(names)) == len(numbers) and all(names) else tuple(numbers)
