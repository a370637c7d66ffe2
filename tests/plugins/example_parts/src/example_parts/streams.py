"""Two samplers: one by weights that grow for small classes, one by an order in pairs of a class."""

from __future__ import annotations

import numpy as np

from ltcore import EpochSamples, plugins


@plugins.sampler("tail_first", summary="weights by class size to a power that grows, with noise")
def tail_first(samples: EpochSamples) -> np.ndarray:
    """Returns weights between natural and class-balanced."""
    power = (samples.epoch + 1) / samples.epochs
    noise_N = samples.rng.uniform(0.5, 1.5, len(samples.labels_N))
    return noise_N / samples.counts_C[samples.labels_N] ** power


@plugins.sampler("pairs", summary="two images of a class in a row, every class at least once", order=True)
def pairs(samples: EpochSamples) -> np.ndarray:
    """Returns rows: one image of every class, then two of each class in turn until the epoch is full."""
    count, classes = len(samples.labels_N), np.arange(len(samples.counts_C))
    members = [np.flatnonzero(samples.labels_N == label) for label in classes]
    rows = [int(samples.rng.choice(found)) for found in members]
    while len(rows) < count:
        for label in samples.rng.permutation(classes):
            rows += samples.rng.choice(members[label], 2).tolist()
    return np.array(rows[:count])
