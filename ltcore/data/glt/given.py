"""Attributes that somebody gives beside the images: in a file, or as a level of the folders."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from ltcore.data.config import DataConfig
from ltcore.data.datasets.folder_layout import Layout, refuse_one_class
from ltcore.data.datasets.listed import sorted_labels
from ltcore.data.datasets.lists import file_name, read_list_file, read_rows
from ltcore.errors import DataError
from ltcore.limits import MAX_CELL_CHARS, load_json
from ltcore.text import glimpse, storable


def attributes_by_level(layout: Layout, level: int, where: str) -> Layout:
    """Returns the layout of nested folders with one level as the attribute and the others as the class.

    Args:
        layout: its classes are whole paths of folders, ``siamese/indoors``.
        level: which part of that path is the attribute, from 1.
        where: what to name in a message.

    Raises DataError where a folder has no such level or only that one, or nothing can be told apart.
    """
    parts = [name.split("/") for name in layout.classes]
    if odd := next((name for name, p in zip(layout.classes, parts, strict=True) if len(p) < max(level, 2)), ""):
        raise DataError(
            f"{where}: --attributes-from {level} needs two levels of folders or more, class and attribute, and {odd} has "
            f"{odd.count('/') + 1}."
        )
    classes_of = ["/".join(p[: level - 1] + p[level:]) for p in parts]
    classes, attributes = (tuple(sorted(set(names))) for names in (classes_of, [p[level - 1] for p in parts]))
    refuse_one_class(where, classes, f"is level {level} the class?")
    label, attribute = ({name: n for n, name in enumerate(names)} for names in (classes, attributes))
    label_C = np.array([label[name] for name in classes_of], np.int32)
    attribute_C = np.array([attribute[p[level - 1]] for p in parts], np.int32)
    splits = {
        split: replace(entries, labels_N=label_C[entries.labels_N], attributes_N=attribute_C[entries.labels_N])
        for split, entries in layout.splits.items()
    }
    return replace(layout, classes=classes, attributes=attributes, splits=splits)


def read_attributes(uri: str) -> tuple[tuple[str, ...], dict[str, str], str]:
    """Reads which image has which attribute; returns names in order, path -> name, and a digest of the file.

    A json file holds an object ``{path: attribute}``, a table (csv, tsv) has the columns of an image and ``attribute``, a
    list has lines of ``path attribute``. Names are sorted, numbers by value. Raises DataError with file and place.
    """
    data = read_list_file(uri)
    if file_name(uri).lower().endswith(".json"):
        by_path = _of_json(data, uri)
    else:
        rows = read_rows(data, uri, DataConfig(label_column="attribute") if _is_table(uri) else DataConfig())
        by_path = {}
        for row in rows:
            if row.label and by_path.setdefault(row.path, storable(row.label)) != storable(row.label):
                raise DataError(
                    f"{row.place}: {row.path} has two attributes, {by_path[row.path]} and {row.label}. Keep one."
                )
    if not by_path:
        raise DataError(f"{uri} gives no image an attribute.")
    names = tuple(sorted_labels(set(by_path.values()), uri))
    return names, by_path, hashlib.sha256(data).hexdigest()


def _is_table(uri: str) -> bool:
    return file_name(uri).lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def _of_json(data: bytes, uri: str) -> dict[str, str]:
    try:
        found: Any = load_json(data)
    except ValueError as error:
        raise DataError(f"{uri} is no readable json ({error}). Correct it.") from error
    if not isinstance(found, dict):
        raise DataError(f'{uri} holds a {type(found).__name__}, expected an object {{"path": "attribute", ...}}.')
    by_path = {}
    for path, value in found.items():
        if not isinstance(value, str | int) or isinstance(value, bool) or not 0 < len(str(value)) <= MAX_CELL_CHARS:
            raise DataError(
                f"{uri}: {glimpse(path)} has {glimpse(value)}, expected the name of an attribute or a whole number."
            )
        by_path[path] = storable(str(value))
    return by_path
