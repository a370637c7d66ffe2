"""Objects of MSCOCO with boxes, categories and attributes, read from annotation files too large to be held at once.

The attributes are those of COCO Attributes (Patterson and Hays, ECCV 2016): for every annotated object a score for each of
204 attributes, above one half where it has the attribute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ltcore import storage
from ltcore.data.datasets.longtail import IntArray
from ltcore.errors import DataError
from ltcore.limits import MAX_ATTRIBUTES, MAX_ENTRY_BYTES, MAX_ENTRY_DEPTH, MAX_NAME_CHARS, MAX_OBJECTS
from ltcore.text import glimpse, storable

POSITIVE_ABOVE = 0.5
_PART_BYTES = 2**13
"""Read at a time. A text that is not whole yet is scanned anew with each part, and their events are held."""
_STEPS = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}

T = TypeVar("T")
Box = tuple[float, float, float, float]
"""(left, top, width, height) in pixels, as in COCO's files."""


@dataclass(frozen=True)
class CocoObjects:
    """Annotated objects, sorted by key."""

    keys: tuple[str, ...]
    """Ids that COCO Attributes gives to objects."""
    classes: tuple[str, ...]
    """Categories that occur, sorted by name."""
    labels_N: IntArray
    attributes: tuple[str, ...]
    positive_NA: NDArray[np.bool_]
    """Which object has which attributes."""
    image_ids: tuple[int, ...]
    boxes: tuple[Box, ...]


def read_objects(instances: Sequence[Path], attributes: Path) -> CocoObjects:
    """Reads the objects that have attributes; their boxes and categories are in the ``instances`` files.

    Raises DataError where a file is damaged or lacks one of the objects.
    """
    names, vectors, annotation_of = _read_attributes(attributes)
    wanted = set(annotation_of.values())
    found: dict[int, _Annotation] = {}
    categories: dict[int, str] = {}
    for file in instances:
        categories |= dict(_entries(file, "categories.item", _category))
        found |= {
            note.number: note for note in _entries(file, "annotations.item", _annotation) if note.number in wanted
        }
    keys = tuple(sorted(vectors))
    for key in keys:
        if annotation_of.get(key) not in found:
            raise DataError(
                f"{attributes}: object {key[:200]!r} is in none of {', '.join(file.name for file in instances)}; expected COCO's "
                "instances files of both train and val."
            )
    rows = [found[annotation_of[key]] for key in keys]
    if odd := next((row for row in rows if row.category not in categories), None):
        raise DataError(f"{instances[0].parent}: category {odd.category} of an object is not among the categories.")
    named = [categories[row.category] for row in rows]
    classes = tuple(sorted(set(named)))
    labels = {name: label for label, name in enumerate(classes)}
    return CocoObjects(
        keys=keys,
        classes=classes,
        labels_N=np.array([labels[name] for name in named], np.int64),
        attributes=names,
        positive_NA=np.stack([vectors[key] for key in keys]),
        image_ids=tuple(row.image for row in rows),
        boxes=tuple(row.box for row in rows),
    )


def _read_attributes(file: Path) -> tuple[tuple[str, ...], dict[str, NDArray[np.bool_]], dict[str, int]]:
    """Returns attribute names, object -> which of them it has, and object -> number of its annotation in COCO."""
    listed = sorted(
        _entries(file, "attributes.item", lambda entry: (_whole(entry["id"]), _name(entry["name"])), MAX_ATTRIBUTES)
    )
    if not listed:
        raise DataError(f"{file} lists 0 attributes, expected 1 to {MAX_ATTRIBUTES}.")

    def vector(entry: tuple[str, Any]) -> tuple[str, NDArray[np.bool_]]:
        scores = np.asarray(entry[1], np.float32)
        if scores.shape != (len(listed),):
            raise ValueError(f"{len(entry[1])} scores for {len(listed)} attributes")
        return entry[0], scores > POSITIVE_ABOVE

    vectors = dict(_entries(file, "ann_vecs", vector))
    annotation_of = dict(_entries(file, "patch_id_to_ann_id", lambda entry: (entry[0], _whole(entry[1]))))
    if not vectors:
        raise DataError(
            f"{file} has no object; expected attributes, ann_vecs and patch_id_to_ann_id, as COCO Attributes."
        )
    return tuple(name for _, name in listed), vectors, annotation_of


