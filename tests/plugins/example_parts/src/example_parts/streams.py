"""A sampler: images of small classes come more and more often, other ones every epoch."""

from __future__ import annotations

import numpy as np

from ltcore import EpochSamples, plugins


@plugins.sampler("tail_first", summary="weights by class size to a power that grows, with noise")
def tail_first(samples: EpochSamples) -> np.ndarray:
    """Returns weights between natural and class-balanced."""
    power = (samples.epoch + 1) / samples.epochs
    noise_N = samples.rng.uniform(0.5, 1.5, len(samples.labels_N))
    return noise_N / samples.counts_C[samples.labels_N] ** power
