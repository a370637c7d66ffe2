"""The recipe for people who name none, only their images: chosen by the size of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ltcore.cli.args import DEMO_DATA, DEMO_SWEEP
from ltcore.config.sweep import read_sweep
from ltcore.errors import ConfigError

LARGE, SMALL = "folder", "folder_small"
SMALL_PX = 64
"""Largest image side for the network of ``SMALL``."""


def recipe_for(
    overrides: Mapping[str, Any], storage: str | None, say: Callable[[str], None], engine: str = "auto"
) -> str:
    """Returns the recipe for the data that ``overrides`` name, and says which it is.

    Data that are no shards yet are made, as a run would make them, by an ``engine`` of ``cli.engine``.
    """
    from ltcore.cli.prepare import prepare_data, storage_root  # these import numpy and torch, which --show does without
    from ltcore.config.load import load_run
    from ltcore.data.shards.manifest import read_manifest

    own = {key: value for key, value in overrides.items() if key == "data" or key.startswith("data.")}
    small = load_run(SMALL, own).data
    manifest = read_manifest(prepare_data(small, storage_root(storage), say, engine=engine))
    side = small.image_size or manifest.image_size
    recipe = SMALL if side <= SMALL_PX else LARGE
    say(f"No recipe is given: {manifest.name} has images of {side} px, so it is {recipe} (others: `ltcore recipes`).")
    return recipe


def with_recipe(
    sweep: str, overrides: Mapping[str, Any], storage: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Returns ``overrides`` with ``sweep.recipe`` where neither the sweep nor they name one.

    The recipe of the main sweep is made for its digits alone: for other data it counts as none. Raises ConfigError where no
    data are named either.
    """
    found = read_sweep(sweep, overrides)
    others = sweep == DEMO_SWEEP and found.overrides.get("data.uri", DEMO_DATA) != DEMO_DATA
    if found.recipe and ("sweep.recipe" in overrides or not others):
        return dict(overrides)
    if "data.uri" not in found.overrides:
        raise ConfigError(
            f"sweep {sweep} names no recipe: give your images (--data FOLDER, whose size then chooses {LARGE} or {SMALL}), or a "
            "recipe (`ltcore recipes` lists them)."
        )
    return {**overrides, "sweep.recipe": recipe_for(found.overrides, storage, say)}
