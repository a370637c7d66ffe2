"""Classes of tars of others: their labels are numbers or names, and a file beside the tars may name the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
    def beside(cls, base: str) -> Classes:
        """Reads ``classes.txt`` (a name per line) or ``dataset_info.json`` (of Hugging Face) in the folder of the tars.

        Without them there are no names. Raises DataError for a file that makes no sense.
        """
        for name, parse in ((NAMES_FILE, _lines), (INFO_FILE, _features)):
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

    def chosen(self, train_labels: Iterable[str]) -> tuple[tuple[str, ...], dict[str, int]]:
        """Returns the names of the classes, and the position of each label in them.

        Without names of a file, the classes are the labels that training has: by number if all are numbers, else by name.
        """
        found = set(train_labels)
        numbers = all(map(_is_number, found))
        if self.names:
            texts = map(str, range(len(self.names))) if numbers else self.names
            return self.names, {label: position for position, label in enumerate(texts)}
        ordered = tuple(sorted(found, key=int) if numbers else sorted(found))
        return ordered, {label: position for position, label in enumerate(ordered)}


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdecimal()


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _features(text: str) -> tuple[str, ...]:
    """Returns the names of the first feature that is a ``ClassLabel``, if there is one."""
    value: Any = load_json(text)
    features = value.get("features") if isinstance(value, dict) else None
    for feature in features.values() if isinstance(features, dict) else ():
        if (
            isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
        ):
            return tuple(map(str, feature["names"]))
    return ()


def _checked(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    if not 0 < len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise DataError(
            f"{where} has {len(names)} names, {len(set(names))} of them different; expected 1 to {MAX_CLASSES} different "
            "ones, a line each. Correct or remove it."
        )
    return names
