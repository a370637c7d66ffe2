"""Frozen dataclasses as JSON and back, and files that hold one.

What is read back is checked field by field, so that a damaged file is one sentence with its name. Pydantic is not used
here: it refuses text that is no UTF-8, such as the name of a folder, which JSON escapes and the records hold.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from ltcore.errors import DamagedFileError
from ltcore.storage import DAMAGED, join, read_json, write_json
from ltcore.text import glimpse

Decoder = Callable[[Any], Any]


class JsonRecord:
    """A frozen dataclass that travels as JSON.

    A field whose default is None is left out of the JSON where it is None; all others have to be there. Fields that are
    not known are passed over. A ``__post_init__`` checks what types cannot say; the text of its ValueError begins with the
    name of the field.
    """

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        fields: dict[str, Any] = encode(self)
        return fields

    @classmethod
    def from_json(cls, value: Any, where: str) -> Self:
        """Reads the fields back.

        Raises DamagedFileError with ``where`` and the first field that is missing or wrong.
        """
        try:
            record: Self = _decoder(cls)(value)  # type: ignore[arg-type]  # a class is hashable
        except _WrongError as wrong:
            raise DamagedFileError(f"{where}: {wrong.sentence()} {DAMAGED}") from None
        return record


class StoredRecord(JsonRecord):
    """A record that is a file of its own in the folder of what it describes."""

    FILE: ClassVar[str]

    @classmethod
    def read(cls, folder: str | Path) -> Self | None:
        """Reads the record of a folder; None where there is none.

        Raises DamagedFileError with the name of a file that is damaged.
        """
        file = join(str(folder), cls.FILE)
        value = read_json(file)
        return None if value is None else cls.from_json(value, file)

    def write(self, folder: str | Path, fence: Callable[[], None] = lambda: None) -> None:
        """Writes the whole file or nothing; ``fence`` is asked before every attempt."""
        write_json(join(str(folder), self.FILE), self.to_json(), fence)


R = TypeVar("R", bound=StoredRecord)


class RecordFile(Generic[R]):
    """The present record of something that goes on, and its file; without a folder there is no file.

    ``check`` is called before every attempt to write, and raises where the place is another process's by now.
    """

    def __init__(self, folder: str | Path | None, value: R, check: Callable[[], None] = lambda: None) -> None:
        self._folder, self.value, self.check = folder, value, check

    def update(self, **fields: Any) -> None:
        """Replaces fields of the record and writes the file."""
        self.value = dataclasses.replace(self.value, **fields)  # type: ignore[type-var]  # every record is a dataclass
        self.write()

    def write(self) -> None:
        """Writes the whole file. Raises DataError where the place cannot be written, or is another process's."""
        if self._folder is not None:
            self.value.write(self._folder, self.check)


def encode(value: Any) -> Any:
    """Returns a value as JSON: dataclasses and mappings as objects, sequences as lists, times as ISO 8601."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: encode(inner) for field, inner in found if inner is not None or field.default is not None}
    if isinstance(value, Mapping):
        return {key: encode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [encode(inner) for inner in value]
    return value.isoformat(timespec="seconds") if isinstance(value, datetime.datetime) else value


class _WrongError(Exception):
    """What a value should be and is not; on its way up it learns where it stands."""

    def __init__(self, words: str) -> None:
        self._words, self._path = words, ""

    def below(self, place: str) -> _WrongError:
        """Puts the name of what holds the value before its path."""
        self._path = f"{place}{'.' if self._path and not self._path.startswith('[') else ''}{self._path}"
        return self

    def sentence(self) -> str:
        return f"{self._path or 'the record'} {self._words}."


def _expected(kind: str, value: Any) -> _WrongError:
    return _WrongError(f"is {glimpse(value)}, expected {kind}")


@functools.cache
def _decoder(kind: Any) -> Decoder:
    """Returns the function that turns a JSON value into a ``kind``, which is one of the types of records."""
    if dataclasses.is_dataclass(kind):
        return _decode_object(kind)
    makers: dict[Any, Callable[..., Decoder]] = {
        Union: _decode_optional,
        UnionType: _decode_optional,
        Literal: _decode_literal,
        Mapping: _decode_mapping,
        Sequence: functools.partial(_decode_list, list),
        tuple: functools.partial(_decode_list, tuple),
    }
    origin = get_origin(kind)
    if origin is not None:
        return makers[origin](*get_args(kind))
    return {Any: lambda value: value, datetime.datetime: _decode_time}.get(kind) or _decode_plain(kind)


def _decode_object(kind: Any) -> Decoder:
    types = get_type_hints(kind)
    fields = {field.name: (_decoder(types[field.name]), field.default is None) for field in dataclasses.fields(kind)}

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _expected("an object", value)
        found = {}
        for name, (inner, optional) in fields.items():
            if name not in value:
                if optional:
                    continue
                raise _WrongError("is missing").below(name)
            try:
                found[name] = inner(value[name])
            except _WrongError as wrong:
                raise wrong.below(name) from None
        try:
            return kind(**found)
        except ValueError as error:  # of a __post_init__
            name, _, words = str(error).partition(" ")
            raise _WrongError(words).below(name) from None

    return decode


def _decode_mapping(_: Any, item: Any) -> Decoder:
    inner = _decoder(item)

    def decode(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _expected("an object", value)
        found = {}
        for key, held in value.items():
            try:
                found[key] = inner(held)
            except _WrongError as wrong:
                raise wrong.below(key) from None
        return found

    return decode


def _decode_list(make: Callable[[list[Any]], Any], item: Any, *_: Any) -> Decoder:
    inner = _decoder(item)

    def decode(value: Any) -> Any:
        if not isinstance(value, list):
            raise _expected("a list", value)
        found: list[Any] = []
        try:
            for held in value:
                found.append(inner(held))
        except _WrongError as wrong:
            raise wrong.below(f"[{len(found)}]") from None
        return make(found)

    return decode


def _decode_optional(*kinds: Any) -> Decoder:
    (inner,) = (_decoder(kind) for kind in kinds if kind is not NoneType)
    return lambda value: None if value is None else inner(value)


def _decode_literal(*allowed: Any) -> Decoder:
    def decode(value: Any) -> Any:
        if isinstance(value, bool) or value not in allowed:
            raise _expected(" or ".join(str(one) for one in allowed), value)
        return value

    return decode


def _decode_time(value: Any) -> datetime.datetime:
    try:
        time = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _expected("a time such as 2026-01-02T03:04:05+00:00", value) from None
    if time.tzinfo is None:
        raise _expected("a time with its offset from UTC", value)
    return time


def _decode_plain(kind: type) -> Decoder:
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
    accepted = (int, float) if kind is float else (kind,)  # JSON may write 1.0 as 1
    numeric = kind is not bool

    def decode(value: Any) -> Any:
        if not isinstance(value, accepted) or (numeric and isinstance(value, bool)):
            raise _expected(words, value)
        if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:  # infinite, none, or beyond floats
            raise _expected(words, value)
        return value

    return decode
