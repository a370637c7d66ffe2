"""Plugins of a configuration: which ones its tree needs, at which version, and what it says of those that it does not use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ltcore.config.keys import methods, run_keys
from ltcore.config.overrides import override
from ltcore.evaluation.catalog import VALIDATION, taken
from ltcore.plugins import loading
from ltcore.plugins.aside import ASIDE, refuse

KEY = "plugins"
Tree = dict[str, Any]
_OPTIONS: dict[str, tuple[str, ...]] = {
    "loss": ("objective", "base_options"),
    "term": ("objective", "terms"),
    "stage2": ("stage2", "options"),
    "callback": ("callbacks",),
    "model": ("model", "options"),
    "augmentation": ("augment", "options"),
    "sampler": ("train", "sampling_options"),
    "metric": ("metrics",),
}
"""Kind of part -> the section with its options."""
_ONLY_PLUGGED = [path for kind, path in _OPTIONS.items() if kind not in ("loss", "term", "stage2")]
"""Sections that are empty without plugins."""
_CHOICES: dict[str, tuple[tuple[str, ...], ...]] = {
    "loss": (("objective", "base"),),
    "model": (("model", "name"),),
    "dataset": (("data", "uri"),),
    "stage2": (("stage2", "method"),),
    "augmentation": (("augment", "view1"), ("augment", "view2")),
    "sampler": (("train", "sampling"),),
}
"""Kind of part -> the keys that choose one by name."""
_ROWS = {"base": "loss", "data": "dataset"}
"""Kind of row, where it has another name than the kind of part."""
_NAMED: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((kind, path) for kind, paths in _CHOICES.items() for path in paths),
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
    run_keys()  # which sets aside what is installed and has keys that cannot be read,
    methods()  # or names of ours
    used, parts = _mentioned(tree), loading.known_parts()
    _refuse_broken(used - parts.keys())
    for part, (plugin, _) in parts.items():
        owners = [p.name for p in loading.known() if p.name in names and part in {(f.kind, f.name) for f in p.parts}]
        if part in used and not owners:
            names.append(plugin)
    if imported:
        loading.load(names)
    return {**tree, KEY: [loading.pinned(name) for name in names]} if names else dict(tree)


def _refuse_broken(used: set[tuple[str, str]]) -> None:
    """Raises PluginError where one of these parts is of an installed plugin that is broken, and nobody else's."""
    if not ASIDE:
        return
    own = {(_ROWS.get(row.kind, row.kind), row.name) for row in methods()}
    for kind, name in sorted(used - own):
        if kind != "metric" or not taken(name):
            refuse(kind, name)


def wanted(changes: Iterable[Mapping[str, Any]]) -> set[str]:
    """Returns the plugins, at their versions, of the parts that flat changes of a configuration choose or say something of."""
    parts = loading.known_parts()
    used = set[tuple[str, str]]().union(*(_mentioned(override({}, flat)) for flat in changes))
    return {loading.pinned(plugin) for part, (plugin, _) in parts.items() if part in used}


def deciding(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a flat configuration without the plugins that change no number.

    One with callbacks or data sets alone may be repaired or replaced before a run or sweep is continued.
    """
    entries = [entry for entry in names_of(flat.get(KEY)) if not loading.determines_nothing(entry)]
    kept = {key: value for key, value in flat.items() if key != KEY}
    return {**kept, KEY: ",".join(entries)} if entries else kept


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
    named = {entry.partition(loading.PIN)[0] for entry in names_of(tree.get(KEY))}
    for (kind, name), (plugin, _) in loading.known_parts().items():
        section = _at(tree, _OPTIONS.get(kind, ("",)))
        if not isinstance(section, dict) or name not in section:
            continue
        chosen = [_at(tree, path) for path in _CHOICES.get(kind, ())]
        idle = name not in chosen if chosen else kind == "metric" and plugin not in named
        if section[name] is None or idle:
            del section[name]
    for *above, key in ((KEY,), *_ONLY_PLUGGED):
        section = _at(tree, above)
        if isinstance(section, dict) and not section.get(key):
            section.pop(key, None)
    return tree
