"""Classes of tars of others: their labels are numbers or names, and a file beside the tars may name the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ltcore import storage
from ltcore.errors import DataError
from ltcore.limits import MAX_CLASSES, MAX_CLASSES_BYTES, load_json

NAMES_FILE, INFO_FILE = "classes.txt", "dataset_info.json"


@dataclass(frozen=True)
class Classes:
    """The names of the classes by their numbers, where a file beside the tars gives them."""

    names: tuple[str, ...] = ()
    where: str = ""

    @classmethod
    def beside(cls, base: str, label_key: str | None = None) -> Classes:
        """Reads ``classes.txt`` (a name per line) or ``dataset_info.json`` (of Hugging Face) in the folder of the tars.

        In the second it takes the label of ``data.label_key``, else ``label`` or the first one. Without them there are no
        names. Raises DataError for a file that makes no sense.
        """
        for name, parse in ((NAMES_FILE, _lines), (INFO_FILE, partial(_features, label_key))):
            where = storage.join(base, name)
            if not storage.exists(where):
                continue
            try:
                names = parse(storage.read_bytes(where, most_bytes=MAX_CLASSES_BYTES).decode("utf-8-sig"))
            except ValueError as error:
                raise DataError(f"{where} cannot be read as class names ({error}). Correct or remove it.") from error
            if names or name == NAMES_FILE:
                return cls(_checked(names, where), where)
        return cls()

    def has(self, label: str) -> bool:
        """Tells whether the file names the label, itself or as a number."""
        return label in self.names or (_is_number(label) and label in map(str, range(len(self.names))))

    def chosen(self, train_labels: Iterable[str]) -> tuple[tuple[str, ...], dict[str, int]]:
        """Returns the names of the classes, and the position of each label in them.

        They are the labels that training has: in the order of the file that names them, where there is one, else by number if
        all are numbers, else by name.
        """
        found = set(train_labels)
        numbers = all(map(_is_number, found))
        if self.names:
            named = zip(map(str, range(len(self.names))) if numbers else self.names, self.names, strict=True)
            there = [(label, name) for label, name in named if label in found]
            return tuple(name for _, name in there), {label: at for at, (label, _) in enumerate(there)}
        ordered = tuple(sorted(found, key=int) if numbers else sorted(found))
        return ordered, {label: position for position, label in enumerate(ordered)}


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdecimal()


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _features(label_key: str | None, text: str) -> tuple[str, ...]:
    """Returns the names of the feature ``label_key``, else of ``label`` or the first one, if that is a ``ClassLabel``."""
    value: Any = load_json(text)
    features = value.get("features") if isinstance(value, dict) else None
    found = {
        name: tuple(map(str, feature["names"]))
        for name, feature in (features.items() if isinstance(features, dict) else ())
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }
    if label_key is not None:
        return found.get(label_key, ())
    return found.get("label") or next(iter(found.values()), ())


def _checked(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    if not 0 < len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise DataError(
            f"{where} has {len(names)} names, {len(set(names))} of them different; expected 1 to {MAX_CLASSES} different "
            "ones, a line each. Correct or remove it."
        )
    return names
