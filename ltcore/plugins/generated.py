"""Sections of keys that are made from the rows of a registry, and that grow with the parts of plugins."""

from __future__ import annotations

import dataclasses
from collections.abc import MutableMapping
from dataclasses import field, make_dataclass
from typing import Any

COPIED = ("__init__", "__repr__", "__eq__", "__hash__", "__match_args__", "__dataclass_fields__", "__annotations__")


def generate(name: str, module: str, doc: str, fields: list[tuple[str, Any, Any]]) -> type:
    """Makes a frozen dataclass that pickle and pydantic find in ``module``."""
    made = make_dataclass(name, fields, frozen=True, kw_only=True)
    made.__module__ = module  # make_dataclass sets 'types', but pickle and pydantic look classes up by module
    made.__doc__ = doc
    return made


def grow(section: type, name: str, config: type, *, optional: bool) -> None:
    """Adds a field to a class of ``generate``, in place: configurations elsewhere refer to this very class.

    ``config`` types the section; an optional one is null by default.
    """
    before = [(f.name, f.type, _default(f)) for f in dataclasses.fields(section)]
    new = field(default=None) if optional else field(default_factory=config)
    fields = [*before, (name, config | None if optional else config, new)]
    made = make_dataclass(section.__name__, fields, frozen=True, kw_only=True)
    for attribute in COPIED:
        setattr(section, attribute, getattr(made, attribute))
    setattr(section, name, None if optional else config())  # what instances have that were made before


def _default(old: dataclasses.Field[Any]) -> Any:
    if old.default_factory is not dataclasses.MISSING:
        return field(default_factory=old.default_factory)
    return field(default=old.default)


def add_row(table: MutableMapping[str, Any], kind: str, name: str, row: Any) -> None:
    """Adds the row of a plugin to a registry. Raises ValueError where the name is taken."""
    if name in table:
        raise ValueError(f"the {kind} {name!r} exists already in ltcore: give it another name.")
    table[name] = row
