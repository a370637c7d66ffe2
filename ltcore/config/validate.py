"""Typing of a tree by pydantic, and pydantic's errors as one sentence per key. Nothing else here imports pydantic."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ltcore.config.keys import REQUIRED, Leaf, Section
from ltcore.config.overrides import checked, expected
from ltcore.config.plugged import without_idle
from ltcore.errors import ConfigError
from ltcore.plugins.loading import known, loaded
from ltcore.plugins.source import Plugin

T = TypeVar("T")
_SHOWN = 200
"""Characters of a wrong value that its error repeats."""


def validate(kind: type[T], section: Section, tree: Mapping[str, Any], prefix: str = "") -> T:
    """Makes an instance of the dataclass ``kind`` from a tree. Raises ConfigError that names every wrong key."""
    try:
        instance: T = _adapter(kind, loaded()).validate_python(checked(tree, section))  # type: ignore[arg-type]  # a class is hashable
        return instance
    except ValidationError as error:
        problems = [_sentence(problem, section, prefix) for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None


@functools.cache
def _adapter(kind: Any, _plugins: tuple[Plugin, ...]) -> TypeAdapter[Any]:
    """Returns the adapter for the classes as they are with the parts of the plugins."""
    return TypeAdapter(kind)


def _sentence(problem: Any, section: Section, prefix: str) -> str:
    path = [part for part in problem["loc"] if isinstance(part, str)]
    key = prefix + ".".join(path)
    if problem["type"] == "missing":
        return f"{key}: required key is missing (ltcore keys {key})."
    node: Leaf | Section | None = section
    for name in path:
        node = node.fields.get(name) if isinstance(node, Section) else None
    if problem["type"] == "value_error":  # from a __post_init__: its message starts with the field's name
        words = str(problem["ctx"]["error"])
        end = "" if words.endswith("?") else "."
        return f"{key}.{words}{end}" if path else f"{prefix}{words}{end}"
    kind = node.type if isinstance(node, Leaf) else "a section"
    value = problem["input"]
    shown = value if isinstance(value, str) else repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return f"{key}={shown}: expected {expected(kind)} (ltcore keys {key})."


def shape(name: str) -> type:
    """Returns dataclasses with the fields, types and defaults of a run.

    They are made from its keys, without the owners' checks.
    """
    return _shape_with(name, known())


@functools.cache
def _shape_with(name: str, _plugins: tuple[Plugin, ...]) -> type:
    from ltcore.config.keys import run_keys

    return _shape(name, run_keys())


def _shape(name: str, section: Section) -> type:
    members: list[Any] = []
    for key, value in section.fields.items():
        if isinstance(value, Leaf):
            kind = eval(value.type, {"__builtins__": {}}, _TYPES)  # our own annotations, over a closed set of types
            members.append((key, kind) if value.default is REQUIRED else (key, kind, field(default=value.default)))
            continue
        inner = _shape(f"{name}_{key}", value)
        if value.optional:
            members.append((key, inner | None, field(default=None)))
        else:
            members.append((key, inner, field(default_factory=inner)))
    made = make_dataclass(name, members, frozen=True, kw_only=True)
    made.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return made


_TYPES = {kind.__name__: kind for kind in (int, float, bool, str, tuple, dict, list)}


def plain(value: Any) -> Any:
    """Returns a configuration as JSON values: dataclasses become dicts, tuples lists."""
    if value is None or isinstance(value, str | int | float):  # most of them, and the other questions take long
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def plain_run(run: Any) -> dict[str, Any]:
    """Returns a run as JSON values; without ``stage2``, plugins and callbacks where there are none.

    So an ordinary run is written, hashed and compared without a word about them.
    """
    tree: dict[str, Any] = plain(run)
    if tree["stage2"] is None:
        del tree["stage2"]
    return without_idle(tree)
