"""Runs as one Markdown table, a line per configuration: what a README or a paper quotes, straight from run directories."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from ltcore.config.keys import comes_from_stage1
from ltcore.config.show import run_tree
from ltcore.config.tree import as_text, flatten, header, packaged
from ltcore.errors import DataError
from ltcore.tracking.page import IDENTITY, duration
from ltcore.tracking.records import StoredRun

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
"""Keys, and beginnings of keys, that say where a run was computed or logged and do not tell methods apart."""
PUBLISHED = re.compile(r"top-1 (?:at imbalance ([\d /]+): )?([\d. /]+) published")
"""In a recipe's header: 'top-1 57.0 published', or 'top-1 at imbalance 100 / 50: 43.0 / 46.6 published'."""


def results_table(runs: Sequence[StoredRun]) -> str:
    """A Markdown table of finished runs; those of the same data that differ in nothing but the seed share a line.

    Accuracies are top-1 in percent on the class-balanced test split (``test_cbl``, else ``test``): mean and, from two
    seeds on, standard deviation (n - 1). 'last' has the weights of the last epoch, 'best on val' those of the best
    epoch on validation; shot groups are of 'last'. 'published' is what the recipe's header promises for its own number
    of epochs and this imbalance factor. The command is the packaged recipe that differs in the fewest keys, with these as overrides; of stage 2
    with the name of its first run of stage 1, and runs share a line whose stage 1 differs in nothing but the seed. Raises
    DataError for a run that is not finished or was not tested.
    """
    recipes = {name: flatten(run_tree(name)) for name in packaged("recipe")}
    lines: dict[tuple[str, str, str, str], list[StoredRun]] = {}
    for run in runs:
        if run.info.get("status") != "finished" or not run.tests():
            raise DataError(
                f"{run.path} is {run.info.get('status', 'without run.json')}, not finished and tested: a table holds "
                "results. Let the same command continue it, or leave it away."
            )
        recipe, overrides = _command(run.info["config"], recipes)
        stage1 = {k: v for k, v in run.info["config"].items() if "stage1" in run.info and comes_from_stage1(k)}
        lines.setdefault((recipe, overrides, run.info["data"]["hash"], str(sorted(stage1.items()))), []).append(run)
    rows = [_row(recipe, overrides, group) for (recipe, overrides, *_), group in lines.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in [COLUMNS, ["---"] * len(COLUMNS), *rows])


def _command(config: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """(recipe, overrides) of the packaged recipe closest to a stored configuration."""
    second = "stage2.method" in config
    told = {k: v for k, v in config.items() if not k.startswith(ELSEWHERE) and not (second and comes_from_stage1(k))}

    def overrides(recipe: str) -> dict[str, Any]:
        base = recipes[recipe]
        return {k: v for k, v in told.items() if k not in base or base[k] != v}

    alike = [name for name, keys in recipes.items() if ("stage2.method" in keys) == second]
    closest = min(alike, key=lambda recipe: len(overrides(recipe)))
    return closest, " ".join(f"{key}={as_text(value)}" for key, value in overrides(closest).items())


def _row(recipe: str, overrides: str, runs: Sequence[StoredRun]) -> list[str]:
    last = [_balanced(run.tests()) for run in runs]
    best = [_balanced(run.info["test_best"]) for run in runs if run.info.get("test_best")]
    stage1 = f"stage2.from_run={runs[0].info['stage1']['name']}" if "stage1" in runs[0].info else ""
    groups = [[m[group] for m in last if m.get(group) is not None] for group in ("many", "medium", "few")]
    return [
        recipe,
        runs[0].info["data"]["name"],
        str(runs[0].info["epochs_done"]),
        ", ".join(str(run.info["seed"]) for run in runs),
        _spread([m["top1"] for m in last]),
        _spread([m["top1"] for m in best]) if best else "—",
        " / ".join(f"{100 * fmean(values):.1f}" if values else "—" for values in groups),
        _published(recipe, runs[0].info["config"].get("data.imbalance_factor")),
        duration(fmean(run.info["seconds"] for run in runs)),
        f"`train.py {' '.join(filter(None, [recipe, stage1, overrides]))}`",
    ]


def _published(recipe: str, imbalance_factor: float | None) -> str:
    promised = PUBLISHED.search(" ".join(header(packaged("recipe")[recipe])))
    if promised is None:
        return "—"
    factors, values = promised[1], promised[2].split(" / ")
    if factors is None:
        return values[0]
    by_factor = dict(zip(map(float, factors.split(" / ")), values, strict=True))
    return "—" if imbalance_factor is None else by_factor.get(imbalance_factor, "—")


def _balanced(tests: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    for split in ("test_cbl", "test"):
        if split in tests:
            return tests[split]
    raise DataError(f"The test splits are {', '.join(tests)}: a table needs the class-balanced one, test_cbl or test.")


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.2f}{spread}"