def _entries(file: Path, prefix: str, read: Callable[[Any], T], most: int | None = None) -> Iterator[T]:
    """Yields the elements of a list (``name.item``) or the (key, value) pairs of an object, one in memory at a time.

    Raises DataError where there are more than ``most``, for None more than objects, and where one is larger than any of COCO.
    """
    import ijson

    most = MAX_OBJECTS if most is None else most
    with storage.open_file(str(file)) as stream:
        name, is_list, number = prefix.removesuffix(".item"), prefix.endswith(".item"), 0
        try:
            for number, (key, entry) in enumerate(
                _values(file, stream, name, "start_array" if is_list else "start_map"), 1
            ):
                if number > most:
                    raise _foreign(file, f"more than {most} {name}")
                yield read(entry if is_list else (key, entry))
        except ijson.JSONError as error:
            raise DataError(
                f"{file} is no readable json ({str(error).partition(chr(10))[0]}). Download it again."
            ) from error
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise DataError(
                f"{file}: number {number} of {name} cannot be read ({glimpse(error, 200)}). Download it again."
            ) from error


def _values(file: Path, stream: IO[bytes], name: str, start: str) -> Iterator[tuple[str, Any]]:
    """Yields the entries of the list or object ``name``, which begins with the event ``start``; in an object with their keys.

    Events come without the path to them, which a file could make as long as itself for each one.
    """
    import ijson
    from ijson.common import ObjectBuilder

    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events, use_float=True)
    key, inside, entry, depth, held_bytes = "", False, None, 0, 0
    while data := stream.read(_PART_BYTES):
        parser.send(data)
        held_bytes += len(data)
        for event, value in events:
            depth += (step := _STEPS.get(event, 0))
            if depth > MAX_ENTRY_DEPTH:
                raise _foreign(file, f"more than {MAX_ENTRY_DEPTH} lists in each other")
            if entry is not None:
                entry.event(event, value)
            elif event == "map_key":
                key = value
            elif step and depth < 3:
                inside = step > 0 and depth == 2 and key == name and event == start
            elif inside:
                entry = ObjectBuilder()
                entry.event(event, value)
            if entry is not None and depth == 2:
                yield _name(key), entry.value
                entry, held_bytes = None, 0
        if events and entry is None:
            held_bytes = 0
        if held_bytes > MAX_ENTRY_BYTES:
            raise _foreign(file, f"an entry of more than {MAX_ENTRY_BYTES} bytes")
        events.clear()
    parser.close()


def _foreign(file: Path, what: str) -> DataError:
    return DataError(f"{file} has {what}, expected those of COCO. Check that it is the right file.")


def _category(entry: Any) -> tuple[int, str]:
    return _whole(entry["id"]), _name(entry["name"])


def _name(value: Any) -> str:
    if len(name := storable(str(value))) > MAX_NAME_CHARS:
        raise ValueError(f"a name of {len(name)} characters, expected at most {MAX_NAME_CHARS}")
    return name


class _Annotation(NamedTuple):
    number: int
    image: int
    category: int
    box: Box


def _annotation(entry: Any) -> _Annotation:
    left, top, width, height = (float(x) for x in entry["bbox"])
    if not all(map(math.isfinite, (left, top, width, height))):
        raise ValueError(f"bbox {entry['bbox']}")
    number, image, category = (_whole(entry[key]) for key in ("id", "image_id", "category_id"))
    return _Annotation(number, image, category, (left, top, width, height))


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value
