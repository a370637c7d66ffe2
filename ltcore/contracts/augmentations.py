"""What every augmentation promises: images of its own samples alone, drawn from the numbers that it is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltcore.batch import Batch
from ltcore.contracts.expect import expect
from ltcore.contracts.randomness import apart, as_rank
from ltcore.data.augment.augment import Augment
from ltcore.data.augment.config import AugmentConfig
from ltcore.rng import generator

_COUNT = 21
_SIDES = (16, 40)
"""Pixels: less than any network needs, and a number that 16 does not divide."""


def _batch(side: int, count: int = _COUNT) -> Batch:
    shape = (1, count, 3, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "canvases"))
    index_B = torch.arange(count)
    return Batch(images, labels_B=index_B % 3, index_B=index_B, copy_B=index_B % 2)


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return Batch(batch.images_VBCHW[:, rows], batch.labels_B[rows], batch.index_B[rows], batch.copy_B[rows])


def _views(name: str, batch: Batch, epoch: int = 3, seed: int = 0) -> Tensor:
    """Returns both views [2, B, 3, S, S], in 0..1."""
    cfg = AugmentConfig(view1=name, view2=name)
    return Augment(cfg, seed=seed, mean=(0.0,) * 3, std=(1.0,) * 3, num_views=2)(batch, epoch).images_VBCHW


def images_stay_images(name: str) -> None:
    """Tells whether number, size and type of the images stay, and values are finite and in range, of black and white too."""
    for side in _SIDES:
        for count in (1, 6):
            batch = _batch(side, count)
            for images in (batch.images_VBCHW, *(torch.full_like(batch.images_VBCHW, level) for level in (0, 255))):
                found = _views(name, batch.with_images(images))
                expect(found.shape == (2, count, 3, side, side), f"views are {list(found.shape)}")
                expect(bool(found.isfinite().all()), "a pixel is not finite")
                low, high = float(found.min()), float(found.max())
                expect(low >= 0 and high <= 1, f"float images reach from {low:.3g} to {high:.3g}, expected [0, 1]")


def the_same_key_gives_the_same_images(name: str) -> None:
    """Tells whether seed, epoch and sample alone determine an image, whatever came before and whatever others drew."""
    batch = _batch(_SIDES[0])
    first, second = apart(lambda: _views(name, batch))
    expect(torch.equal(first, second), "a second call gives other images")
    _views(name, batch, epoch=4)
    _views(name, _batch(_SIDES[0], 5))
    expect(torch.equal(_views(name, batch), first), "what was augmented before has changed the images")


def an_image_does_not_depend_on_its_batch(name: str) -> None:
    """Tells whether order and size of batches mean nothing, to the last bit, so that ranks and workers mean nothing either."""
    for side in _SIDES:
        batch = _batch(side)
        whole = _views(name, batch)
        order_B = torch.randperm(_COUNT, generator=generator(0, "order of canvases"))
        shuffled = _views(name, _rows(batch, order_B))
        expect(torch.equal(shuffled, whole[:, order_B]), "another order of the batch gives other images")
        pieces = [_views(name, _rows(batch, rows_b)) for rows_b in torch.arange(_COUNT).split([1, 1, 12, 7])]
        expect(torch.equal(torch.cat(pieces, 1), whole), "smaller batches give other images")


def the_number_of_ranks_means_nothing(name: str) -> None:
    """Tells whether a rank of several makes of a sample what a single one does."""
    batch = _batch(_SIDES[0])
    alone = _views(name, batch)
    with as_rank(1, 2):
        expect(torch.equal(_views(name, batch), alone), "another rank gives other images")


def what_it_is_given_stays_as_it_is(name: str) -> None:
    """Tells whether the canvases, from which both views and later epochs are made, are not changed in place."""
    batch = _batch(_SIDES[0])
    before = batch.images_VBCHW.clone()
    _views(name, batch)
    expect(torch.equal(batch.images_VBCHW, before), "it changes the canvases in place")


def random_views_differ(name: str) -> None:
    """Tells whether one that draws at all draws anew for another seed, epoch, view and copy of a sample."""
    batch = _batch(_SIDES[0])
    whole = _views(name, batch)
    copies = Batch(batch.images_VBCHW, batch.labels_B, batch.index_B, batch.copy_B + 1)
    same = {
        "view": torch.equal(whole[0], whole[1]),
        "epoch": torch.equal(whole, _views(name, batch, epoch=4)),
        "seed": torch.equal(whole, _views(name, batch, seed=1)),
        "copy": torch.equal(whole, _views(name, copies)),
    }
    drawn = [word for word, equal in same.items() if not equal]
    expect(
        len(drawn) in (0, len(same)),
        f"images differ by {' and '.join(drawn)} alone: draw all numbers by draw(purpose, n)",
    )


CONTRACTS: tuple[Callable[[str], None], ...] = (
    images_stay_images,
    the_same_key_gives_the_same_images,
    an_image_does_not_depend_on_its_batch,
    the_number_of_ranks_means_nothing,
    what_it_is_given_stays_as_it_is,
    random_views_differ,
)
