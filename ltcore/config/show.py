"""What ``--show`` and ``ltcore show`` print: the resolved configuration, without importing torch.

Names and types are checked as in a real run; the owners' checks of ranges and combinations live beside code that needs
torch and happen when the run starts, or at once with ``--dry-run``. The text says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ltcore.config.keys import run_keys
from ltcore.config.overrides import Tree
from ltcore.config.plugged import with_plugins
from ltcore.config.recipes import read_run
from ltcore.config.sweep import read_sweep
from ltcore.config.validate import plain_run, shape, validate

NOTE = "# Names and types are checked; ranges and combinations are when it runs, or now with --dry-run."
STAGE2_NOTE = (
    "# Stage 2: what is left at its default in data, augment, model, objective and train comes from stage2.from_run, but for "
    "what\n# concerns this run alone (ltcore keys stage2.from_run)."
)


INPUT_NOTE = (
    "# Pretrained weights say what is null of data.image_size, mean, std, interpolation, crop_fraction and crop_mode; --dry-run "
    "prints it."
)
_OF_WEIGHTS = ("image_size", "mean", "std", "interpolation", "crop_fraction", "crop_mode")


def show_run(recipe: str, overrides: Mapping[str, Any] = {}) -> str:
    """Returns the YAML of a recipe with overrides and all defaults; it reads back as a recipe."""
    tree = run_tree(recipe, overrides)
    notes = [f"# {note}" for note in (left_out(recipe, overrides),) if note]
    if _starts_from_weights(tree) and any(tree["data"][name] is None for name in _OF_WEIGHTS):
        notes.append(INPUT_NOTE)
    return "\n".join([f"{_yaml(tree)}{NOTE}", *notes, *([STAGE2_NOTE] if "stage2" in tree else [])])


def show_sweep(sweep: str, overrides: Mapping[str, Any] = {}) -> str:
    """Returns the YAML of a sweep, then that of the run from which its trials start."""
    config = read_sweep(sweep, overrides)
    return f"{_yaml(config.to_dict())}--- # every trial starts from\n{_run_yaml(config.recipe, config.overrides)}{NOTE}"


def run_tree(recipe: str, overrides: Mapping[str, Any] = {}) -> Tree:
    """Returns the same as ``load_run(recipe, overrides).to_dict()``, without the owners' checks and without torch."""
    tree = with_plugins(read_run(recipe, overrides)[0], imported=False)
    return plain_run(validate(shape("Run"), run_keys(), tree))


def left_out(recipe: str, overrides: Mapping[str, Any] = {}) -> str:
    """Returns what the run does not take over from its recipe; usually ''.

    It is left out because the run has other data than the recipe.
    """
    return read_run(recipe, overrides)[1]


def _starts_from_weights(tree: Tree) -> bool:
    return tree["model"]["weights"] is not None or tree["train"]["init_from"] is not None


def _run_yaml(recipe: str, overrides: Mapping[str, Any]) -> str:
    return _yaml(run_tree(recipe, overrides))


def _yaml(tree: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120)
