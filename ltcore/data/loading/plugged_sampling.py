"""What samplers of plugins plan for an epoch, and the refusal of what is no plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ltcore.data.loading.class_sampling import SAMPLINGS, EpochSamples, SamplingOptions, weighted_copies
from ltcore.data.loading.sampler import Copies, Floats, Ints, keyed_generator
from ltcore.errors import PluginError
from ltcore.plugins.generated import configured


def epoch_samples(
    sampling: str, labels_N: Ints, attributes_N: Ints, num_classes: int, seed: int, epoch: int, epochs: int
) -> EpochSamples:
    """Returns what a sampler is told of an epoch (from 0)."""
    counts_C = np.bincount(labels_N, minlength=num_classes)
    rng = keyed_generator(seed, epoch, "sampler", sampling)
    return EpochSamples(_read_only(labels_N), _read_only(attributes_N), _read_only(counts_C), epoch, epochs, rng)


def plan_of(sampling: str, samples: EpochSamples, options: SamplingOptions) -> Floats | Ints:
    """Returns what a sampler answers: weights [N], the largest of them 1, or N rows. Raises PluginError for anything else."""
    row = SAMPLINGS[sampling]
    found = np.asarray(configured(row.plan, options, sampling)(samples))
    return _rows(sampling, found, samples) if row.order else _weights(sampling, found, samples)


def copies_of(weights_N: Floats, samples: EpochSamples, seed: int) -> tuple[Copies, Floats]:
    """Returns [N] how often each image comes, and [C] the class shares that were asked for."""
    shares_C = np.bincount(samples.labels_N, weights_N, len(samples.counts_C)) / weights_N.sum()
    return weighted_copies(samples.labels_N, weights_N, seed, samples.epoch), shares_C


def shares_of(rows_N: Ints, samples: EpochSamples) -> Floats:
    """Returns [C] the shares of the classes among rows."""
    shares_C: Floats = np.bincount(samples.labels_N[rows_N], minlength=len(samples.counts_C)) / len(rows_N)
    return shares_C


def _weights(sampling: str, found: Any, samples: EpochSamples) -> Floats:
    where = f"in epoch {samples.epoch}"
    if found.shape != samples.labels_N.shape or found.dtype.kind not in "iuf":
        raise PluginError(
            f"sampler {sampling!r} gives {found.dtype} {list(found.shape)} for {len(samples.labels_N)} training images {where}, "
            "expected one number for each."
        )
    weights_N: Floats = found.astype(np.float64)
    if not np.isfinite(weights_N).all() or weights_N.min() < 0:
        raise PluginError(f"sampler {sampling!r} gives a weight that is negative or not finite {where}.")
    weights_N /= max(weights_N.max(), np.finfo(np.float64).tiny)  # their sum is finite then
    _refuse_empty(sampling, np.bincount(samples.labels_N, weights_N, len(samples.counts_C)), where)
    return weights_N


def _rows(sampling: str, found: Any, samples: EpochSamples) -> Ints:
    where, count = f"in epoch {samples.epoch}", len(samples.labels_N)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise PluginError(
            f"sampler {sampling!r} gives {found.dtype} {list(found.shape)} {where}, expected {count} rows, as many as there are "
            "training images."
        )
    rows_N: Ints = found.astype(np.int64)
    if rows_N.min() < 0 or rows_N.max() >= count:
        raise PluginError(f"sampler {sampling!r} gives a row outside of 0..{count - 1} {where}.")
    _refuse_empty(sampling, shares_of(rows_N, samples), where)
    return rows_N


def _refuse_empty(sampling: str, sums_C: npt.NDArray[Any], where: str) -> None:
    never_c = np.flatnonzero(sums_C <= 0)
    if len(never_c):
        raise PluginError(
            f"sampler {sampling!r} shows no image of class {never_c[0]} {where}: losses need a share of every class above 0."
        )


def _read_only(array: Ints) -> Ints:
    view = array.view()
    view.flags.writeable = False
    return view
