"""Which plugins this process knows, and when they are imported.

A plugin is *known* when a command or a recipe named it, or when its distribution has entry points: its keys are then listed.
It is *loaded*, that is imported, where a configuration is built that names it or uses one of its parts. Configurations
name a plugin with the version that it had, ``my_package.my_terms==0.3``, and are refused where that is another one: so a
stored run, a resumed one and a worker on another node all use the parts that the run was trained with.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from ltcore.errors import PluginError
from ltcore.plugins import parts, source
from ltcore.plugins.aside import ASIDE, set_aside
from ltcore.plugins.distributions import EntryPoint, edited_since, entry_points, version_of
from ltcore.plugins.parts import GROUPS, Part
from ltcore.plugins.source import Found, Plugin

T = TypeVar("T")
PIN = "=="
_HARMLESS = ("callback", "dataset")
_LOG = logging.getLogger("ltcore.plugins")
_said: set[str] = set()
_used: dict[str, Plugin] = {}
_given: set[str] = set()
_installed: dict[tuple[EntryPoint, ...], tuple[Plugin, ...]] = {}
_loaded: dict[str, Plugin] = {}
_tables: dict[str, list[Callable[[Part], None]]] = {}


def attach(kind: str, add: Callable[[Part], None]) -> None:
    """Registers the registry that takes over parts of a kind: those that are loaded already, and all later ones."""
    _tables.setdefault(kind, []).append(add)
    for plugin in _loaded.values():
        for found in plugin.parts:
            if found.kind == kind:
                _add(plugin, found, add)


def use(entries: Iterable[str], *, given: bool = False, named: bool = False) -> tuple[str, ...]:
    """Makes plugins known by their dotted names, which may have a version (``name==0.3``), and returns the names.

    With ``given`` they were named on the command line, where the version that is here is taken; with ``named`` there or in a
    recipe, and may lie in the working directory. Raises PluginError for one that is missing, registers nothing, has another
    version, or was edited after this process imported it.
    """
    names = []
    for entry in entries:
        name, _, version = entry.strip().partition(PIN)
        if given:
            _given.add(name)
        if given or named:
            source.look_here_too(name)
            _refuse_edited(name)
        if version:
            _check_version(name, version, asked_for=given)
        if name not in _used:
            _used[name] = source.read_plugin(name)
            try:
                known_parts()
            except PluginError:
                del _used[name]
                raise
        names.append(name)
    return tuple(dict.fromkeys(names))


def given() -> tuple[str, ...]:
    """Returns the plugins that were named on the command line."""
    return tuple(name for name in _used if name in _given)


def known() -> tuple[Plugin, ...]:
    """Returns all known plugins: those that were named, then those with entry points that are not broken."""
    points = entry_points()
    if points not in _installed:
        _installed[points] = _read_installed(points)
    installed = (plugin for plugin in _installed[points] if plugin.name not in ASIDE)
    return (*_used.values(), *(plugin for plugin in installed if plugin.name not in _used))


def without_broken(read: Callable[[], T]) -> T:
    """Returns what ``read`` returns, after setting aside the installed plugins at which it fails, unless they were named."""
    while True:
        try:
            return read()
        except PluginError as error:
            broken = next((plugin for plugin in known() if error.plugin in _names(plugin)), None)
            if broken is None or broken.name in _used:
                raise
            set_aside(broken.name, str(error), [(part.kind, part.name) for part in broken.parts])


def _names(plugin: Plugin) -> set[str]:
    """Returns the names by which an error may call a plugin: its own, and those of the modules with its parts."""
    return {plugin.name, *(part.module for part in plugin.parts)}


def determines_nothing(entry: str) -> bool:
    """Returns whether a plugin, named with or without a version, is known and has no part that determines numbers.

    Callbacks read. What data sets determine is in the data, whose hash runs and sweeps keep and compare by themselves.
    """
    name = entry.partition(PIN)[0]
    return any(plugin.name == name and all(part.kind in _HARMLESS for part in plugin.parts) for plugin in known())


def names_in(entries: Iterable[str], kind: str) -> tuple[str, ...]:
    """Returns the parts of a kind that the plugins of a configuration have, in their order."""
    names = [entry.partition(PIN)[0] for entry in entries]
    plugins = {plugin.name: plugin for plugin in known()}
    found = (part for name in names if name in plugins for part in plugins[name].parts)
    return tuple(dict.fromkeys(part.name for part in found if part.kind == kind))


def loaded() -> tuple[Plugin, ...]:
    """Returns the plugins whose parts the registries have."""
    return tuple(_loaded.values())


def known_parts() -> dict[tuple[str, str], tuple[str, Found]]:
    """Returns (kind, name) -> (plugin, part) of all known plugins. Raises PluginError where two have the same name.

    Of two that are only installed, the later one is set aside.
    """
    return without_broken(_known_parts)


def _known_parts() -> dict[tuple[str, str], tuple[str, Found]]:
    found: dict[tuple[str, str], tuple[str, Found]] = {}
    for plugin in known():
        for part in plugin.parts:
            before, other = found.setdefault((part.kind, part.name), (plugin.name, part))
            if (other.module, other.symbol) != (part.module, part.symbol):
                raise PluginError(
                    f"plugin {plugin.name} has the {part.kind} {part.name!r} of {part.module}, which exists already in plugin "
                    f"{before} ({other.module}): give one of them another name.",
                    plugin.name,
                )
    return found


def load(names: Iterable[str]) -> None:
    """Imports known plugins, whose parts the registries take over. Raises PluginError with the reason where one cannot be."""
    plugins = {plugin.name: plugin for plugin in known()}
    for name in names:
        if name not in _loaded:
            _import(plugins[name])
            _publish(plugins[name])


def load_part(kind: str, name: str) -> None:
    """Imports the known plugin that has a part; does nothing where none has it."""
    if (owner := known_parts().get((kind, name))) is not None:
        load(owner[:1])


def pinned(name: str) -> str:
    """Returns a plugin with the version that it has here, as configurations name it."""
    return f"{name}{PIN}{version_of(name)}"


def changed(entries: Iterable[str]) -> list[str]:
    """Returns what is to be said of the plugins of a stored run: of each that is missing here or has another version."""
    problems = []
    for entry in entries:
        name, _, version = entry.partition(PIN)
        if problem := _difference(name, version):
            problems.append(problem)
    return problems


def _refuse_edited(name: str) -> None:
    """Refuses to go on with what Python keeps of a module, in a notebook say, while workers would get the files."""
    if name in _loaded and edited_since(name):
        raise PluginError(
            f"plugin {name} was {version_of(name)} when this process imported it, and its files have changed since. Restart the "
            "process (of a notebook, the kernel), which then uses them."
        )


def _check_version(name: str, version: str, *, asked_for: bool) -> None:
    """Refuses another version than the one that is here; ``asked_for`` on the command line, or by a stored run.

    A plugin that the command line names without one is used as it is here, which is said.
    """
    if not (problem := _difference(name, version)):
        return
    if asked_for or name not in _given or not version_of(name):
        raise PluginError(problem)
    if problem not in _said:
        _said.add(problem)
        _LOG.warning(
            "plugin %s was %s and is %s here, which is used: results may differ", name, version, version_of(name)
        )


def _difference(name: str, version: str) -> str:
    here = version_of(name)
    if here == version:
        return ""
    top = name.partition(".")[0]
    if not here:
        return (
            f"plugin {name} was {version} and is not found here: install its package, or start from the folder that holds "
            f"{top}, with --plugin {name}."
        )
    return (
        f"plugin {name} was {version} and is {here} here: put back the package {top} as it was, or evaluate with what is here by "
        f"--plugin {name}."
    )


def _read_installed(points: tuple[EntryPoint, ...]) -> tuple[Plugin, ...]:
    plugins: dict[str, Plugin] = {}
    for module in dict.fromkeys(point.module for point in points):
        named = [point for point in points if point.module == module]
        promised = {(point.kind, point.name) for point in named}
        owner = named[0].distribution
        try:
            plugin = source.read_plugin(module)
        except PluginError as error:
            set_aside(module, f"{error} Its entry point is of the distribution {owner}.", promised)
            continue
        there = {(part.kind, part.name) for part in plugin.parts}
        if lacking := sorted(promised - there):
            kind, name = lacking[0]
            reason = (
                f"plugin {module} of the distribution {owner} has no {kind} {name!r}, which its entry point of {GROUPS[kind]} "
                f"names: write @plugins.{kind}({name!r}, ...)."
            )
            set_aside(module, reason, promised | there)
            continue
        plugins[module] = plugin
    return tuple(plugins.values())


def _import(plugin: Plugin) -> None:
    try:
        importlib.import_module(plugin.name)
    except PluginError as error:
        raise PluginError(f"plugin {plugin.name}: {error}", plugin.name) from None
    except Exception as error:
        said = " ".join(str(error).split())
        raise PluginError(
            f"plugin {plugin.name} cannot be imported ({type(error).__name__}: {said}).", plugin.name
        ) from error
    read = {(part.kind, part.name) for part in plugin.parts}
    modules = {part.module for part in plugin.parts} | {plugin.name}
    for key, part in parts.NOTED.items():
        if part.module in modules and key not in read:
            raise PluginError(
                f"plugin {plugin.name} registers the {part.kind} {part.name!r} in a way that its source does not show: write the "
                f"decorator, with the name, over a class or function at the top of {part.module}.",
                plugin.name,
            )
    if missing := sorted(read - parts.NOTED.keys()):
        raise PluginError(
            f"plugin {plugin.name} did not register its {' '.join(missing[0])} when it was imported.", plugin.name
        )


def _publish(plugin: Plugin) -> None:
    taken = {(part.kind, part.name) for other in _loaded.values() for part in other.parts}
    for found in plugin.parts:
        if (found.kind, found.name) not in taken:
            for add in _tables.get(found.kind, ()):
                _add(plugin, found, add)
    _loaded[plugin.name] = plugin


def _add(plugin: Plugin, found: Found, add: Callable[[Part], None]) -> None:
    try:
        add(parts.NOTED[found.kind, found.name])
    except ValueError as error:
        raise PluginError(f"plugin {plugin.name}: {error}", plugin.name) from None
