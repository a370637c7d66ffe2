"""From recipes and sweep files to validated runs.

    run = load_run("cifar100_lt_dro", {"objective.terms.dro.radius": "0.5", "train.epochs": 30})
    RunConfig.from_dict(run.to_dict()) == run

One dotted key (``objective.terms.dro.radius``) is the command line's override, the YAML path, the key of a search space
and the column in W&B. Everything that is wrong raises ``ConfigError`` with the key, the value and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ltcore.config.keys import comes_from_stage1, leaves, run_keys
from ltcore.config.plugged import KEY
from ltcore.config.recipes import read_run
from ltcore.config.schema import RunConfig
from ltcore.config.sweep import STAGE1, SweepConfig
from ltcore.data.loading.sampler import check_lanes
from ltcore.errors import ConfigError
from ltcore.evaluation.catalog import NCM, VALIDATION
from ltcore.models.weights import AUTO
from ltcore.plugins.loading import PIN, known_parts

GRACE_FRACTION = 0.25
"""``sweep.grace_fraction`` where it is null and no term begins later."""

__all__ = [
    "base_run",
    "check_sweep",
    "load_run",
    "load_sweep",
]


def load_run(recipe: str, overrides: Mapping[str, Any] = {}) -> RunConfig:
    """Loads a recipe with dotted overrides, and validates it.

    ``recipe`` is a packaged name, or the path or URI of a YAML file.
    """
    return RunConfig.from_dict(read_run(recipe, overrides)[0])


def check_world(run: RunConfig, world: int) -> None:
    """Raises ConfigError where ``world`` workers cannot share the batches of a run."""
    train, group = run.train, run.model.ghost_batch or 1
    check_lanes(run.data.lanes, train.batch_size, world)
    share = train.batch_size // world
    if share % (train.accumulate * group):
        product = f"train.accumulate={train.accumulate}" + (f" times model.ghost_batch={group}" if group > 1 else "")
        raise ConfigError(
            f"{product} does not divide the {share} images that each of {world} workers takes of "
            f"train.batch_size={train.batch_size}. Choose a divisor of {share}, or another number of workers."
        )


def load_sweep(sweep: SweepConfig) -> RunConfig:
    """Loads the run that every trial starts from, and tries both ends of every range on it."""
    base = base_run(sweep)
    check_sweep(sweep, base)
    return base


def base_run(sweep: SweepConfig) -> RunConfig:
    """Returns the run that every trial starts from: the recipe with the sweep's overrides."""
    run = load_run(sweep.recipe, sweep.overrides)
    owner = known_parts().get(("metric", sweep.metric.removeprefix(VALIDATION)), ("",))[0]
    if owner and owner not in {entry.partition(PIN)[0] for entry in run.plugins}:
        run = run.replace({KEY: [*run.plugins, owner]})
    # trials that are ranked by it have to compute it, whatever chooses their best epoch
    return run.replace({"train.ncm": True}) if sweep.metric.startswith(VALIDATION + NCM) else run


def check_sweep(sweep: SweepConfig, base: RunConfig) -> None:
    """Refuses a space with values that the recipe does not take.

    It also refuses a grace period in which some term has not yet begun.
    """
    if base.stage2 is not None or any(key.startswith("stage2.") for key in sweep.space):
        raise ConfigError(
            "stage2: a sweep trains stage 1. Take stage2 out of it, and run stage 2 by train.py on the run of your choice."
        )
    if sweep.search == "pbt" and (base.train.patience is not None or "train.patience" in sweep.space):
        raise ConfigError(
            f"train.patience={base.train.patience} does not go with sweep.search=pbt, whose members take over each other's state "
            "until the last epoch. Set train.patience=null, or another sweep.search."
        )
    _check_settled(sweep, base)
    _check_hot(sweep, base)
    start, name = latest_start(sweep, base)
    if sweep.search != "pbt" and sweep.grace_fraction is not None and sweep.grace_fraction < start:
        raise ConfigError(
            f"sweep.grace_fraction={sweep.grace_fraction} is shorter than objective.terms.{name}.start={start}: "
            f"trials would be stopped before that term acts. Set sweep.grace_fraction={start} or more, or start the "
            "term earlier."
        )


