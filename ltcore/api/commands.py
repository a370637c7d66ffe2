"""``ltcore.train``, ``tune`` and ``evaluate``: the commands of the same names, for scripts and notebooks.

    run = ltcore.train("cifar100_lt_ce", data="photos", **{"train.epochs": 5})
    run.metrics["test"]["balanced_accuracy"], run.predictor().predict("cat.jpg")

They share names, defaults and directories with the command line: what one began, the other continues. Whatever is wrong
raises a class of ``ltcore.errors``. An interrupt saves a checkpoint first, and the same call goes on from there; after a
second one, or through Ray, it goes on from the last checkpoint. A Ray that the program has started itself is used where
Ray is needed, and left running.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ltcore.api.results import Evaluation, Protocols, Run, Sweep
from ltcore.cli.args import DEMO_SWEEP, ProtocolsArgs, RetrieveArgs, TrainArgs, TuneArgs, absolute, check_reading, fold
from ltcore.cli.output import Output
from ltcore.cli.prepare import storage_root
from ltcore.config.execution import AUTO, ENGINES, PlaceArgs
from ltcore.config.records import RunRecord, SweepRecord
from ltcore.config.schema import RunConfig
from ltcore.errors import CheckpointError, ConfigError, at_least, one_of
from ltcore.reporting.terminal import Terminal
from ltcore.storage import join
from ltcore.text import message

if TYPE_CHECKING:
    from ltcore.evaluation.retrieval import Retrieval
    from ltcore.training.predictor import Predictor

PathLike = str | Path


def train(
    recipe: PathLike | RunConfig | None = None,
    *,
    data: PathLike | None = None,
    name: str | None = None,
    seed: int | None = None,
    storage: PathLike | None = None,
    fresh: bool = False,
    engine: str = "auto",
    workers: int | tuple[int, int] | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
    max_gpus: float | None = None,
    verbose: bool = True,
    **overrides: Any,
) -> Run:
    """Trains a recipe, or continues it, and returns the run. A finished run is returned as it is stored.

    Args:
        recipe: name of a packaged recipe, path or URI of a YAML file, or a configuration; None: the one for own images,
            by their size.
        data: folder or zip of images, shards, or the name of a source; None: LTCORE_DATA, else the recipe's.
        name: name of the run; None makes it from recipe, data, changed keys and seed; a configuration keeps its own. One
            that exists continues.
        seed: seed of the run; None: the recipe's.
        storage: path or URI under which run directories go; None: LTCORE_STORAGE, else ``~/ltcore-runs``.
        fresh: start anew, whatever is stored under this name.
        engine: 'auto', 'inline' (this process), 'trial' (a Ray task) or 'train' (Ray Train workers).
        workers: Ray Train workers, or the fewest and the most of them.
        cpus_per_worker, gpus_per_worker, max_gpus: as the flags of these names.
        verbose: tell what is done, and the progress.
        overrides: dotted keys of ``ltcore keys``, such as ``**{"train.epochs": 5}``.
    """
    out = _output(verbose)
    place = _place(storage, fresh, engine, workers, cpus_per_worker, gpus_per_worker, max_gpus)
    changes = _folded(overrides, {"name": name, "seed": seed, "data.uri": data})
    if recipe is None and "data.uri" not in changes:
        raise ConfigError(
            "train() needs data=, whose image size then chooses the recipe, or a recipe (`ltcore recipes`)."
        )
    from ltcore.cli.train import load, train_config

    if isinstance(recipe, RunConfig):
        cfg = _configured(recipe, changes)
    else:
        cfg = load(TrainArgs(recipe=str(recipe or ""), overrides=changes, **place), out)
    record = train_config(cfg, PlaceArgs(**place), out, typed=changes)
    uri = join(storage_root(place["storage"]), cfg.name)
    return open_run(uri) if record is None else Run(record, uri)


def tune(
    recipe: PathLike | None = None,
    *,
    sweep: PathLike = DEMO_SWEEP,
    space: Mapping[str, Any] | None = None,
    num_trials: int | None = None,
    search: str | None = None,
    max_hours: float | None = None,
    data: PathLike | None = None,
    name: str | None = None,
    seed: int | None = None,
    storage: PathLike | None = None,
    fresh: bool = False,
    engine: str = "auto",
    workers: int | tuple[int, int] | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | Literal["auto"] | None = None,
    max_gpus: float | None = None,
    verbose: bool = True,
    **overrides: Any,
) -> Sweep:
    """Runs a sweep, or continues it, and returns it. A finished one is returned as it is stored.

    Args:
        recipe: the recipe of every trial, as a name, path or URI; None: the sweep file's, but of ``tune_lpa`` on other data
            than its digits ``folder`` or ``folder_small``, by the size of the images.
        sweep: name of a packaged sweep, or path or URI of a YAML file.
        space: changes to the search space: dotted key -> 'log:0.01,1', ``{"log": [0.01, 1]}``, or None to take it out.
        num_trials, search, max_hours: as the flags of these names.
        overrides: dotted keys of every run, and keys of the sweep that start with ``sweep.``.

    The other arguments are those of :func:`train`.
    """
    from ltcore.cli import tune as command

    place = _place(storage, fresh, engine, workers, cpus_per_worker, gpus_per_worker, max_gpus, sweeps=True)
    own = {"recipe": recipe, "name": name, "num_trials": num_trials, "search": search}
    keys = {"seed": seed, "data.uri": data, **{f"sweep.{key}": value for key, value in own.items()}}
    spaces = {f"sweep.space.{key}": "null" if spec is None else spec for key, spec in (space or {}).items()}
    changes = _folded({**overrides, **spaces}, keys)
    record = command.tune(TuneArgs(sweep=str(sweep), overrides=changes, max_hours=max_hours, **place), _output(verbose))
    assert record is not None, "it is None after --dry-run alone"
    return Sweep(record, join(storage_root(place["storage"]), record.name))


def evaluate(
    run: Run | Sweep | Predictor | PathLike,
    data: PathLike | None = None,
    *,
    splits: Sequence[str] = (),
    protocols: Sequence[str] = (),
    posthoc_tau: float = 0.0,
    tta: str = "none",
    verbose: bool = True,
    **reading: Any,
) -> Evaluation:
    """Computes the metrics of a trained classifier on the test splits of its data, or of other data.

    Args:
        run: what was trained (of a sweep its winner), or the path or URI of a run or checkpoint directory.
        data: other data to evaluate on, whose classes go by name; None: LTCORE_DATA, else those of training.
        splits: splits by name; without them and ``protocols``, every test split.
        protocols: any of 'clt', 'alt', 'glt'.
        posthoc_tau: strength of post-hoc logit adjustment; a ``Predictor`` brings its own.
        tta: 'none', 'flip' (mean logits with the mirror image) or 'five_crop' (of corners and center, as LIFT does); a
            ``Predictor`` brings its own.
        verbose: tell what is done.
        reading: how ``data`` is read, as ``**{"data.label_column": "species"}``.
    """
    from ltcore.cli.evaluate import measured
    from ltcore.evaluation.protocols import PROTOCOLS
    from ltcore.training.predict import load
    from ltcore.training.predictor import Predictor

    for protocol in protocols:
        _checked(PROTOCOLS, protocols=protocol)
    if splits and protocols:
        raise ConfigError(
            f"splits={list(splits)} and protocols={list(protocols)}: give one of the two, each names test splits."
        )
    if isinstance(run, Run | Sweep):
        predictor = run.predictor(posthoc_tau, tta)
    else:
        predictor = run if isinstance(run, Predictor) else load(run, posthoc_tau, tta=tta)
    given = _given(data, reading)
    found = measured(predictor, given, splits, protocols, _output(verbose), reading=reading)
    return Evaluation(found, predictor)


def evaluate_protocols(
    *runs: Run | PathLike,
    data: PathLike | None = None,
    train_missing: bool = False,
    posthoc_tau: float = 0.0,
    tta: str = "none",
    verbose: bool = True,
) -> Protocols:
    """Evaluates runs under CLT, ALT and GLT side by side, with intervals.

    Two training splits take two runs that are else the same: one on ``train``, one on ``train_cbl``. The one that is not
    given is looked for beside the other. Raises ConfigError where it is missing, or where runs do not belong together.

    Args:
        runs: runs of one configuration with one or more seeds, or the paths or URIs of their directories.
        data: other data with the same splits; None: LTCORE_DATA, else those of training.
        train_missing: train the runs that are not there, or continue them.
        posthoc_tau, tta: as the flags of these names.
        verbose: tell what is done.
    """
    from ltcore.cli.protocols import compared
    from ltcore.training.predictor import TTA

    if not runs:
        raise ConfigError("evaluate_protocols() needs a run, or the directory of one.")
    _checked(TTA, tta=tta)
    given = data if data is not None else os.environ.get("LTCORE_DATA")
    args = ProtocolsArgs(
        runs=tuple(run.uri if isinstance(run, Run) else str(run) for run in runs),
        data=None if given is None else str(given),
        train_missing=train_missing,
        posthoc_tau=posthoc_tau,
        tta=tta,
    )
    return Protocols(*compared(args, _output(verbose)))


def retrieve(
    run: Run | PathLike,
    images: Sequence[PathLike] = (),
    *,
    data: PathLike | None = None,
    output: PathLike | None = None,
    weights: PathLike | None = None,
    neighbors: int = 8,
    prototypes: int = 16,
    verbose: bool = True,
    **reading: Any,
) -> Retrieval:
    """Finds the training images nearest by pseudo-attributes, patches of prototypes, and classes that share parts.

    Args:
        run: what was trained, the path or URI of a run or checkpoint directory, or the name of a backbone with published
            weights, which needs ``data``.
        images: queries, as files, folders, zips or lists; without any, some of the test split.
        data: data to search; None: LTCORE_DATA, else those of training.
        output: file for the page that ``ltcore retrieve`` makes; None: no page.
        weights: of a backbone: a file, or 'default'; None: 'default'.
        neighbors: images to find for each query, >= 1.
        prototypes: how many of the prototypes are to be shown, >= 1.
        verbose: tell what is done.
        reading: how ``data`` is read, as for ``evaluate``.
    """
    from ltcore.cli.retrieve import searched
    from ltcore.reporting.retrieve_page import write_retrieval

    _at_least_one(neighbors=neighbors, prototypes=prototypes)
    args = RetrieveArgs(
        run=run.uri if isinstance(run, Run) else str(run),
        weights=None if weights is None else absolute("model.weights", str(weights)),
        images=tuple(map(str, images)),
        data=_given(data, reading),
        output=None,
        neighbors=neighbors,
        prototypes=prototypes,
        reading=reading,
    )
    found = searched(args, _output(verbose))
    if output is not None:
        write_retrieval(found, output)
    return found


def _given(data: PathLike | None, reading: Mapping[str, Any]) -> str | None:
    """Returns the other data that are meant, if there are any. Raises ConfigError for keys that say nothing of them."""
    check_reading(reading)
    given = data if data is not None else os.environ.get("LTCORE_DATA")
    if reading and given is None:
        raise ConfigError(f"{next(iter(reading))} says how other data are read: give them as data.")
    return None if given is None else str(given)


def open_run(directory: PathLike) -> Run:
    """Opens a run that was trained before, finished or not. Raises CheckpointError where there is none."""
    record = RunRecord.read(directory)
    if record is None:
        raise CheckpointError(f"{directory} has no run.json: expected the directory of a run, as a path or URI.")
    return Run(record, str(directory))


def open_sweep(directory: PathLike) -> Sweep:
    """Opens a sweep that was run before, finished or not. Raises CheckpointError where there is none."""
    record = SweepRecord.read(directory)
    if record is None:
        raise CheckpointError(f"{directory} has no sweep.json: expected the directory of a sweep, as a path or URI.")
    return Sweep(record, str(directory))


def _configured(cfg: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Returns the configuration with changed keys; other data are taken whole, as beside a recipe."""
    from ltcore.data.datasets.registry import on_other_data

    if "data.uri" in changes:
        cfg = dataclasses.replace(cfg, data=on_other_data(cfg.data, changes["data.uri"]))
    return cfg.replace(changes) if changes else cfg


