"""A Markdown table of runs for a README or a paper, one line per configuration."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from statistics import fmean, stdev
from typing import Any

from ltcore.config.keys import comes_from_stage1, effective
from ltcore.config.overrides import as_text, flatten
from ltcore.config.recipes import header, packaged
from ltcore.config.records import Metrics, RunRecord
from ltcore.config.show import run_tree
from ltcore.data.config import PLACE_KEYS, SELECTION
from ltcore.data.datasets.registry import find
from ltcore.errors import DataError
from ltcore.plugins.loading import known
from ltcore.plugins.source import Plugin
from ltcore.reporting.format import TRAINED, count_text
from ltcore.reporting.page import IDENTITY
from ltcore.reporting.records import StoredRun
from ltcore.text import duration, markdown_cell, markdown_code
from ltcore.uris import is_local, local_path

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
PLACES = ("data.uri", *(f"data.{key}" for key in PLACE_KEYS))
"""Keys that say where images are."""
ELSEWHERE = (*IDENTITY, *PLACES, "train.threads", "tracking.", "stage2.from_run")
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

    Accuracies are balanced accuracies in percent on ``test_cbl``, else ``test``, which are top-1 where the split is
    balanced: mean and, from two seeds on, standard deviation (n - 1). 'last' uses the weights of the last epoch, 'best on
    val' those of the best epoch on validation; shot groups are of 'last'.

    'published' is the number in the recipe's header, for the recipe's number of epochs and augmentation and for this
    imbalance factor. It is empty where loss, network, optimizer, options of stage 2 or the method of stage 1 are not
    those of the recipe. Where runs differ in how many parameters they train (``model.tune``), a column says how many.

    The command is the packaged recipe that differs in the fewest keys, with these as overrides, and with the images of
    the first run where the recipe does not name them; for stage 2 it has the name of its first run of stage 1. Runs of
    stage 2 share a line if their stage 1 differs only in the seed.

    Raises DataError for a run that is not finished or was not tested.
    """
    recipes = _recipes()
    lines: dict[tuple[str, str, str, str, str], list[RunRecord]] = {}
    for run in runs:
        record = run.record
        if record is None or missing(run):
            raise DataError(f"{run.path}: {missing(run)}. Let the same command continue it, or leave it out.")
        config = effective(record.config)
        recipe, overrides, stage1 = _described(record, config, recipes)
        published = _published(recipe, [*overrides, *_changed_below(recipe, stage1, recipes)], config, record.data.name)
        command = shlex.join(f"{key}={as_text(value)}" for key, value in overrides.items())
        stage1_text = str(sorted(stage1.items()))
        group = lines.setdefault((recipe, command, published, record.data.hash, stage1_text), [])
        if _sample(record) in map(_sample, group):
            raise DataError(
                f"{run.path} is seed {record.seed} once more of a run that is given already, and would count as another sample. "
                "Leave one of them out."
            )
        group.append(record)
    rows = [
        _row(recipe, _places(group[0], recipes[recipe]), command, published, group)
        for (recipe, command, published, *_), group in lines.items()
    ]
    table = [list(COLUMNS), ["---"] * len(COLUMNS), *rows]
    trained = [group[-1].trained_parameters for group in lines.values()]
    if len(set(trained)) > 1:
        cells = [TRAINED, "---", *map(count_text, trained)]
        table = [[*row[:-2], cell, *row[-2:]] for row, cell in zip(table, cells, strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def _sample(record: RunRecord) -> tuple[int, int | None]:
    """Returns the seeds by which a run is another sample than others of its line: its own, and that of its stage 1."""
    return record.seed, None if record.stage1 is None else record.stage1.seed


def command(record: RunRecord) -> str:
    """Returns the command of a run: the packaged recipe that differs in the fewest keys, the images, and the other keys."""
    recipes = _recipes()
    recipe, overrides, _ = _described(record, effective(record.config), recipes)
    changed = [f"{key}={as_text(value)}" for key, value in overrides.items()]
    return f"train.py {shlex.join([recipe, *_places(record, recipes[recipe]), *changed, f'seed={record.seed}'])}"


def _places(record: RunRecord, recipe: Mapping[str, Any]) -> list[str]:
    """Returns what names the images of a run, or its run of stage 1, where that is not in the recipe.

    Of a local path this is the last part alone: a table or a card goes to people who have it elsewhere, or nowhere.
    """
    if record.stage1 is not None:
        return [f"stage2.from_run={record.stage1.name}"]
    found = []
    for key in PLACES:
        uri = str(record.config.get(key) or "")
        if not uri or uri == recipe.get(key) or (key == "data.uri" and not find(uri).by_path):
            continue
        last = (local_path(uri).absolute().name if is_local(uri) else "") or uri
        found += ["--data", last] if key == "data.uri" else [f"{key}={last}"]
    return found


def _recipes() -> Mapping[str, Mapping[str, Any]]:
    return _recipes_with(known())


@functools.cache
def _recipes_with(_plugins: tuple[Plugin, ...]) -> Mapping[str, Mapping[str, Any]]:
    return {name: _decided(flatten(run_tree(name))) for name in packaged("recipe")}


def _described(
    record: RunRecord, config: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Returns recipe and overrides of a run, and the keys that it has from its stage 1."""
    stage1 = {k: v for k, v in config.items() if record.stage1 is not None and comes_from_stage1(k)}
    return *_closest({k: v for k, v in config.items() if k not in stage1}, recipes), stage1


def missing(run: StoredRun) -> str:
    """Returns what a folder lacks for a line in the table; '' for a finished run."""
    if run.record is None:
        return (
            "a sweep, whose report.html has its results"
            if (run.path / "sweep.json").exists()
            else "no run: without run.json"
        )
    if run.record.status != "finished":
        return f"{run.record.status}, not finished"
    return "" if run.tests() else "not tested: a trial of a sweep"


def _decided(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe as runs store it where published weights, which it takes if it can, were at hand."""
    return {**recipe, **({"model.weights": "default"} if recipe.get("model.weights") == "auto" else {})}


def _closest(config: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Returns (recipe, overrides) of the packaged recipe closest to a stored configuration."""
    uri = str(config.get("data.uri", ""))
    own_data = find(uri).by_path  # a recipe's selection has no effect on it
    told = {
        k: v for k, v in config.items() if not (k.startswith(ELSEWHERE) or (own_data and k in _SELECTION and v is None))
    }

    def overrides(recipe: str) -> dict[str, Any]:
        base = recipes[recipe]
        return {k: v for k, v in told.items() if k not in base or base[k] != v}

    def is_alike(recipe: Mapping[str, Any]) -> bool:
        theirs = str(recipe.get("data.uri", ""))
        other_data = not own_data and not find(theirs).by_path and theirs != uri  # of two published data sets
        return ("stage2.method" in recipe) == ("stage2.method" in config) and not other_data

    alike = [name for name, keys in recipes.items() if is_alike(keys)]
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


def _row(recipe: str, places: Sequence[str], overrides: str, published: str, runs: Sequence[RunRecord]) -> list[str]:
    first = runs[0]
    last = [_balanced(run.test or {}) for run in runs]
    best = [_balanced(run.test_best) for run in runs if run.test_best]
    return [
        recipe,
        markdown_cell(first.data.name),
        markdown_cell(str(first.epochs_done)),
        markdown_cell(", ".join(str(run.seed) for run in runs)),
        _spread(_values(last, "balanced_accuracy")),
        _spread(_values(best, "balanced_accuracy")) if best else "—",
        " / ".join(_mean(_values(last, group)) for group in ("many", "medium", "few")),
        published,
        duration(fmean(run.seconds or 0.0 for run in runs)),
        markdown_code(f"train.py {' '.join(filter(None, [recipe, shlex.join(places), overrides]))}"),
    ]


def _values(tests: Sequence[Metrics], metric: str) -> list[float]:
    return [value for metrics in tests if (value := metrics.get(metric)) is not None]


def _mean(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f}" if values else "—"


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
    made = _MADE.search(data)  # shards that were made already are what they are, whatever the configuration says
    return by_factor.get(float(made[1]) if made else config.get("data.imbalance_factor") or 1.0, "—")


def _balanced(tests: Mapping[str, Metrics]) -> Metrics:
    for split in ("test_cbl", "test"):
        if split in tests:
            return tests[split]
    raise DataError(f"The test splits are {', '.join(tests)}: a table needs the class-balanced one, test_cbl or test.")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "—"
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.2f}{spread}"
