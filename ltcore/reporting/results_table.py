"""A Markdown table of runs for a README or a paper, one line per configuration."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from statistics import fmean, stdev
from typing import Any

from ltcore.config.keys import comes_from_stage1, effective
from ltcore.config.overrides import as_text, flatten
from ltcore.config.recipes import header, packaged
from ltcore.config.show import run_tree
from ltcore.data.config import SELECTION
from ltcore.data.datasets.registry import find
from ltcore.errors import DataError
from ltcore.reporting.page import IDENTITY
from ltcore.reporting.records import StoredRun
from ltcore.text import duration, markdown_cell, markdown_code

COLUMNS = (
    "method",
    "data",
    "epochs",
    "seeds",
    "last",
    "best on val",
    "many / medium / few",
    "published",
    "time each",
    "command",
)
ELSEWHERE = (*IDENTITY, "data.uri", "train.threads", "tracking.", "stage2.from_run")
"""Keys, and prefixes of keys, that tell where a run was computed or logged and do not distinguish methods."""
METHOD = ("objective.", "model.", "stage2.options.", "train.optim.")
"""Prefixes of keys that change the method of a recipe."""
PUBLISHED = re.compile(r"top-1 (?:at imbalance ([\d /]+): )?([\d. /]+) published")
"""Published numbers in a recipe's header: 'top-1 57.0 published', or 'top-1 at imbalance 100 / 50: 43.0 / 46.6
published'.
"""


_SELECTION = tuple(f"data.{key}" for key in SELECTION)
_MADE = re.compile(r"-if([\d.]+)-")


def results_table(runs: Sequence[StoredRun]) -> str:
    """Returns a Markdown table of finished runs; runs that differ only in the seed share a line.

    Accuracies are top-1 in percent on the class-balanced test split (``test_cbl``, else ``test``): mean and, from two
    seeds on, standard deviation (n - 1). 'last' uses the weights of the last epoch, 'best on val' those of the best
    epoch on validation; shot groups are of 'last'.

    'published' is the number in the recipe's header, for the recipe's number of epochs and augmentation and for this
    imbalance factor. It is empty where loss, network, optimizer, options of stage 2 or the method of stage 1 are not
    those of the recipe.

    The command is the packaged recipe that differs in the fewest keys, with these as overrides; for stage 2 it has the
    name of its first run of stage 1. Runs of stage 2 share a line if their stage 1 differs only in the seed.

    Raises DataError for a run that is not finished or was not tested.
    """
    recipes = {name: flatten(run_tree(name)) for name in packaged("recipe")}
    lines: dict[tuple[str, str, str, str, str], list[StoredRun]] = {}
    for run in runs:
        if missing(run):
            raise DataError(f"{run.path}: {missing(run)}. Let the same command continue it, or leave it out.")
        config = effective(run.info["config"])
        stage1 = {k: v for k, v in config.items() if "stage1" in run.info and comes_from_stage1(k)}
        recipe, overrides = _closest({k: v for k, v in config.items() if k not in stage1}, recipes)
        published = _published(
            recipe, [*overrides, *_changed_below(recipe, stage1, recipes)], config, run.info["data"]["name"]
        )
        command = shlex.join(f"{key}={as_text(value)}" for key, value in overrides.items())
        stage1_text = str(sorted(stage1.items()))
        lines.setdefault((recipe, command, published, run.info["data"]["hash"], stage1_text), []).append(run)
    rows = [_row(recipe, command, published, group) for (recipe, command, published, *_), group in lines.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in [COLUMNS, ["---"] * len(COLUMNS), *rows])


def missing(run: StoredRun) -> str:
    """Returns what a folder lacks for a line in the table; '' for a finished run."""
    if not run.info:
        return (
            "a sweep, whose report.html has its results"
            if (run.path / "sweep.json").exists()
            else "no run: without run.json"
        )
    if run.info.get("status") != "finished":
        return f"{run.info.get('status')}, not finished"
    return "" if run.tests() else "not tested: a trial of a sweep"


def _closest(config: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """(recipe, overrides) of the packaged recipe closest to a stored configuration."""
    own_data = find(config["data.uri"]).by_path  # on which a recipe's selection has no effect by itself
    told = {
        k: v for k, v in config.items() if not (k.startswith(ELSEWHERE) or (own_data and k in _SELECTION and v is None))
    }

    def overrides(recipe: str) -> dict[str, Any]:
        base = recipes[recipe]
        return {k: v for k, v in told.items() if k not in base or base[k] != v}

    alike = [name for name, keys in recipes.items() if ("stage2.method" in keys) == ("stage2.method" in config)]
    closest = min(alike, key=lambda recipe: len(overrides(recipe)))
    return closest, overrides(closest)


def _changed_below(recipe: str, stage1: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the keys in which stage 1 differs from the recipe that ``recipe`` starts from.

    [] without stage 2.
    """
    if not stage1:
        return []
    base = recipes[PurePosixPath(recipes[recipe]["stage2.from_run"]).name]
    return [k for k, v in stage1.items() if not k.startswith(ELSEWHERE) and (k not in base or base[k] != v)]


def _row(recipe: str, overrides: str, published: str, runs: Sequence[StoredRun]) -> list[str]:
    last = [_balanced(run.tests()) for run in runs]
    best = [_balanced(run.info["test_best"]) for run in runs if run.info.get("test_best")]
    stage1 = shlex.quote(f"stage2.from_run={runs[0].info['stage1']['name']}") if "stage1" in runs[0].info else ""
    groups = [[m[group] for m in last if m.get(group) is not None] for group in ("many", "medium", "few")]
    return [
        recipe,
        markdown_cell(runs[0].info["data"]["name"]),
        markdown_cell(str(runs[0].info["epochs_done"])),
        markdown_cell(", ".join(str(run.info["seed"]) for run in runs)),
        _spread([m["top1"] for m in last]),
        _spread([m["top1"] for m in best]) if best else "—",
        " / ".join(f"{100 * fmean(values):.1f}" if values else "—" for values in groups),
        published,
        duration(fmean(run.info["seconds"] for run in runs)),
        markdown_code(f"train.py {' '.join(filter(None, [recipe, stage1, overrides]))}"),
    ]


def _published(recipe: str, changed: Sequence[str], config: Mapping[str, Any], data: str) -> str:
    """Returns the published number for this configuration, or a dash.

    ``data`` is the name of the data set; that of a long-tailed one ends with '-if<factor>-<subset>'.
    """
    promised = PUBLISHED.search(" ".join(header(packaged("recipe")[recipe])))
    if promised is None or any(key.startswith(METHOD) for key in changed):
        return "—"
    factors, values = promised[1], promised[2].split(" / ")
    if factors is None:
        return values[0]
    by_factor = dict(zip(map(float, factors.split(" / ")), values, strict=True))
    made = _MADE.search(data)  # the name of existing shards counts, not the configuration
    return by_factor.get(float(made[1]) if made else config["data.imbalance_factor"] or 1.0, "—")


def _balanced(tests: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    for split in ("test_cbl", "test"):
        if split in tests:
            return tests[split]
    raise DataError(f"The test splits are {', '.join(tests)}: a table needs the class-balanced one, test_cbl or test.")


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.2f}{spread}"
