"""What every sampler of a plugin promises: weights of the images or their order, as a pure function of the epoch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ltcore.contracts.expect import expect
from ltcore.contracts.harness import CLASSES, COUNTS, SAMPLES
from ltcore.contracts.randomness import apart, as_rank
from ltcore.data.loading.class_sampling import SAMPLINGS, EpochSamples, SamplingOptions
from ltcore.data.loading.plugged_sampling import copies_of, epoch_samples, plan_of
from ltcore.data.loading.sampler import EpochSampler, Floats, Ints, ListedSampler

_LABELS_N = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), COUNTS))
_ATTRIBUTES_N = np.arange(SAMPLES) % 4 - 1
_EPOCHS, _BATCH, _LANES = 5, 8, 4
_SHARDS = (SAMPLES // 2, SAMPLES // 3, SAMPLES - SAMPLES // 2 - SAMPLES // 3)


def _samples(name: str, epoch: int, epochs: int = _EPOCHS, attributes: bool = True) -> EpochSamples:
    attributes_N = _ATTRIBUTES_N if attributes else np.full(SAMPLES, -1)
    return epoch_samples(name, _LABELS_N.copy(), attributes_N.copy(), CLASSES, 0, epoch, epochs)


def _plan(name: str, epoch: int = 2) -> Floats | Ints:
    return plan_of(name, _samples(name, epoch), SamplingOptions())


def every_epoch_has_a_plan(name: str) -> None:
    """Tells whether each epoch gives a number >= 0 per image, or as many rows as images, and shows every class."""
    for attributes in (True, False):
        for epochs in (1, _EPOCHS):
            for epoch in range(epochs):
                plan_of(name, _samples(name, epoch, epochs, attributes), SamplingOptions())
    plan_of(
        name, epoch_samples(name, np.arange(2), np.full(2, -1), 2, 0, 0, 1), SamplingOptions()
    )  # a class may have a single image


def an_epoch_stands_for_itself(name: str) -> None:
    """Tells whether a resumed run, which begins in a later epoch, gets the same plan, whatever others drew."""
    first, second = apart(lambda: _plan(name))
    expect(np.array_equal(first, second), "a second call gives another plan")
    for epoch in (0, 4, 1):
        _plan(name, epoch)
    expect(np.array_equal(_plan(name), first), "the epochs that were planned before change the plan")


def the_number_of_ranks_means_nothing(name: str) -> None:
    """Tells whether all ranks get one plan, whose global batches are those of a single rank."""
    alone = _plan(name)
    with as_rank(1, 2):
        expect(np.array_equal(_plan(name), alone), "another rank gets another plan")
    expect(_batches(name, 1) == _batches(name, 2) == _batches(name, 4), "several ranks read other batches")


def _batches(name: str, world: int) -> list[list[int]]:
    made: ListedSampler | EpochSampler
    if SAMPLINGS[name].order:
        made = ListedSampler(_plan(name).astype(np.int64), batch_size=_BATCH, world=world)
    else:
        copies_N, _ = copies_of(_plan(name).astype(np.float64), _samples(name, 2), 0)
        options = {"seed": 0, "epoch": 2, "batch_size": _BATCH, "lanes": _LANES}
        made = EpochSampler(_SHARDS, world=world, copies_N=copies_N, **options)
    steps = zip(*(made.rank_batches(rank) for rank in range(world)), strict=True)
    return [np.concatenate([rows.index_B for rows in step]).tolist() for step in steps]


def an_epoch_keeps_its_length_and_its_shares(name: str) -> None:
    """Tells whether an epoch has as many images as the split, each within one of its share, and each class too."""
    for epoch in range(_EPOCHS):
        if SAMPLINGS[name].order:
            continue  # its rows were counted, and are its shares
        samples, weights_N = _samples(name, epoch), _plan(name, epoch).astype(np.float64)
        copies_N, _ = copies_of(weights_N, samples, 0)
        expect(int(copies_N.sum()) == SAMPLES, f"epoch {epoch} has {copies_N.sum()} images of {SAMPLES}")
        off_N = copies_N - weights_N * (SAMPLES / weights_N.sum())
        most = max(float(abs(off_N).max()), float(abs(np.bincount(_LABELS_N, off_N)).max()))
        expect(most < 1 + 1e-6, f"in epoch {epoch} an image or class is {most:.3g} away from its share")


CONTRACTS: tuple[Callable[[str], None], ...] = (
    every_epoch_has_a_plan,
    an_epoch_stands_for_itself,
    the_number_of_ranks_means_nothing,
    an_epoch_keeps_its_length_and_its_shares,
)
