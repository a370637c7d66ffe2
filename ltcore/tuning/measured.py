"""Which run of a sweep is measured before it begins, where one costs more than another."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import ConfigError
from ltcore.training.cost import training_flops
from ltcore.training.weights_input import DECIDING, differs_by_run, with_input


def has_own_input(sweep: SweepConfig) -> bool:
    """Tells whether runs of the sweep start from weights that expect other images, see ``with_input``."""
    return differs_by_run([*sweep.space, *itertools.chain(*sweep.variants.values())])


def measured_run(sweep: SweepConfig, base: RunConfig, manifest: Manifest) -> RunConfig:
    """Returns the run that stands for all in a measurement: the costliest, by operations and then by number of terms.

    Its images are as its weights expect them. Where all cost the same it is ``base``, which was settled already.
    """
    runs = as_started(sweep, list(_roots(sweep, base) if sweep.variants else _combined(sweep, base)) or [base])
    distinct = {_kind(run): run for run in runs}
    if distinct.keys() == {_kind(base)}:
        return base
    if len(distinct) == 1:
        return runs[0]
    return max(distinct.values(), key=lambda run: (training_flops(run, manifest), len(run.objective.active_terms())))


def _kind(run: RunConfig) -> tuple[Any, ...]:
    """Returns what a run's cost depends on."""
    objective, model = run.objective, run.model
    return model.name, model.tune, run.data.image_size, objective.base, tuple(sorted(objective.active_terms()))


def as_started(sweep: SweepConfig, runs: Sequence[RunConfig]) -> list[RunConfig]:
    """Returns runs of the sweep with images as their weights expect them, where those are not the same for all."""
    return [with_input(run) for run in runs] if has_own_input(sweep) else list(runs)


def _roots(sweep: SweepConfig, base: RunConfig) -> Iterator[RunConfig]:
    """Yields the variants that start from none: the others have the networks of these."""
    yield from (base.replace(changes) for name, changes in sweep.variants.items() if sweep.parent(name) is None)


def _combined(sweep: SweepConfig, base: RunConfig) -> Iterator[RunConfig]:
    """Yields all combinations of the swept values that decide about network and images, with all terms that are swept."""
    keys = [key for key in DECIDING if key in sweep.space]
    terms = {key: spec.probes()[-1] for key, spec in sweep.space.items() if key.startswith("objective.terms.")}
    off = {key: value for key, value in terms.items() if key.split(".")[2] not in base.objective.active_terms()}
    for values in itertools.product(*(sweep.space[key].probes() for key in keys)):
        with contextlib.suppress(ConfigError):  # values that go alone need not go together; such a trial says so itself
            yield base.replace({**off, **dict(zip(keys, values, strict=True))})
