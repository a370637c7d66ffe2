"""What every sampler of a plugin promises: a weight for each image, as a pure function of the epoch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ltcore.contracts.expect import expect
from ltcore.contracts.harness import CLASSES, COUNTS, SAMPLES
from ltcore.contracts.randomness import apart, as_rank
from ltcore.data.loading.class_sampling import epoch_weights, weighted_copies
from ltcore.data.loading.sampler import EpochSampler, Floats

_LABELS_N = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), COUNTS))
_ATTRIBUTES_N = np.arange(SAMPLES) % 4 - 1
_EPOCHS, _BATCH, _LANES = 5, 8, 4
_SHARDS = (SAMPLES // 2, SAMPLES // 3, SAMPLES - SAMPLES // 2 - SAMPLES // 3)


def _weights(name: str, epoch: int = 2, *, epochs: int = _EPOCHS, attributes: bool = True, seed: int = 0) -> Floats:
    attributes_N = _ATTRIBUTES_N if attributes else np.full(SAMPLES, -1)
    return epoch_weights(name, _LABELS_N.copy(), attributes_N.copy(), CLASSES, seed, epoch, epochs)


def every_image_has_a_weight(name: str) -> None:
    """Tells whether each epoch gives one finite number >= 0 per image, and each class more than 0 in sum."""
    for attributes in (True, False):
        for epochs in (1, _EPOCHS):
            for epoch in range(epochs):
                _weights(name, epoch, epochs=epochs, attributes=attributes)
    few = np.arange(2)
    epoch_weights(name, few, np.full(2, -1), 2, 0, 0, 1)  # a class may have a single image


def an_epoch_stands_for_itself(name: str) -> None:
    """Tells whether a resumed run, which begins in a later epoch, gets the same plan, whatever others drew."""
    first, second = apart(lambda: _weights(name))
    expect(np.array_equal(first, second), "a second call gives other weights")
    for epoch in (0, 4, 1):
        _weights(name, epoch)
    expect(np.array_equal(_weights(name), first), "the epochs that were planned before change the weights")


def the_number_of_ranks_means_nothing(name: str) -> None:
    """Tells whether all ranks get one plan, whose global batches are those of a single rank."""
    alone = _weights(name)
    with as_rank(1, 2):
        expect(np.array_equal(_weights(name), alone), "another rank gets other weights")
    copies_N = weighted_copies(_LABELS_N, alone, 0, 2)

    def batches(world: int) -> list[list[int]]:
        made = EpochSampler(_SHARDS, seed=0, epoch=2, batch_size=_BATCH, world=world, lanes=_LANES, copies_N=copies_N)
        steps = zip(*(made.rank_batches(rank) for rank in range(world)), strict=True)
        return [np.concatenate([rows.index_B for rows in step]).tolist() for step in steps]

    expect(batches(1) == batches(2) == batches(4), "several ranks read other batches")


def an_epoch_keeps_its_length_and_its_shares(name: str) -> None:
    """Tells whether an epoch has as many images as the split, each within one of its share, and each class too."""
    for epoch in range(_EPOCHS):
        weights_N = _weights(name, epoch)
        copies_N = weighted_copies(_LABELS_N, weights_N, 0, epoch)
        expect(int(copies_N.sum()) == SAMPLES, f"epoch {epoch} has {copies_N.sum()} images of {SAMPLES}")
        share_N = weights_N * (SAMPLES / weights_N.sum())
        most = max(
            float(abs(copies_N - share_N).max()),
            float(abs(np.bincount(_LABELS_N, copies_N - share_N)).max()),
        )
        expect(most < 1 + 1e-6, f"in epoch {epoch} an image or class is {most:.3g} away from its share")


CONTRACTS: tuple[Callable[[str], None], ...] = (
    every_image_has_a_weight,
    an_epoch_stands_for_itself,
    the_number_of_ranks_means_nothing,
    an_epoch_keeps_its_length_and_its_shares,
)