def _check_settled(sweep: SweepConfig, base: RunConfig) -> None:
    """Refuses to vary what is decided once, from this machine and the data, when a sweep begins."""
    varied: dict[str, list[Any]] = {key: list(spec.probes()) for key, spec in sweep.space.items()}
    for changes in sweep.variants.values():
        for key, value in changes.items():
            varied.setdefault(key, []).append(value)
    if base.model.weights == AUTO and "model.name" in varied:
        raise ConfigError(
            f"model.weights={AUTO} does not go with several networks, of which not all may have weights at hand. Set "
            "model.weights=null or default."
        )
    if AUTO in varied.get("model.weights", ()):
        raise ConfigError(
            f"the sweep has model.weights={AUTO} among the values that it varies, expected default, null or a file: which of "
            "them it means is decided once, when a sweep begins. Write default or null there."
        )
    if "train.least_batches" in varied:
        raise ConfigError(
            "the sweep varies train.least_batches, which decides the batch size once, when a sweep begins, and has no effect on "
            "its trials. Vary train.batch_size instead."
        )


def _check_hot(sweep: SweepConfig, base: RunConfig) -> None:
    """Refuses swept keys that may not change during a run, for population-based training.

    It changes keys between two parts of one run, so they may not change what a checkpoint contains.
    """
    types = {key: leaf.type for key, leaf in leaves(run_keys())}
    for key in sweep.mutable:
        runs = [base.replace({key: value}) for value in sweep.space[key].probes()]
        if key == "train.optim.backbone_lr_factor":
            why = "at 1 the optimizer has fewer groups, whose state is another"
        elif types[key] != "float" or not key.startswith(("objective.", "train.optim.")):
            why = "only numbers of losses and optimizer may change while training"
        elif len({tuple(run.objective.active_terms()) for run in runs}) > 1:
            why = f"one of the values of {sweep.space[key]} switches its term off"
        else:
            continue
        raise ConfigError(f"sweep.mutable holds {key}: {why}. Leave it to sweep.space alone, or correct its values.")


def grace_fraction(sweep: SweepConfig, base: RunConfig) -> float:
    """Returns ``sweep.grace_fraction``, or computes it where it is null; 1 for variants, of which none is stopped."""
    if sweep.variants:
        return 1.0
    if sweep.grace_fraction is not None:
        return sweep.grace_fraction
    return max(GRACE_FRACTION, latest_start(sweep, base)[0])


def latest_start(sweep: SweepConfig, base: RunConfig) -> tuple[float, str]:
    """Returns start and name of the term that begins last in any trial.

    Raises ConfigError for values that the recipe does not take.
    """
    latest = (0.0, "")
    for run in (base, *probed_runs(sweep, base)):
        latest = max([latest, *((cfg.start, name) for name, cfg in run.objective.active_terms().items())])
    return latest


def probed_runs(sweep: SweepConfig, base: RunConfig) -> Iterator[RunConfig]:
    """Yields runs with every kind of value that trials may have: each variant, and the ends and choices of the space.

    Raises ConfigError for values that the recipe does not take.
    """
    for name in sweep.variants:
        changes = sweep.started_from(name, "/parent")
        first = {}
        if STAGE1 in changes and (parent := sweep.parent(name)) is not None:  # a stage 2 has the keys of its stage 1
            theirs = sweep.started_from(parent, "/parent")
            first = {key: value for key, value in theirs.items() if comes_from_stage1(key)}
        try:
            yield base.replace({**first, **changes})
        except ConfigError as error:
            raise ConfigError(f"sweep.variants.{name} does not go with recipe {sweep.recipe}: {error}") from None
    for key, spec in sweep.space.items():
        for value in spec.probes():
            try:
                yield base.replace({key: value})
            except ConfigError as error:
                raise ConfigError(f"sweep.space.{key}={spec} does not go with recipe {sweep.recipe}: {error}") from None
