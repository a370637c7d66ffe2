"""Recipes and sweep files as trees of plain values: reading, inheriting, overriding by dotted key, checking names.

Needs neither torch nor pydantic. Values are left as they were written; ``ltcore.config.validate`` types them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from ltcore.config.bounded_yaml import YamlError, load_yaml
from ltcore.config.keys import Leaf, Section, leaves, run_keys
from ltcore.errors import ConfigError, nearest
from ltcore.limits import MAX_TABLE_CHARS, load_json
from ltcore.plugins.aside import reasons

Tree: TypeAlias = dict[str, Any]


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> Tree:
    """Merges ``child`` over ``parent``: mappings are merged, everything else, null included, replaces."""
    result = dict(parent)
    for key, value in child.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return result


def override(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Tree:
    """Sets dotted keys of ``tree``, in order. A key below a term that is null switches it on with its defaults."""
    result = dict(tree)
    for key, value in overrides.items():
        found = lookup(key)
        if isinstance(found, Section):
            value = _section_value(key, found, value)
        leaf: Any = value
        for name in reversed(key.split(".")):
            leaf = {name: leaf}
        result = merge(result, leaf)
    return result


def _section_value(key: str, section: Section, value: Any) -> Any:
    word = value.lower() if isinstance(value, str) else value
    if section.optional and word in (None, "null", "none"):
        return None
    if section.optional and word in (True, "true", "on"):
        return {}
    if isinstance(value, Mapping):
        return value
    allowed = f"null, on, or {key}.<key>=..." if section.optional else f"{key}.<key>=..."
    raise ConfigError(f"{key}={value!r}: {key} is a section; give {allowed} (ltcore keys {key}).")


def lookup(key: str) -> Leaf | Section:
    """Returns the leaf or section at a dotted key of a run.

    Raises ConfigError with the nearest keys where there is none.
    """
    node: Leaf | Section = run_keys()
    for name in key.split("."):
        if not isinstance(node, Section) or name not in node.fields:
            raise unknown(key)
        node = node.fields[name]
    return node


def unknown(key: str, root: Section | None = None, prefix: str = "") -> ConfigError:
    """Returns the error for a key that does not exist.

    It suggests the nearest key on the same level first, then the nearest anywhere.
    """
    root = root or run_keys()
    *above, name = key.split(".")
    section, known, rest = root, list[str](), [*above, name]
    while rest and isinstance(below := section.fields.get(rest[0]), Section):
        section, known, rest = below, [*known, rest[0]], rest[1:]
    beside = [
        ".".join([*known, near, *rest[1:]]) for near in difflib.get_close_matches((rest or [""])[0], section.fields)
    ]
    every = [k for k, _ in leaves(root)]
    close = [k for k in beside if k in every][:3]
    hint = f" Did you mean {', '.join(prefix + k for k in close)}?" if close else nearest(key, every)
    hint += "".join(f" {reason}" for reason in reasons(key.split(".")))
    scope = (prefix + ".".join(known)).rstrip(".")
    return ConfigError(f"{prefix}{key}: unknown key.{hint} (ltcore keys{' ' + scope if scope else ''})")


def checked(tree: Mapping[str, Any], section: Section, path: str = "") -> Tree:
    """Returns the tree with every name checked, lists split, tables written as JSON and ``null`` read.

    Raises ConfigError for unknown names and for a bool where a number is expected.
    """
    return dict(_checked(tree, section, section, path))


def _checked(tree: Mapping[str, Any], section: Section, root: Section, path: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key, field = f"{path}{name}", section.fields.get(name)
        if field is None:
            raise unknown(_first_leaf(key, value), root)
        if isinstance(field, Leaf):
            yield name, _readable(key, field, value)
        elif isinstance(value, Mapping):
            yield name, dict(_checked(value, field, root, f"{key}."))
        else:
            yield name, _section_value(key, field, value)


def _first_leaf(key: str, value: Any) -> str:
    while isinstance(value, Mapping) and value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key


def _readable(key: str, leaf: Leaf, value: Any) -> Any:
    if "None" in leaf.type and (value is None or str(value).lower() in ("null", "none")):
        return None
    if leaf.type.startswith("tuple"):
        if isinstance(value, str):  # [a,b], as in YAML, is the same as a,b
            text = value[1:-1] if value.startswith("[") and value.endswith("]") else value
            return tuple(item.strip() for item in text.split(",") if item.strip())
        return value if isinstance(value, list | tuple) else (value,)
    if leaf.type.startswith("str | dict") and isinstance(value, str | Mapping | list):
        return _table(key, value)
    if leaf.type.startswith("float | str") and isinstance(value, str):
        return _number_or_word(value)
    if isinstance(value, bool) and (word := "on" if value else "off") in leaf.allowed.choices:
        return word  # as YAML reads these words without quotes
    if isinstance(value, bool) and "bool" not in leaf.type and "Any" not in leaf.type:
        raise ConfigError(f"{key}={str(value).lower()}: expected {expected(leaf.type)} (ltcore keys {key}).")
    return value


def _number_or_word(text: str) -> float | str:
    """Returns the number that a text of the command line spells, or the text: one of two types would take any text."""
    try:
        return float(text)
    except ValueError:
        return text


def _table(key: str, value: Any) -> str:
    """Returns a table, or one as YAML text, as JSON text: one value, as configurations are compared, swept and stored.

    Another text is returned as it is.
    """
    if isinstance(value, str):
        if not value.startswith(("{", "[")):
            return value
        if len(value) > MAX_TABLE_CHARS:
            raise ConfigError(f"{key} has {len(value)} characters; at most {MAX_TABLE_CHARS} are read.")
        value = _yaml(key, value)
    for name in value if isinstance(value, Mapping) else ():
        if not isinstance(name, str) and type(name) is not int:
            raise ConfigError(f"{key} has the name {name!r}, which YAML does not read as text: put it in quotes.")
    for item in value.values() if isinstance(value, Mapping) else value:
        if not isinstance(item, str | int | float):
            raise ConfigError(f"{key}: expected one number for each class, got {item!r:.80}.")
    return json.dumps(value)


def _yaml(key: str, text: str) -> Any:
    try:
        return load_json(text)  # as it is stored; YAML takes seconds for thousands of classes
    except ValueError:
        pass
    try:
        return load_yaml(text)
    except YamlError as error:
        raise ConfigError(f"{key}={text[:80]}: expected a table such as {{cat: 2.0}} ({error}).") from None


def as_text(value: Any) -> str:
    """Returns a value as it is spelled on the command line: ``a,b``, ``null``, ``true``."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return ",".join(map(as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def expected(kind: str) -> str:
    """Puts an annotation into words."""
    words = {
        "int": "a whole number",
        "float": "a finite number",
        "bool": "true or false",
        "str": "text",
        "dict[str, float]": "a table",
        "None": "null",
    }
    if kind.startswith("tuple"):
        inner = kind.removeprefix("tuple[").split(",")[0]
        these = {"float": "numbers such as 0.8,0.9", "int": "whole numbers such as 1,2"}.get(inner, "words such as a,b")
        return f"{these} or null" if "None" in kind else these
    return " or ".join(words.get(part.strip(), part.strip()) for part in kind.split("|"))


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns dotted key -> scalar; lists are written as ``a,b``."""
    return dict(_pairs(tree, ""))


def _pairs(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            pairs += _pairs(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", ",".join(map(str, value)) if isinstance(value, list) else value))
    return pairs
