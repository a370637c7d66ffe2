"""What is installed: entry points of plugins, and the version that a plugin is known by.

``importlib.metadata`` answers the same questions in a fifth of a second, which every command would take longer.
"""

from __future__ import annotations

import configparser
import functools
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ltcore.errors import PluginError
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
        raise PluginError(f"{info / 'entry_points.txt'} cannot be read: {error}.") from None
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
    return bool(_installed_version(name))


@functools.cache  # of what is imported once, too
def version_of(name: str) -> str:
    """Returns the version of the distribution that a plugin belongs to, else 'sha256:' and digits of its package's files.

    Empty where it is not found.
    """
    root = root_of(name)
    if root is None:
        return ""
    return _installed_version(name) or _HASH + _digest(root)


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
    for file in files:
        digest.update(str(file.relative_to(root.parent)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:DIGITS]


def _installed_version(name: str) -> str:
    root = root_of(name)
    if root is None:
        return ""
    first = f"{root.name}/" if root.is_dir() else root.name
    for info in _infos(str(root.parent)):
        try:
            records = (info / "RECORD").read_text(encoding="utf-8")
        except OSError:
            continue
        if any(line.startswith(first) for line in records.splitlines()):
            return info.name.removesuffix(".dist-info").partition("-")[2]
    return ""
