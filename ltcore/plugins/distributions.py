"""What is installed: entry points of plugins, and the version that a plugin is known by.

``importlib.metadata`` answers the same questions in a fifth of a second, which every command would take longer.
"""

from __future__ import annotations

import ast
import configparser
import functools
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ltcore.plugins.aside import set_aside
from ltcore.plugins.parts import GROUPS
from ltcore.plugins.source import find_spec

DIGITS = 12
_HASH = "sha256:"


@dataclass(frozen=True)
class EntryPoint:
    """One entry point of a group of ours."""

    distribution: str
    kind: str
    name: str
    module: str


def entry_points() -> tuple[EntryPoint, ...]:
    """Returns the entry points of all installed distributions, of the groups of ``GROUPS``."""
    return _entry_points(tuple(sys.path))


@functools.cache
def _entry_points(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for folder in dict.fromkeys(path):
        for info in _infos(folder or "."):
            name = info.name.partition("-")[0]  # as installers write it; the first on the path is the one in use
            if name not in found:
                found[name] = tuple(_points(info, name))
    return tuple(point for points in found.values() for point in points)


def _infos(folder: str) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith((".dist-info", ".egg-info")))
    except OSError:
        return
    yield from (Path(folder, name) for name in names)


def _points(info: Path, distribution: str) -> Iterator[EntryPoint]:
    try:
        text = (info / "entry_points.txt").read_text(encoding="utf-8")
    except OSError:
        return
    if not any(group in text for group in GROUPS.values()):
        return
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    try:
        parser.read_string(text)
    except configparser.Error as error:
        said = " ".join(str(error).split())
        set_aside(distribution, f"{info / 'entry_points.txt'} of a plugin cannot be read ({said}).", ())
        return
    for kind, group in GROUPS.items():
        for name, value in parser.items(group) if parser.has_section(group) else ():
            yield EntryPoint(distribution, kind, name, re.split(r"[:\s\[]", value.strip())[0])


def root_of(name: str) -> Path | None:
    """Returns the folder of a plugin's top package, or the file of a module that is in none."""
    spec = find_spec(name.partition(".")[0])
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin else None


def is_installed(name: str) -> bool:
    """Tells whether a plugin belongs to a distribution that installed it, rather than to a folder of sources."""
    return _distribution(name) is not None


@functools.cache  # of what is imported once, too
def version_of(name: str) -> str:
    """Returns the version of the distribution that a plugin belongs to, else 'sha256:' and digits of its Python files.

    One that was installed from a folder, an archive or a repository has both, as it may be installed anew under its version.
    Files of data, and modules that no ``import`` of these files names, are in neither. Empty where it is not found.
    """
    root = root_of(name)
    if root is None:
        return ""
    info = _distribution(name)
    if info is None:
        return _HASH + _digest(
            (file, str(file.relative_to(top.parent))) for top in sources_of(name) for file in _files(top)
        )
    version = info.name.removesuffix(".dist-info").partition("-")[2]
    if not (info / "direct_url.json").is_file():
        return version
    listed = sorted(path for path in _recorded(info) if path.endswith(".py"))
    return f"{version}+{_HASH}{_digest((info.parent / path, path) for path in listed)}"


def edited_since(name: str) -> bool:
    """Tells whether a plugin has another version by now than this process took for the one that it imported."""
    return version_of.__wrapped__(name) != version_of(name)


def sources_of(name: str) -> tuple[Path, ...]:
    """Returns what a plugin consists of where no distribution installed it: its top package or module, and its helpers.

    These are those that its files import, wherever the import stands, and that no distribution installed either.
    """
    first = root_of(name)
    todo, found = [first] if first is not None else [], list[Path]()
    while todo:
        root = todo.pop()
        if root in found:
            continue
        found.append(root)
        names = {top for file in _files(root) for top in _imported(file)}
        todo += [helper for top in names if (helper := _helper(top)) is not None]
    return (*found[:1], *sorted(found[1:]))


def _helper(top: str) -> Path | None:
    """Returns where a module lies that belongs to nobody: not to Python, to us, or to a distribution."""
    if top in sys.stdlib_module_names or top == "ltcore":
        return None
    root = root_of(top)
    if root is None or not (root.is_dir() or root.suffix == ".py"):
        return None
    return None if any(info.suffix == ".dist-info" for info in _infos(str(root.parent))) else root


def _imported(file: Path) -> Iterator[str]:
    """Yields the top names of the absolute imports of a file; nothing of one that is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def _files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py")) if root.is_dir() else [root]


def _digest(files: Iterable[tuple[Path, str]]) -> str:
    """Returns digits of files' contents and of the names that they have wherever they lie."""
    digest = hashlib.sha256()
    for file, name in files:
        digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:DIGITS]


def _distribution(name: str) -> Path | None:
    """Returns the folder of metadata of the distribution that installed a plugin; None where none did."""
    root = root_of(name)
    if root is None:
        return None
    first = f"{root.name}/" if root.is_dir() else root.name
    found = (info for info in _infos(str(root.parent)) if any(path.startswith(first) for path in _recorded(info)))
    return next(found, None)


def _recorded(info: Path) -> list[str]:
    """Returns the files of a distribution, relative to the folder that it was installed into."""
    try:
        lines = (info / "RECORD").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.split(",")[0] for line in lines]
