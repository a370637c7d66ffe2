"""Sweep files: YAML plus overrides -> ``SweepConfig``. ``load.load_sweep`` also tries the values on the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltcore.config.keys import sweep_keys
from ltcore.config.overrides import Tree, lookup, read_file, unknown
from ltcore.config.space import SweepConfig, parse_space
from ltcore.config.validate import plain, validate
from ltcore.errors import ConfigError

_SWEEP, _SPACE = "sweep.", "sweep.space."
_MAPPINGS = ("space", "overrides")


def read_sweep(sweep: str, overrides: Mapping[str, Any] = {}) -> SweepConfig:
    """A sweep (packaged name, path or URI of YAML) with overrides; see ``load.load_sweep`` for their form."""
    tree, stem = read_file("sweep", sweep)
    tree.setdefault("name", stem)
    for key in _MAPPINGS:
        if not isinstance(tree.setdefault(key, {}), dict):
            raise ConfigError(f"sweep.{key}={tree[key]!r} must map dotted keys to values.")
    own_recipe = tree.get("recipe")
    for key, value in overrides.items():
        _set(tree, key, value)
    if tree.get("recipe") != own_recipe and "sweep.budget_s" not in overrides:
        tree.pop("budget_s", None)
    for key in (*tree["space"], *tree["overrides"]):
        lookup(key)
    tree["space"] = {key: parse_space(key, spec) for key, spec in tree["space"].items()}
    return validate(SweepConfig, sweep_keys(), tree, prefix=_SWEEP)


def sweep_tree(config: SweepConfig) -> Tree:
    """The sweep as plain JSON values, its space as people write it."""
    return plain(config) | {"space": {key: str(spec) for key, spec in config.space.items()}}


def _set(tree: Tree, key: str, value: Any) -> None:
    if key.startswith(_SPACE):
        name = key.removeprefix(_SPACE)
        if value in (None, "null"):
            tree["space"].pop(name, None)
        else:
            tree["space"][name] = value
    elif not key.startswith(_SWEEP):
        tree["overrides"][key] = value
    elif (name := key.removeprefix(_SWEEP)) in _MAPPINGS:
        raise ConfigError(f"{key}={value}: give single keys, sweep.space.<key>=log:0.1,1 or <key>=value.")
    elif name in sweep_keys().fields:
        tree[name] = value
    else:
        raise unknown(name, sweep_keys(), _SWEEP)
