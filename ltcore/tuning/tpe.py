"""Optuna's TPE in batches of a fixed size, each from the records of those before it alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltcore.config.records import RunRecord
from ltcore.config.space import SpaceSpec
from ltcore.errors import ConfigError

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Past:
    """What a trial of an earlier batch came to."""

    params: Mapping[str, Any]
    value: float | None
    """Of the whole training, or of as much as it got; None where it failed."""
    share: float
    """Of its training that it got."""


def past_of(params: Mapping[str, Any], record: RunRecord | None, metric: str) -> Past:
    """Returns what the record of a settled trial with these parameters tells."""
    assert record is not None, "a batch follows when all before it is settled"
    at = record.decision
    if at is not None:
        return Past(params, at.value, at.epoch / record.epochs_planned)
    return Past(params, record.last.get(metric) if record.status == "finished" else None, 1.0)


def batch_size(num_trials: int) -> int:
    """Returns the number of trials that are suggested at a time: a tenth, at least five.

    It depends only on ``num_trials``, so the trials do too.
    """
    return max(5, -(-num_trials // 10))


def suggest(
    space: Mapping[str, SpaceSpec], past: Sequence[Past], *, count: int, seed: int, minimize: bool = False
) -> list[dict[str, Any]]:
    """Returns the parameters of the next ``count`` trials.

    They depend only on the arguments, for one version of Optuna. A trial that was stopped at a rung is reported to
    Optuna as pruned, with the value that it had there: as a finished one it would bias the model of what a full
    training reaches. The first ten trials are random. ``minimize`` where lower values are better.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("search=tpe needs Optuna, which is not installed: pip install 'ltcore[search]'.") from None
    optuna.logging.set_verbosity(logging.ERROR)
    with (
        warnings.catch_warnings()
    ):  # a batch would be one point many times without the liar, which Optuna calls experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(direction="minimize" if minimize else "maximize", sampler=sampler)
    axes = {key: _axis(spec) for key, spec in space.items()}
    for trial in past:
        study.add_trial(_told(trial, axes))
    return [{key: _rounded(space[key], value) for key, value in study.ask(axes).params.items()} for _ in range(count)]


def _axis(spec: SpaceSpec) -> optuna.distributions.BaseDistribution:
    from optuna import distributions

    if spec.kind == "choice":
        return distributions.CategoricalDistribution(spec.values)
    low, high = (value for value in spec.values if isinstance(value, int | float))
    if spec.kind == "int":
        return distributions.IntDistribution(int(low), int(high))
    return distributions.FloatDistribution(float(low), float(high), log=spec.kind == "log")


def _told(trial: Past, axes: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState, create_trial

    params = {key: trial.params[key] for key in axes}
    if trial.value is None:
        return create_trial(state=TrialState.FAIL, params=params, distributions=dict(axes))
    if trial.share < 1:
        seen = {round(100 * trial.share): trial.value}
        return create_trial(state=TrialState.PRUNED, params=params, distributions=dict(axes), intermediate_values=seen)
    return create_trial(value=trial.value, params=params, distributions=dict(axes))


def _rounded(spec: SpaceSpec, value: Any) -> Any:
    """Rounds to six digits, as the other searches draw, so that reports print the values that were run."""
    if not isinstance(value, float) or spec.kind == "choice":
        return value
    low, high = (float(str(end)) for end in spec.values)
    return min(max(float(f"{value:.6g}"), low), high)
