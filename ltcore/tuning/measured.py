"""Which run of a sweep is measured before it begins, where its runs have networks or images of different sizes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import ConfigError
from ltcore.training.build import build_modules
from ltcore.training.cost import forward_flops
from ltcore.training.weights_input import DECIDING, differs_by_run, with_input


def has_own_input(sweep: SweepConfig) -> bool:
    """Tells whether runs of the sweep start from weights that expect other images, see ``with_input``."""
    return differs_by_run([*sweep.space, *itertools.chain(*sweep.variants.values())])


def measured_run(sweep: SweepConfig, base: RunConfig, manifest: Manifest) -> RunConfig:
    """Returns the run that stands for all in a measurement: of those with other networks or images the costliest forward.

    Its images are as its weights expect them. Elsewhere it is ``base``, where that was settled already.
    """
    if not has_own_input(sweep):
        return base
    found = list(_roots(sweep, base) if sweep.variants else _combined(sweep, base)) or [base]
    runs = [with_input(run) for run in found]
    distinct = {(run.model.name, run.data.image_size): run for run in runs}
    if len(distinct) == 1:
        return runs[0]
    return max(distinct.values(), key=lambda run: _flops(run, manifest))


def as_started(sweep: SweepConfig, runs: Sequence[RunConfig]) -> list[RunConfig]:
    """Returns runs of the sweep with images as their weights expect them, where those are not the same for all."""
    return [with_input(run) for run in runs] if has_own_input(sweep) else list(runs)


def _roots(sweep: SweepConfig, base: RunConfig) -> Iterator[RunConfig]:
    """Yields the variants that start from none: the others have the networks of these."""
    yield from (base.replace(changes) for name, changes in sweep.variants.items() if sweep.parent(name) is None)


def _combined(sweep: SweepConfig, base: RunConfig) -> Iterator[RunConfig]:
    """Yields all combinations of the swept values that decide about network and images."""
    keys = [key for key in DECIDING if key in sweep.space]
    for values in itertools.product(*(sweep.space[key].probes() for key in keys)):
        with contextlib.suppress(ConfigError):  # values that go alone need not go together; such a trial says so itself
            yield base.replace(dict(zip(keys, values, strict=True)))


def _flops(run: RunConfig, manifest: Manifest) -> int:
    split = run.data.train_split
    net, _ = build_modules(run, len(manifest.classes), manifest.stats(split), manifest.split(split).num_samples)
    return forward_flops(net, run.data.image_size or manifest.image_size)
