"""Plugins of a configuration: which ones its tree needs, at which version, and what it says of those that it does not use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ltcore.evaluation.catalog import VALIDATION
from ltcore.plugins import loading

KEY = "plugins"
Tree = dict[str, Any]
_OPTIONS: dict[str, tuple[str, ...]] = {
    "loss": ("objective", "base_options"),
    "term": ("objective", "terms"),
    "stage2": ("stage2", "options"),
    "callback": ("callbacks",),
}
"""Kind of part -> the section with its options."""
_CHOICES: dict[str, tuple[str, ...]] = {
    "loss": ("objective", "base"),
    "model": ("model", "name"),
    "dataset": ("data", "uri"),
    "stage2": ("stage2", "method"),
}
"""Kind of part -> the key that chooses one by name."""
_NAMED: tuple[tuple[str, tuple[str, ...]], ...] = (
    *_CHOICES.items(),
    ("augmentation", ("augment", "view1")),
    ("augmentation", ("augment", "view2")),
    ("sampler", ("train", "sampling")),
    ("metric", ("train", "select")),
)
"""Kinds of parts, and the keys that may name one."""


def names_of(value: Any) -> list[str]:
    """Returns the entries of ``plugins``, which may be written as ``a,b``."""
    if value in (None, "", "null"):
        return []
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    return [str(word).strip() for word in words if str(word).strip()]


def declared(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """Makes the plugins of a recipe and of the command known. Returns the overrides with both."""
    entries = names_of(overrides.get(KEY, tree.get(KEY)))
    names = loading.use(entries, named=True)
    more = [name for name in loading.given() if name not in names]
    return {**overrides, KEY: [*entries, *more]} if more else overrides


def with_plugins(tree: Mapping[str, Any], *, imported: bool = True) -> Tree:
    """Returns the tree with all plugins that it names or uses, at their versions.

    They are imported, unless it is only about names. Raises PluginError where one is missing, changed or broken.
    """
    names = list(loading.use(names_of(tree.get(KEY))))
    used = _mentioned(tree)
    for part, (plugin, _) in loading.known_parts().items():
        owners = [p.name for p in loading.known() if p.name in names and part in {(f.kind, f.name) for f in p.parts}]
        if part in used and not owners:
            names.append(plugin)
    if imported:
        loading.load(names)
    return {**tree, KEY: [loading.pinned(name) for name in names]} if names else dict(tree)


def _mentioned(tree: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Returns (kind, name) of all parts that a tree chooses, switches on or says something about."""
    found = set()
    for kind, path in _NAMED:
        value = _at(tree, path)
        if isinstance(value, str):
            found.add((kind, value.removeprefix(VALIDATION) if kind == "metric" else value))
    for kind, path in _OPTIONS.items():
        section = _at(tree, path)
        for name, value in section.items() if isinstance(section, Mapping) else ():
            if value not in (None, "null", "none"):
                found.add((kind, name))
    return found


def _at(tree: Any, path: Iterable[str]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def without_idle(tree: Tree) -> Tree:
    """Removes what a whole tree says of parts of plugins that it does not use, and of plugins where it has none.

    So a run is written, hashed and compared without a word about whatever else is installed.
    """
    for kind, name in loading.known_parts():
        section = _at(tree, _OPTIONS.get(kind, ("",)))
        if not isinstance(section, dict) or name not in section:
            continue
        chosen = _at(tree, _CHOICES[kind]) if kind in _CHOICES else None
        if section[name] is None or (kind in _CHOICES and chosen != name):
            del section[name]
    for key in (KEY, "callbacks"):
        if not tree.get(key):
            tree.pop(key, None)
    return tree
