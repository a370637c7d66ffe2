"""The shared start of a sweep's trials: until the first term acts, runs that differ in their terms alone are one run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from ltcore.config.schema import RunConfig
from ltcore.objective.dims import FeatureDims
from ltcore.objective.registry import TERMS
from ltcore.stats import ClassStats

LEAST_IMAGES = 20_000
"""A shorter start is not worth the process that would train it first while the trials wait."""
FOLDER = "shared_start"


def start_epochs(base: RunConfig, trials: Sequence[RunConfig], stats: ClassStats) -> tuple[int, list[bool]]:
    """Returns (whole epochs before any term of any trial acts, which trials share them with ``base``).

    A trial shares them if all its keys outside of the terms are those of ``base``, and its terms bring the same
    parameters and the same memories: what is observed before a term acts is then the same as well.
    """
    wanted = _signature(base, stats)
    shares = [_signature(trial, stats) == wanted for trial in trials]
    acting = [base, *(trial for trial, same in zip(trials, shares, strict=True) if same)]
    starts = [cfg.start for run in acting for cfg in run.objective.active_terms().values()]
    return int(min(starts, default=0.0) * base.train.epochs), shares


def _signature(run: RunConfig, stats: ClassStats) -> dict[str, Any]:
    dims = FeatureDims(64, run.model.projection_dim, stats.num_samples)
    terms: dict[str, tuple[Hashable, ...]] = {}
    for name, cfg in run.objective.active_terms().items():
        term = TERMS[name].build(cfg, stats, dims)
        parameters = tuple((key, tuple(value.shape)) for key, value in term.named_parameters())
        memories = tuple((local, spec.key) for local, spec in term.memories().items())
        terms[name] = (parameters, memories, term.needs)
    own = {
        key: value for key, value in run.to_flat().items() if key != "name" and not key.startswith("objective.terms.")
    }
    return {**own, "terms": terms}
