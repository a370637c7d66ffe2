"""Rows of json files that say which image is of which class: those of COCO's format, and those of the GLT benchmarks.

COCO's format without boxes is that of iNaturalist: ``images``, ``annotations`` and ``categories``. The GLT authors' files
(Tang et al., ECCV 2022) hold all splits of a benchmark: ``train``, ``val``, ``test_lt``, ``test_bl`` and ``test_bbl``, each
with a ``label``, a ``frequency`` (the shot group of its class) and an ``attribute`` for every image, and ``id2cat``. Those of
MSCOCO-GLT name each object by a key, and crop it for each file anew, so that one has two paths. Content tells the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ltcore.data.config import DataConfig
from ltcore.data.datasets.lists import Row, checked_row, is_json, list_text, read_rows
from ltcore.errors import DataError
from ltcore.limits import load_json
from ltcore.shots import SHOT_GROUPS
from ltcore.text import storable

GLT_SPLITS = {
    "train": "train",
    "val": "val",
    "test_bl": "test_cbl",
    "test_bbl": "test_gbl",
    "test_lt": "test_glt",
}
"""The authors' names -> ours."""
BALANCED = "train_cbl"
VALIDATION_OF_BOTH = "what either file sets aside for validation and neither trains on"
_ADVICE = "Download it again"


def listed_rows(data: bytes, uri: str, cfg: DataConfig) -> list[Row]:
    """Reads the rows of a list, table or json file, whose bytes are ``data``, gzipped or not.

    Only the rows of a table with such a column, and of GLT files, name their splits. Raises DataError with file and place.
    """
    return rows_of_json(list_text(data, uri), uri) if is_json(uri) else read_rows(data, uri, cfg)


def rows_of_json(text: str, uri: str) -> list[Row]:
    """Reads the rows of a json file of either kind. Raises DataError where it is neither."""
    try:
        tree = load_json(text)
    except ValueError as error:
        raise DataError(f"{uri} is no readable json ({error}). {_ADVICE}.") from None
    if not isinstance(tree, dict):
        tree = {}
    if isinstance(tree.get("images"), list) and isinstance(tree.get("categories"), list):
        rows = list(_coco_rows(tree, uri))
    elif isinstance(tree.get("id2cat"), dict) and any(split in tree for split in GLT_SPLITS):
        rows = list(_glt_rows(tree, uri))
    else:
        raise DataError(
            f"{uri} lists no images: expected images, annotations and categories as in COCO's and iNaturalist's files, or id2cat "
            f"and {', '.join(GLT_SPLITS)} as in those of the GLT benchmarks."
        )
    if not rows:
        raise DataError(f"{uri} lists no images. {_ADVICE}.")
    return rows


def rows_of_split(rows: Sequence[Row], split: str, uri: str) -> list[Row]:
    """Returns the rows that a file gives to the split for which it is listed.

    A file that names no splits gives all its rows. One of GLT gives all its splits where it is listed for train; for
    train_cbl its training images under that name, and its validation images; for others the images of that split alone.
    """
    if not is_json(uri) or not rows[0].split:
        return [replace(row, split=split) for row in rows]
    if split == "train":
        return list(rows)
    if split == BALANCED:
        names = {"train": BALANCED, "val": "val"}
        return [replace(row, split=names[row.split]) for row in rows if row.split in names]
    found = [row for row in rows if row.split == split]
    if not found:
        raise DataError(f"--list {split}={uri}: the file has no images for it, but for {_splits(rows)}.")
    return found