def _folded(overrides: Mapping[str, Any], keys: Mapping[str, object]) -> dict[str, Any]:
    """Joins the arguments that stand for keys to the overrides, as the command line does."""
    words = {key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()}
    changes = {key: absolute(key, value) if isinstance(value, str) else value for key, value in words.items()}
    fold(changes, keys)
    return changes


def _place(
    storage: PathLike | None,
    fresh: bool,
    engine: str,
    workers: int | tuple[int, int] | None,
    cpus_per_worker: float | None,
    gpus_per_worker: float | Literal["auto"] | None,
    max_gpus: float | None,
    *,
    sweeps: bool = False,
) -> dict[str, Any]:
    _checked(ENGINES, engine=engine)
    if isinstance(gpus_per_worker, str) and not (sweeps and gpus_per_worker == AUTO):
        raise ConfigError(f"gpus_per_worker={gpus_per_worker!r}: expected a number >= 0{', or auto' * sweeps}.")
    pair = (workers, workers) if isinstance(workers, int) else workers
    if pair is not None and not 1 <= pair[0] <= pair[1]:
        raise ConfigError(f"workers={workers}: expected a whole number >= 1, or the fewest and the most of them.")
    return {
        "engine": engine,
        "workers": pair,
        "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker,
        "max_gpus": max_gpus,
        "storage": str(storage) if storage is not None else os.environ.get("LTCORE_STORAGE"),
        "fresh": fresh,
    }


def _checked(allowed: Iterable[str], **values: str) -> None:
    try:
        one_of(allowed, **values)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None


def _at_least_one(**values: int) -> None:
    try:
        at_least(1, **values)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None


def _output(verbose: bool) -> Output:
    """Returns an output that shows no results, which the caller gets, and where asked to nothing at all."""

    def terminal() -> Terminal:
        return Terminal(quiet=not verbose)

    def say(text: str) -> None:
        terminal().print(message(text), soft_wrap=True)

    return Output(say=say, terminal=terminal, shows_results=False)
