"""Where a plugin lies, and which parts its source text registers: nothing of it is imported.

Read are the modules that importing the plugin would execute of its own package: its parents, itself, and what they import
from each other.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from ltcore.errors import PluginError
from ltcore.plugins.parts import GROUPS

_FACE = "ltcore.plugins."


@dataclass(frozen=True)
class Found:
    """One part, as the source says it."""

    kind: str
    name: str
    summary: str
    paper: str
    module: str
    symbol: str
    """Class or function that it builds."""


@dataclass(frozen=True)
class Plugin:
    """One module with parts, and all that are registered by importing it."""

    name: str
    parts: tuple[Found, ...]


def find_spec(name: str) -> ModuleSpec | None:
    """Finds a module without importing its parents; None where there is none.

    The working directory is searched last, and for plugins that a person named alone: stored runs name plugins too, and may
    have come with a module of that name.
    """
    spec = _search(name)
    if spec is not None:
        return spec
    here = [str(Path.cwd())] if name.partition(".")[0] in _LOOKED_FOR_HERE else []
    for folder in (*filter(None, os.environ.get(SEARCH_PATH, "").split(os.pathsep)), *here):
        if folder not in sys.path and _is_in(folder, name):
            sys.path.append(folder)
            importlib.invalidate_caches()
            return _search(name)
    return None


SEARCH_PATH = "LTCORE_PLUGIN_PATH"
"""Variable with the folders of plugins that a driver found, for the processes that it starts; searched after all others."""
_LOOKED_FOR_HERE: set[str] = set()


def look_here_too(name: str) -> None:
    """Lets a plugin lie in the working directory."""
    _LOOKED_FOR_HERE.add(name.partition(".")[0])


def _is_in(folder: str, name: str) -> bool:
    top = Path(folder, name.partition(".")[0])
    return top.is_dir() or top.with_suffix(".py").is_file()


def _search(name: str) -> ModuleSpec | None:
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):  # a module that was made by hand
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return spec


def file_of(name: str) -> Path | None:
    """Returns the source file of a module; None where there is none."""
    spec = find_spec(name)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


@functools.cache
def parse(name: str) -> ast.Module | None:
    """Returns the syntax tree of a module; None where it has no source. Raises PluginError for source that is none."""
    file = file_of(name)
    if file is None:
        return None
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise PluginError(f"plugin {name}: {file}{line} is no Python ({getattr(error, 'msg', error)}).") from None


def read_plugin(name: str) -> Plugin:
    """Reads what a plugin registers. Raises PluginError where it is missing or registers nothing."""
    if name.endswith(".py") or "/" in name or not all(part.isidentifier() for part in name.split(".")):
        raise PluginError(f"plugin {name!r} is no module: give its dotted name, such as my_package.my_terms.")
    if find_spec(name) is None:
        raise PluginError(
            f"plugin {name} is not found: install its package, or start from the folder that holds {name.partition('.')[0]}."
        )
    parts = tuple(part for module in _executed(name) for part in _registered(module))
    if not parts:
        if inner := _inner(name):
            raise PluginError(f"plugin {name} registers nothing itself, but {', '.join(inner)} do: name those instead.")
        kinds = ", ".join(f"@plugins.{kind}" for kind in GROUPS)
        raise PluginError(f"plugin {name} registers nothing: its classes need one of {kinds} with a name written out.")
    return Plugin(name, parts)


def _inner(package: str) -> list[str]:
    """Returns the modules of a package, beside its ``__init__``, that register parts."""
    file = file_of(package)
    if file is None or file.name != "__init__.py":
        return []
    modules = (f"{package}.{path.stem}" for path in sorted(file.parent.glob("*.py")) if path != file)
    return [module for module in modules if parse(module) is not None and next(_registered(module), None) is not None]


def _executed(name: str) -> list[str]:
    """Returns the modules of the plugin's own package that importing it executes."""
    top = name.partition(".")[0]
    todo, seen = [name], list[str]()
    while todo:
        module = todo.pop()
        if module in seen or module.partition(".")[0] != top or (tree := parse(module)) is None:
            continue
        seen.append(module)
        parts = module.split(".")
        todo += [".".join(parts[:n]) for n in range(1, len(parts))]
        for source, imported in imports(module, tree):
            todo += [source, f"{source}.{imported}"] if imported else [source]
    return seen


def imports(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields (module, name or '') of the imports at the top of a module, relative ones resolved."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((absolute(module, node), alias.name) for alias in node.names)


def absolute(module: str, node: ast.ImportFrom) -> str:
    """Returns the module that ``from ... import`` names, seen from ``module``."""
    if not node.level:
        return node.module or ""
    file = file_of(module)
    package = module if file is not None and file.name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _registered(module: str) -> Iterator[Found]:
    tree = parse(module)
    assert tree is not None
    known = _dotted_names(module, tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and (kind := _kind(call.func, known)):
                    yield _read(module, node.name, kind, call)


def _dotted_names(module: str, tree: ast.Module) -> dict[str, str]:
    """Returns what the names of imports in a module stand for."""
    known = dict[str, str]()
    for node in tree.body:
        if isinstance(node, ast.Import):
            known |= {
                a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            known |= {a.asname or a.name: f"{absolute(module, node)}.{a.name}" for a in node.names}
    return known


def _kind(func: ast.expr, known: dict[str, str]) -> str:
    """Returns the kind that a decorator registers; '' for those of others."""
    first, _, rest = ast.unparse(func).partition(".")
    dotted = known.get(first, first) + (f".{rest}" if rest else "")
    kind = dotted.removeprefix(_FACE)
    return kind if dotted.startswith(_FACE) and kind in GROUPS else ""


def _read(module: str, symbol: str, kind: str, call: ast.Call) -> Found:
    given = {"name": call.args[0]} if call.args else {}
    given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    texts = {}
    for key, missing in (("name", None), ("summary", None), ("paper", "-")):
        value = given.get(key)
        text = value.value if isinstance(value, ast.Constant) else missing if value is None else None
        if not isinstance(text, str) or not text.strip():
            raise PluginError(
                f"plugin {module}: @plugins.{kind} of {symbol} needs {key} as a text that is written out, because it is read "
                "without importing the module."
            )
        texts[key] = text
    return Found(kind, texts["name"], texts["summary"], texts["paper"], module, symbol)