def for_both_trainings(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of a GLT benchmark with two training splits, such that no training image is in a held-out split.

    The authors' two files are cut out of the same images, each without looking at the other. Both training splits and the
    tests of the protocols stay as published. Validation images are those that either file sets aside and neither trains
    on; test_glt, which holds images of the balanced training split, is left out.
    """
    trained = {name for row in rows if row.split in ("train", BALANCED) for name in (row.path, row.identity)}
    kept = [
        row
        for row in rows
        if row.split != "test_glt" and not (row.split == "val" and trained & {row.path, row.identity})
    ]
    return list({(row.identity, row.split): row for row in reversed(kept)}.values())[::-1]


def _splits(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(row.split for row in rows))


def _glt_rows(tree: Mapping[str, Any], uri: str) -> Iterator[Row]:
    names = tree["id2cat"]
    for theirs, ours in GLT_SPLITS.items():
        part = tree.get(theirs, {})
        labels, attributes, paths, frequencies = (
            _mapping(part, key, f"{uri}, {theirs}") for key in ("label", "attribute", "path", "frequency")
        )
        for number, (key, label) in enumerate(labels.items(), 1):
            name = names.get(str(label)) if isinstance(label, str | int) else None
            if not isinstance(name, str):
                raise DataError(
                    f"{uri}, {theirs}: {key[:200]!r} has the label {label!r}, which id2cat lacks. {_ADVICE}."
                )
            attribute, path = attributes.get(key, ""), paths.get(key, key)
            if not isinstance(attribute, str | int) or not isinstance(path, str):
                raise DataError(
                    f"{uri}, {theirs}: {key[:200]!r} needs a number as its attribute and a text as its path."
                )
            row = checked_row(f"{uri}, {theirs}, image", number, (path, name, ours, storable(str(attribute))))
            picture = key if key in paths else ""
            yield replace(
                row, picture=picture, shots=_shot_group(frequencies.get(key), f"{uri}, {theirs}: {key[:200]!r}")
            )


def _shot_group(frequency: Any, where: str) -> str:
    if frequency is None:
        return ""
    if frequency not in (*range(len(SHOT_GROUPS)), *map(str, range(len(SHOT_GROUPS)))):
        raise DataError(
            f"{where} has the frequency {frequency!r}, expected 0 (many), 1 (medium) or 2 (few). {_ADVICE}."
        )
    return SHOT_GROUPS[int(frequency)]


def _mapping(part: Any, key: str, where: str) -> Mapping[str, Any]:
    found = part.get(key, {}) if isinstance(part, dict) else None
    if not isinstance(found, dict):
        raise DataError(f"{where}: expected {key!r} to be a mapping from images. {_ADVICE}.")
    return found


def _coco_rows(tree: Mapping[str, Any], uri: str) -> Iterator[Row]:
    names = _category_names(tree["categories"], uri)
    labels: dict[Any, Any] = {}
    for number, note in enumerate(_objects(tree, "annotations", ("image_id", "category_id"), uri), 1):
        image, label = note["image_id"], note["category_id"]
        if label not in names:
            raise DataError(f"{uri}, annotation {number}: category {label!r} is not among the categories. {_ADVICE}.")
        if labels.setdefault(image, label) != label:
            raise DataError(
                f"{uri}, annotation {number}: image {image!r} is of {names[labels[image]]} and of {names[label]}; expected "
                "one class for each image, as for classification."
            )
    for number, image in enumerate(_objects(tree, "images", ("id", "file_name"), uri), 1):
        name, label = image["file_name"], labels.get(image["id"])
        cells = (name if isinstance(name, str) else "", "" if label is None else names[label], "", "")
        yield checked_row(f"{uri}, image", number, cells)


def _objects(tree: Mapping[str, Any], name: str, keys: tuple[str, str], uri: str) -> Iterator[Mapping[str, Any]]:
    """Yields the objects of a list. Raises DataError for one that lacks the keys, or whose keys are no plain values."""
    listed = tree.get(name)
    for number, found in enumerate(listed if isinstance(listed, list) else [], 1):
        if not isinstance(found, dict) or any(not isinstance(found.get(key), str | int) for key in keys):
            raise DataError(
                f"{uri}: expected {' and '.join(keys)} in each of {name}, not so in number {number}. {_ADVICE}."
            )
        yield found


def _category_names(categories: Sequence[Any], uri: str) -> dict[Any, str]:
    """Returns category id -> class: the names where each has one of its own, else the ids."""
    found = {c["id"]: str(c["name"]) for c in _objects({"categories": categories}, "categories", ("id", "name"), uri)}
    own = len(set(found.values())) == len(found) and all(found.values())
    return found if own else {number: str(number) for number in found}
