"""Which run of a sweep is measured before it begins, where one costs more than another."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.config.sweep import STAGE1, STARTS
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import ConfigError
from ltcore.training.cost import training_flops
from ltcore.training.weights_input import DECIDING, differs_by_run, with_input

_COSTLY = ("model.name", "data.image_size", "model.num_experts", "model.bilateral", "model.tune", "objective.base")
"""Keys that decide how many operations a run takes, besides its terms."""


def has_own_input(sweep: SweepConfig) -> bool:
    """Tells whether runs of the sweep start from weights that expect other images, see ``with_input``."""
    return differs_by_run([*sweep.space, *itertools.chain(*sweep.variants.values())])


def measured_run(sweep: SweepConfig, base: RunConfig, manifest: Manifest) -> RunConfig:
    """Returns the run that stands for all in a measurement: the costliest.

    That is by the operations of its networks, and of equal ones by the number of its terms; what augmentation and losses cost
    is not looked at. Its images are as its weights expect them. Where all cost the same it is ``base``, which was settled
    already.
    """
    runs = as_started(sweep, list(_trained(sweep, base) if sweep.variants else _combined(sweep, base)) or [base])
    distinct = {_kind(run): run for run in runs}
    if distinct.keys() == {_kind(base)}:
        return base
    if len(distinct) == 1:
        return runs[0]
    return max(distinct.values(), key=lambda run: (training_flops(run, manifest), len(run.objective.active_terms())))


def _kind(run: RunConfig) -> tuple[Any, ...]:
    """Returns what a run's cost depends on."""
    flat = run.to_flat()
    return *(flat[key] for key in _COSTLY), tuple(sorted(run.objective.active_terms()))


def as_started(sweep: SweepConfig, runs: Sequence[RunConfig]) -> list[RunConfig]:
    """Returns runs of the sweep with images as their weights expect them, where those are not the same for all."""
    return [with_input(run) for run in runs] if has_own_input(sweep) else list(runs)


def _trained(sweep: SweepConfig, base: RunConfig) -> Iterator[RunConfig]:
    """Yields the variants that train a network, without the runs they start from: those of stage 2 have it already."""
    for changes in sweep.variants.values():
        if STAGE1 not in changes:
            yield base.replace({key: value for key, value in changes.items() if key not in STARTS})


def _combined(sweep: SweepConfig, base: RunConfig) -> Iterator[RunConfig]:
    """Yields all combinations of the swept values that decide about networks and images, with all terms that are swept.

    Where terms do not go together, each comes alone, and none does.
    """
    keys = [key for key in dict.fromkeys((*DECIDING, *_COSTLY)) if key in sweep.space]
    terms = dict(_switched_on(sweep, base))
    for values in itertools.product(*(sweep.space[key].probes() for key in keys)):
        for chosen in (terms, *({key: value} for key, value in terms.items()), {}):
            with contextlib.suppress(ConfigError):  # of values that go alone, not together; such a trial says so
                yield base.replace({**chosen, **dict(zip(keys, values, strict=True))})
                if chosen is terms:
                    break


def _switched_on(sweep: SweepConfig, base: RunConfig) -> Iterator[tuple[str, Any]]:
    """Yields each swept key of a term that the recipe is without, and its last value that switches it on."""
    for key, spec in sweep.space.items():
        parts = key.split(".")
        if parts[:2] != ["objective", "terms"] or parts[2] in base.objective.active_terms():
            continue
        for value in reversed(spec.probes()):
            with contextlib.suppress(ConfigError):
                if parts[2] in base.replace({key: value}).objective.active_terms():
                    yield key, value
                    break
