"""The JSON Schema (draft 2020-12) of recipes and sweep files, for editors and other programs.

Made from the same table as ``ltcore keys``, so it needs neither torch nor pydantic and is never behind the code. It knows
names, types, texts, defaults, listed values and ranges; what concerns several keys is checked when a run starts.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ltcore.config.keys import REQUIRED, Leaf, Section, leaves, run_keys, sweep_keys
from ltcore.config.recipes import packaged
from ltcore.config.space import LISTS, RANGES

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "None": "null"}
_ON = {"enum": ["on", True], "description": "Switched on, with the defaults."}


def recipe_schema() -> Schema:
    """Returns the schema of a recipe file."""
    whole = _section(run_keys(), top=True)
    base = {
        "type": "string",
        "description": "The recipe that this one builds on: a packaged name, a path beside this file, or a URI.",
        "examples": list(packaged("recipe")),
    }
    return {"$schema": DRAFT, "title": "ltcore recipe", **whole, "properties": {"base": base, **whole["properties"]}}


def sweep_schema() -> Schema:
    """Returns the schema of a sweep file."""
    whole = _section(sweep_keys(), top=True)
    keys = {key: _leaf(leaf) for key, leaf in leaves(run_keys())}
    optional = {key: {"anyOf": [{"type": "null"}, _ON], "description": s.doc} for key, s in _optional(run_keys())}
    overrides = {"type": "object", "properties": {**optional, **keys}, "additionalProperties": False}
    space = {"type": "object", "propertyNames": {"enum": list(keys)}, "additionalProperties": _space()}
    variants = {"type": "object", "additionalProperties": overrides}
    for name, schema in (("overrides", overrides), ("space", space), ("variants", variants)):
        whole["properties"][name] |= schema
    whole["properties"]["recipe"]["examples"] = list(packaged("recipe"))
    return {
        "$schema": DRAFT,
        "title": "ltcore sweep",
        **whole,
        "anyOf": [{"required": ["space"]}, {"required": ["variants"]}],
    }


def _section(section: Section, *, top: bool = False) -> Schema:
    fields = {name: _leaf(f) if isinstance(f, Leaf) else _section(f) for name, f in section.fields.items()}
    described = {"description": section.doc} if section.doc and not top else {}
    keys: Schema = {"type": "object", "properties": fields, "additionalProperties": False}
    if section.optional:
        return {**described, "anyOf": [keys, {"type": "null"}, _ON], "default": None}
    return {**described, **keys}


def _optional(section: Section, prefix: str = "") -> list[tuple[str, Section]]:
    found = []
    for name, field in section.fields.items():
        if isinstance(field, Section):
            found += [(f"{prefix}{name}", field)] if field.optional else _optional(field, f"{prefix}{name}.")
    return found


def _leaf(leaf: Leaf) -> Schema:
    schema: Schema = {"description": leaf.doc, **_type(leaf)}
    if leaf.default is not REQUIRED:
        schema["default"] = list(leaf.default) if isinstance(leaf.default, tuple) else leaf.default
    return schema


def _type(leaf: Leaf) -> Schema:
    parts = _UNION.split(leaf.type)
    null = [{"type": "null"}] * ("None" in parts)
    if leaf.allowed.choices:
        listed = {"enum": [*leaf.allowed.choices, *([None] if null else [])]}
        begins = {"type": "string", "pattern": f"^{leaf.allowed.beginning}"}
        return {"anyOf": [listed, begins]} if leaf.allowed.beginning else listed
    nested = [part for part in parts if "[" in part]
    plain = [_TYPES[part] for part in parts if "[" not in part]
    if not nested:
        return {"type": plain if len(plain) > 1 else plain[0], **_range(leaf.allowed.interval)}
    kinds = [kind for part in nested for kind in _nested(part)]
    kinds += [{"type": name} for name in plain if name != "null" and {"type": name} not in kinds]
    return kinds[0] if len(kinds) == 1 and not null else {"anyOf": [*kinds, *null]}


_UNION = re.compile(r"\s*\|\s*(?![^\[]*\])")
"""Between the members of a union, outside of brackets."""


def _nested(part: str) -> list[Schema]:
    """Returns the ways to write a mapping or a list."""
    if part.startswith("dict"):
        return [{"type": "object"}]
    item = {"type": _TYPES[part.removeprefix("tuple[").split(",")[0]]}
    words = {"type": "string", "description": "a,b"}
    alone = [item, words] if item["type"] != "string" else [words]
    return [{"type": "array", "items": item}, *alone]


def _range(interval: str) -> Schema:
    if not interval:
        return {}
    low, high = (float(end) for end in interval[1:-1].split(","))
    ends = {
        "minimum" if interval[0] == "[" else "exclusiveMinimum": low,
        "maximum" if interval[-1] == "]" else "exclusiveMaximum": high,
    }
    return {word: int(end) if end.is_integer() else end for word, end in ends.items() if math.isfinite(end)}


def _space() -> Schema:
    """Returns the schema of one entry of a search space."""
    number, anything = {"type": "number"}, {"type": ["string", "number", "boolean", "null"]}
    items: dict[str, Schema] = {
        **{kind: {"items": number, "minItems": 2, "maxItems": 2} for kind in RANGES},
        **{kind: {"items": anything, "minItems": 1} for kind in LISTS},
    }
    properties = {kind: {"type": "array", **of} for kind, of in items.items()}
    one = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    text = {"type": "string", "pattern": f"^({'|'.join(items)}):", "description": "such as log:0.01,1"}
    return {"anyOf": [one, text]}
