"""Which image is of which class and split: read off the folders, or off list files."""

from __future__ import annotations

import gzip
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ltcore.data.datasets.image_root import Root
from ltcore.errors import ConfigError, DataError, nearest

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What people call the splits, in any case."""
MAX_DIGITS = 18
MAX_LIST_BYTES = 2**28
"""Of a list file, unpacked: 4 million lines."""
LAYOUTS = "train|val|test/<class>/<image> or <class>/<image>"


@dataclass(frozen=True)
class Entry:
    """One image and its class."""

    path: str
    label: int


@dataclass(frozen=True)
class Layout:
    """What belongs where; the split ``train`` is there unless the data are for evaluation alone."""

    classes: tuple[str, ...]
    splits: dict[str, list[Entry]]


def split_of(word: str) -> str:
    """Returns the split that a word means, or '' where it means none.

    Known words are train, Training, valid, dev and others.
    """
    return SPLIT_WORDS.get(word.lower(), "")


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
        _refuse_one_class(root.where, classes, expected)
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


def _refuse_one_class(where: str, classes: Sequence[str], expected: str) -> None:
    if len(classes) == 1:
        raise DataError(
            f"{where}: all training images are of one class, {classes[0]!r}, so nothing can be learned; {expected}"
        )


def list_split(word: str) -> str:
    """Returns the split of a list file; ``train_...`` and ``test_...`` name further ones.

    Raises ConfigError for other words.
    """
    split = split_of(word)
    if not split and word.split("_")[0] in ("train", "test"):
        return word
    if not split:
        raise ConfigError(
            f"--list {word}=...: there is no such split.{nearest(word, SPLIT_WORDS)} Known: {', '.join(SPLIT_WORDS)}, and "
            "train_... and test_... for further ones."
        )
    return split


def read_lists(root: Root, lists: Iterable[tuple[str, str]]) -> Layout:
    """Reads the layout from list files (split, path), OLTR style.

    A line is ``path label``, the path relative to the root. Files may be gzipped. Where every label has a folder of its
    own, the folders name the classes; else the numbers do. Raises DataError with file and line.
    """
    files: dict[str, str] = {}
    for word, file in lists:
        split = list_split(word)
        if split in files:
            raise ConfigError(
                f"--list {word}={file}: there is a list for {split} already, {files[split]}. Merge the two."
            )
        files[split] = file
    if "train" not in files:
        raise DataError(f"there are list files for {', '.join(files)}, but none for train.")
    known = set(root.files)
    splits = {split: _read_list(root, known, file) for split, file in files.items()}
    num_classes = _num_classes(splits["train"], files["train"])
    for split, entries in splits.items():
        for entry in entries:
            if entry.label >= num_classes:
                raise DataError(
                    f"{files[split]}: {entry.path} has label {entry.label}, but training labels end at {num_classes - 1}."
                )
    seen: dict[str, str] = {}
    for split, entries in splits.items():
        for entry in entries:
            if seen.setdefault(entry.path, split) != split:
                raise DataError(
                    f"{files[split]}: {entry.path} is in {seen[entry.path]} as well; splits must be disjoint."
                )
    classes = _names(splits["train"], num_classes)
    _refuse_one_class(files["train"], classes, "expected labels 0, 1, ...")
    return Layout(classes, splits)


def _num_classes(train: Sequence[Entry], file: str) -> int:
    """Returns one more than the largest label.

    Raises DataError where that exceeds the number of images, since every class needs one.
    """
    last = max(train, key=lambda entry: entry.label)
    if last.label >= len(train):
        raise DataError(
            f"{file}: {last.path} has label {last.label}, but with {len(train)} images there can be labels 0 to "
            f"{len(train) - 1} at most. Number the classes from 0 on."
        )
    return last.label + 1


def _read_list(root: Root, known: set[str], file: str) -> list[Entry]:
    entries = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal() or len(label) > MAX_DIGITS:
            raise DataError(
                f"{file}, line {number}: expected 'path label' with a label of 0 or more, found {line.strip()[:200]!r}."
            )
        if path not in known:
            raise DataError(f"{file}, line {number}: there is no {path} in {root.where}.")
        entries.append(Entry(path, int(label)))
    if not entries:
        raise DataError(f"{file} is empty; expected lines of 'path label'.")
    return entries


def _lines(file: str) -> Iterator[str]:
    try:
        with gzip.open(file) if file.endswith(".gz") else Path(file).open("rb") as stream:
            data = stream.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise DataError(f"{file} is larger than {MAX_LIST_BYTES} bytes, unpacked; expected lines of 'path label'.")
        yield from (line.decode() for line in io.BytesIO(data))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no readable list ({error}); expected lines of 'path label'.") from error


def _names(entries: Sequence[Entry], num_classes: int) -> tuple[str, ...]:
    folders: dict[int, set[str]] = {}
    for entry in entries:
        folders.setdefault(entry.label, set()).add(PurePosixPath(entry.path).parent.name)
    names = [next(iter(folders[c])) for c in range(num_classes) if len(folders.get(c, ())) == 1]
    return tuple(names) if len(set(names)) == num_classes else tuple(str(c) for c in range(num_classes))
