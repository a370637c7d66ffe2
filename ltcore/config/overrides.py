"""Recipes and sweep files as trees of plain values: reading, inheriting, overriding by dotted key, checking names.

Needs neither torch nor pydantic. Values are left as they were written; ``ltcore.config.validate`` types them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from ltcore.config.keys import PACKAGE, Leaf, Section, leaves, run_keys
from ltcore.data.config import BENCHMARKS, SELECTION
from ltcore.errors import ConfigError, nearest

Tree: TypeAlias = dict[str, Any]
FOLDERS = {"recipe": PACKAGE / "recipes", "sweep": PACKAGE / "sweeps"}


class _Loader(yaml.SafeLoader):
    """YAML's safe types, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def packaged(kind: str) -> dict[str, Path]:
    """Name -> file of the recipes (``kind='recipe'``) or sweeps that come with the package."""
    return {file.stem: file for file in sorted(FOLDERS[kind].glob("*.yaml"))}


def header(file: Path) -> list[str]:
    """The comment lines at the top of a recipe or sweep file."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines


def read_run(recipe: str, overrides: Mapping[str, Any] = {}) -> tuple[Tree, str]:
    """The tree of a recipe on top of its parents (``base:``), with dotted keys set, and what a person should know of that.

    ``name`` is the file's unless it is given. The note is '' unless a selection out of the recipe's own data was left away
    for other data, see :func:`_on_other_data`.
    """
    tree, note = _inherit(*_locate("recipe", recipe, near=None), children=())
    tree, later = _on_other_data(tree, override({}, overrides))
    tree = override(tree, overrides)
    return tree, "" if _data(tree).get("imbalance_factor") is not None else later or note


def read_file(kind: str, name: str) -> tuple[Tree, str]:
    """One file without inheritance, and its stem."""
    where, text = _locate(kind, name, near=None)
    return _parse(text, where), Path(where).stem


def _inherit(where: str, text: str, children: tuple[str, ...]) -> tuple[Tree, str]:
    if where in children:
        raise ConfigError(f"{where}: base goes round in a circle: {' -> '.join((*children, where))}.")
    tree = _parse(text, where)
    base = tree.pop("base", None)
    tree.setdefault("name", Path(where).stem)
    if base is None:
        return tree, ""
    if not isinstance(base, str):
        raise ConfigError(f"{where}: base={base!r} must be the name, path or URI of one recipe.")
    parent, note = _inherit(*_locate("recipe", base, near=where), children=(*children, where))
    parent, later = _on_other_data(parent, tree)
    return merge(parent, tree), later or note


def _on_other_data(parent: Tree, child: Mapping[str, Any]) -> tuple[Tree, str]:
    """``parent`` for a child that goes on top of it, and a note about what it lost.

    Where the child names data of its own, what the parent selects out of its source, so many of CIFAR-100's images, does not
    carry over: it would throw away most of somebody's photos. Between the benchmark sources it does.
    """
    own, uri = _data(parent), _data(child).get("uri")
    if uri in (None, own.get("uri"), *BENCHMARKS) or not any(key in own for key in SELECTION):
        return parent, ""
    factor, source = own.get("imbalance_factor"), own.get("uri")
    note = ""
    if factor is not None:
        note = f"Images are used as they are: data.imbalance_factor={factor} of the recipe is for {source}. Give it to select."
    return {**parent, "data": {key: value for key, value in own.items() if key not in SELECTION}}, note


def _data(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section; empty where it is absent or, which is an error that validation names, something else."""
    section = tree.get("data")
    return section if isinstance(section, Mapping) else {}


def _locate(kind: str, name: str, near: str | None) -> tuple[str, str]:
    """(where, text) of a packaged name, a path (also relative to the file ``near``) or a URI."""
    if "://" in name:
        from ltcore.storage import read_bytes

        return name, read_bytes(name).decode()
    if not name.endswith((".yaml", ".yml")) and "/" not in name:
        known = packaged(kind)
        if name not in known:
            raise ConfigError(
                f"{kind}={name!r} is unknown.{nearest(name, known)} Known: {', '.join(known)}; "
                "the name of a file needs its ending .yaml."
            )
        return str(known[name]), known[name].read_text(encoding="utf-8")
    path = Path(name).expanduser()
    if near is not None and not path.is_absolute():
        if "://" in near:
            return _locate(kind, f"{near.rsplit('/', 1)[0]}/{name}", near=None)
        path = Path(near).parent / path
    if not path.is_file():
        raise ConfigError(f"{kind} file {path} does not exist. Packaged: {', '.join(packaged(kind))}.")
    return str(path), path.read_text(encoding="utf-8")


def _parse(text: str, where: str) -> Tree:
    try:
        tree = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigError(f"{line}: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{where}: expected a mapping of keys to values, found {type(tree).__name__}.")
    return tree


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> Tree:
    """``child`` over ``parent``: mappings are merged, everything else, null too, replaces."""
    result = dict(parent)
    for key, value in child.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return result


def override(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Tree:
    """``tree`` with dotted keys set, in order. A key below a term that is null switches it on with its defaults."""
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
    raise ConfigError(f"{key}={value!r}: {key} is a section; give {allowed} (python -m ltcore keys {key}).")


def lookup(key: str) -> Leaf | Section:
    """The leaf or section at a dotted key of a run, or a ConfigError with the nearest keys."""
    node: Leaf | Section = run_keys()
    for name in key.split("."):
        if not isinstance(node, Section) or name not in node.fields:
            raise unknown(key)
        node = node.fields[name]
    return node


def unknown(key: str, root: Section | None = None, prefix: str = "") -> ConfigError:
    """The error for a key that does not exist: nearest key on the same level first, then anywhere."""
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
    scope = (prefix + ".".join(known)).rstrip(".")
    return ConfigError(f"{prefix}{key}: unknown key.{hint} (python -m ltcore keys{' ' + scope if scope else ''})")


def checked(tree: Mapping[str, Any], section: Section, path: str = "") -> Tree:
    """The tree with every name known, lists split, ``null`` read, and no bool where a number is expected."""
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
        if isinstance(value, str):
            return tuple(item.strip() for item in value.split(",") if item.strip())
        return value if isinstance(value, list | tuple) else (value,)
    if isinstance(value, bool) and "bool" not in leaf.type and "Any" not in leaf.type:
        raise ConfigError(f"{key}={str(value).lower()}: expected {expected(leaf.type)} (python -m ltcore keys {key}).")
    return value


def as_text(value: Any) -> str:
    """A value in the spelling of the command line: ``a,b``, ``null``, ``true``."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return ",".join(map(as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def expected(kind: str) -> str:
    """An annotation in words."""
    words = {
        "int": "a whole number",
        "float": "a finite number",
        "bool": "true or false",
        "str": "text",
        "None": "null",
    }
    if kind.startswith("tuple"):
        inner = kind.removeprefix("tuple[").split(",")[0]
        these = {"float": "numbers such as 0.8,0.9", "int": "whole numbers such as 1,2"}.get(inner, "words such as a,b")
        return f"{these} or null" if "None" in kind else these
    return " or ".join(words.get(part.strip(), part.strip()) for part in kind.split("|"))


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> scalar; lists as ``a,b``."""
    return dict(_pairs(tree, ""))


def _pairs(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            pairs += _pairs(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", ",".join(map(str, value)) if isinstance(value, list) else value))
    return pairs
