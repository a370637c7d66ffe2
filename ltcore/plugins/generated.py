"""Sections of keys that are made from the rows of a registry, and that grow with the parts of plugins."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, MutableMapping
from dataclasses import field, make_dataclass
from typing import Any

from ltcore.plugins.parts import Part, has_options

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


def grow_if_it_has_options(section: type, part: Part) -> None:
    """Adds the options of a part of a kind that need not have any."""
    if has_options(part.build):
        grow(section, part.name, part.build.Config, optional=False)


def configured(build: Any, section: Any, name: str) -> Any:
    """Returns a part as it is used: one with options is made with those of ``section``, once in a process."""
    return _made(build, getattr(section, name)) if has_options(build) else build


@functools.cache
def _made(build: Any, options: Any) -> Any:
    return build(options)


def refuse_idle(section: Any, chosen: Collection[str], key: str) -> None:
    """Raises ValueError where ``section`` says something of a part that ``key`` does not choose."""
    for part in dataclasses.fields(section):
        options = getattr(section, part.name)
        if part.name not in chosen and options != type(options)():
            raise ValueError(f"the options of {part.name} have no effect: remove them or set {key}={part.name}")


def _default(old: dataclasses.Field[Any]) -> Any:
    if old.default_factory is not dataclasses.MISSING:
        return field(default_factory=old.default_factory)
    return field(default=old.default)


def add_row(table: MutableMapping[str, Any], kind: str, name: str, row: Any) -> None:
    """Adds the row of a plugin to a registry. Raises ValueError where the name is taken."""
    if name in table:
        raise ValueError(f"the {kind} {name!r} exists already in ltcore: give it another name.")
    table[name] = row
