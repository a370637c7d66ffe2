"""Recipes and sweep files: where they lie, and how one builds on another."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ltcore.config.bounded_yaml import YamlError, load_yaml
from ltcore.config.keys import PACKAGE
from ltcore.config.overrides import Tree, merge, override
from ltcore.config.plugged import declared
from ltcore.data.config import SELECTION
from ltcore.errors import ConfigError, nearest
from ltcore.limits import MAX_RECIPE_BYTES

FOLDERS = {"recipe": PACKAGE / "recipes", "sweep": PACKAGE / "sweeps"}


@functools.cache
def packaged(kind: str) -> Mapping[str, Path]:
    """Returns name -> file of the recipes (``kind='recipe'``) or sweeps that come with the package."""
    return MappingProxyType({file.stem: file for file in sorted(FOLDERS[kind].glob("*.yaml"))})


def header(file: Path) -> list[str]:
    """Returns the comment lines at the top of a recipe or sweep file."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines


def read_file(kind: str, name: str) -> tuple[Tree, str]:
    """Reads one file without inheritance, and returns its tree and its stem."""
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
    """Returns ``parent`` for a child that is merged over it, and a note about what was left out.

    Where the child names other data, the parent's selection from its source, such as a number of CIFAR-100's images,
    does not carry over: it would discard most of a user's photos. Between published data sets it does carry over.
    """
    own, uri = _data(parent), _data(child).get("uri")
    if uri in (None, own.get("uri")) or not any(key in own for key in SELECTION) or not _by_path(uri):
        return parent, ""
    factor, source = own.get("imbalance_factor"), own.get("uri")
    note = ""
    if factor is not None:
        note = f"Images are used as they are: data.imbalance_factor={factor} of the recipe is for {source}. Give it to select."
    return {**parent, "data": {key: value for key, value in own.items() if key not in SELECTION}}, note


def _by_path(uri: Any) -> bool:
    from ltcore.data.datasets.registry import find  # imports numpy and pyarrow, which most commands do without

    return find(str(uri)).by_path


def _data(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the section ``data``; empty where there is no mapping.

    If it is something else than a mapping, validation reports that.
    """
    section = tree.get("data")
    return section if isinstance(section, Mapping) else {}


def _locate(kind: str, name: str, near: str | None) -> tuple[str, str]:
    """Returns (place, text) of a packaged name, a path (also relative to the file ``near``) or a URI."""
    if "://" in name:
        from ltcore.storage import read_bytes

        return name, _text(read_bytes(name, most_bytes=MAX_RECIPE_BYTES), name)
    if not name.endswith((".yaml", ".yml")) and "/" not in name:
        known = packaged(kind)
        if name not in known:
            if kind == "recipe" and name in packaged("sweep"):
                raise ConfigError(f"{name} is a sweep, no recipe: ltcore tune --sweep {name}, which --show describes.")
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
    try:
        found = path.is_file()
    except (OSError, ValueError) as error:  # a name that is too long
        raise ConfigError(f"{kind} file {str(path)[:80]!r}... cannot be looked up ({error}).") from None
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, expected a {kind}. Give a folder of images by --data {path}.")
    if not found:
        raise ConfigError(f"{kind} file {path} does not exist. Packaged: {', '.join(packaged(kind))}.")
    try:
        with path.open("rb") as stream:
            return str(path), _text(stream.read(MAX_RECIPE_BYTES + 1), str(path))
    except OSError as error:
        raise ConfigError(f"{kind} file {path} cannot be read: {error.strerror}.") from None


def _text(data: bytes, where: str) -> str:
    if len(data) > MAX_RECIPE_BYTES:
        raise ConfigError(f"{where} is larger than {MAX_RECIPE_BYTES} bytes, which no recipe or sweep file is.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}:{line}: byte {error.start} is no UTF-8. Save the file as UTF-8.") from None


def _parse(text: str, where: str) -> Tree:
    try:
        tree = load_yaml(text)
    except YamlError as error:
        raise ConfigError(f"{where}{f':{error.line}' if error.line else ''}: {error}.") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{where}: expected a mapping of keys to values, found {type(tree).__name__}.")
    return tree


def read_run(recipe: str, overrides: Mapping[str, Any] = {}) -> tuple[Tree, str]:
    """Returns the tree of a recipe with dotted keys set, and a note.

    The recipe is merged over its parents (``base:``). ``name`` is the file's unless it is given. The note is '' unless
    a selection from the recipe's own data was left out for other data, see :func:`_on_other_data`.
    """
    tree, note = _inherit(*_locate("recipe", recipe, near=None), children=())
    overrides = declared(tree, overrides)  # before their keys are looked up
    tree, later = _on_other_data(tree, override({}, overrides))
    tree = override(tree, overrides)
    return tree, "" if _data(tree).get("imbalance_factor") is not None else later or note
