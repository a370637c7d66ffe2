"""CutMix, Remix and their choice beside mixup: exact shares, literal forms of the papers, the same in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ltcore.batch import Batch, Mix
from ltcore.data.augment.augment import Augment
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.mixing import _Pairs, label_share, mixed

COUNTS = torch.tensor([90, 30, 10])


def batch_of(count: int, size: int = 16) -> Batch:
    """Every image has one color, its index."""
    index = torch.arange(count)
    images = index.to(torch.uint8)[None, :, None, None, None].expand(1, count, 3, size, size).clone()
    return Batch(images, labels_B=index % 3, index_B=index, copy_B=index // 3 % 2)


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    return Batch(batch.images_VBCHW[:, rows], batch.labels_B[rows], batch.index_B[rows], batch.copy_B[rows])


def augment(num_views: int = 1, **fields: Any) -> Augment:
    options: dict[str, Any] = {"seed": 3, "mean": (0.0,) * 3, "std": (1 / 255,) * 3, "num_views": num_views}
    return Augment(AugmentConfig(view1="none", view2="none", **fields), counts_C=COUNTS, **options)


def mix_of(batch: Batch) -> Mix:
    assert batch.mix is not None
    return batch.mix


def test_the_label_is_mixed_by_the_exact_share_of_pixels() -> None:
    batch = batch_of(41)
    out = augment(2, cutmix_alpha=1.0)(batch, 1)
    mix, images = mix_of(out), out.images_VBCHW.round().long()
    for i, partner in enumerate([*(np.arange(40) ^ 1).tolist(), 40]):
        kept = images[0, i, 0] == i
        assert ((images[0, i, 0] == partner) | kept).all(), "every pixel is of one of the two"
        assert torch.equal(images[0, i], images[1, i]), "both views have the same box"
        if partner != i:
            assert float(mix.lam_B[i]) == np.float32(int(kept.sum()) / 256)
            assert torch.equal(images[0, partner, 0] == partner, kept), "and so has the partner"
        assert mix.labels_B[i] == batch.labels_B[partner] and mix.index_B[i] == partner
    assert mix.lam_B[40] == 1 and (images[0, 40] == 40).all(), "an odd last row has no partner"
    assert len(set(mix.lam_B.tolist())) > 12


def published_box(size: tuple[int, int], lam: float, middle: tuple[int, int]) -> tuple[int, int, int, int]:
    """``rand_bbox`` of the authors' code, with the center given."""
    cut = [int(side * np.sqrt(1.0 - lam)) for side in size]
    low = [int(np.clip(m - c // 2, 0, side)) for m, c, side in zip(middle, cut, size, strict=True)]
    high = [int(np.clip(m + c // 2, 0, side)) for m, c, side in zip(middle, cut, size, strict=True)]
    return low[0], low[1], high[0], high[1]


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_boxes_are_those_of_the_authors_code(alpha: float) -> None:
    index = torch.arange(200)
    pairs = _Pairs(index, torch.zeros_like(index), index ^ 1, seed=5, epoch=2)
    share, center = pairs.share(alpha, "augment/cutmix"), pairs.shared("augment/cutmix/center", 2)
    boxes = pairs.boxes(alpha, 20, 33)
    for row in range(200):
        middle = (int(center[row, 0] * 20), int(center[row, 1] * 33))
        top, left, bottom, right = published_box((20, 33), float(share[row]), middle)
        expected = torch.zeros(20, 33, dtype=torch.bool)
        expected[top:bottom, left:right] = True
        assert torch.equal(boxes[row], expected)


def test_areas_follow_beta_and_centers_are_uniform() -> None:
    index = torch.arange(8000)
    pairs = _Pairs(index, torch.zeros_like(index), index ^ 1, seed=1, epoch=0)
    share = pairs.share(1.0, "augment/cutmix")[::2].numpy()
    assert stats.kstest(share, stats.beta(1, 1).cdf).pvalue > 1e-3
    center = pairs.shared("augment/cutmix/center", 2)[::2].numpy()
    for axis in (0, 1):
        assert stats.kstest(center[:, axis], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(np.column_stack([share, center]).T) - np.eye(3)).max() < 0.06


@pytest.mark.parametrize(
    "fields",
    [
        {"cutmix_alpha": 1.0},
        {"cutmix_alpha": 0.5, "mixup_alpha": 0.4},
        {"cutmix_alpha": 1.0, "mixup_alpha": 1.0, "mix_probability": 0.5, "remix_kappa": 3.0},
    ],
    ids=["cutmix", "both", "all"],
)
def test_it_is_the_same_for_any_number_of_ranks_and_for_swapped_pairs(fields: dict[str, float]) -> None:
    batch, mixing = batch_of(48), augment(**fields)
    whole = mixing(batch, 1)
    for size in (2, 12, 24):
        for rows in torch.arange(48).split(size):
            part = mixing(rows_of(batch, rows), 1)
            assert torch.equal(part.images_VBCHW, whole.images_VBCHW[:, rows])
            assert torch.equal(mix_of(part).lam_B, mix_of(whole).lam_B[rows])
            assert torch.equal(mix_of(part).labels_B, mix_of(whole).labels_B[rows])
    order = torch.arange(48).flip(0)
    turned = mixing(rows_of(batch, order), 1)
    assert torch.equal(turned.images_VBCHW, whole.images_VBCHW[:, order])
    assert torch.equal(mix_of(turned).lam_B, mix_of(whole).lam_B[order])
    other = mixing(batch, 2)
    assert not torch.equal(other.images_VBCHW, whole.images_VBCHW), "another epoch draws anew"


def test_a_pair_is_cut_or_blended() -> None:
    count = 200
    batch, fields = batch_of(count, size=8), {"mixup_alpha": 1.0, "cutmix_alpha": 1.0}
    blended = augment(mixup_alpha=1.0)(batch, 0)
    cut = augment(cutmix_alpha=1.0)(batch, 0)
    for probability in (0.0, 0.3, 1.0):
        out = augment(**fields, cutmix_probability=probability)(batch, 0)
        like_cut = (out.images_VBCHW == cut.images_VBCHW).flatten(2).all(2)[0]
        like_blended = (out.images_VBCHW == blended.images_VBCHW).flatten(2).all(2)[0]
        assert (like_cut | like_blended).all()
        lam_B = torch.where(like_cut, mix_of(cut).lam_B, mix_of(blended).lam_B)
        assert torch.equal(mix_of(out).lam_B, lam_B)
        assert abs(float((like_cut & ~like_blended).double().mean()) - probability) < 0.12
        assert torch.equal(like_cut[::2], like_cut[1::2])


def test_some_pairs_may_stay_as_they_are() -> None:
    batch = batch_of(400, size=8)
    plain = augment()(batch, 0).images_VBCHW
    for fields in ({"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}):
        always, out = augment(**fields)(batch, 0), augment(**fields, mix_probability=0.25)(batch, 0)
        same = (out.images_VBCHW == plain).flatten(2).all(2)[0]
        assert (mix_of(out).lam_B[same] == 1).all() and torch.equal(same[::2], same[1::2])
        assert torch.equal(mix_of(out).index_B[same], batch.index_B[same]), (
            "they have no partner, whose weight they would take"
        )
        assert torch.equal(mix_of(out).index_B[~same], mix_of(always).index_B[~same])
        assert torch.equal(out.images_VBCHW[:, ~same], always.images_VBCHW[:, ~same])
        assert abs(float((~same).double().mean()) - 0.25) < 0.08


@pytest.mark.parametrize(
    ("own", "other", "share", "expected"),
    [
        (90, 30, 0.4, 0.0),  # n_i / n_j = kappa and lambda < tau: all to the rarer partner
        (90, 30, 0.5, 0.5),  # lambda is not below tau
        (90, 31, 0.4, 0.4),  # not kappa times as many
        (30, 90, 0.6, 1.0),  # 1 - lambda < tau: all to the rarer sample itself
        (30, 90, 0.5, 0.5),
        (31, 90, 0.6, 0.6),
        (10, 10, 0.1, 0.1),
        (900, 1, 0.49, 0.0),
        (900, 1, 0.9, 0.9),
        (1, 900, 0.51, 1.0),
        (1, 900, 0.1, 0.1),
        (90, 30, 0.0, 0.0),
        (30, 90, 1.0, 1.0),
    ],
)
def test_remix_closed_forms(own: int, other: int, share: float, expected: float) -> None:
    """Equation 5 with the published kappa = 3 and tau = 1/2."""
    found = label_share(torch.tensor([share]), torch.tensor([own]), torch.tensor([other]), 3.0, 0.5)
    assert float(found) == pytest.approx(expected, abs=1e-7)


def test_remix_changes_labels_alone_and_both_rows_of_a_pair_agree() -> None:
    batch = batch_of(300)
    for fields in ({"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}):
        plain, remixed = augment(**fields)(batch, 0), augment(**fields, remix_kappa=3.0, remix_tau=0.8)(batch, 0)
        assert torch.equal(remixed.images_VBCHW, plain.images_VBCHW)
        own_B, other_B = COUNTS[batch.labels_B], COUNTS[mix_of(plain).labels_B]
        expected_B = label_share(mix_of(plain).lam_B, own_B, other_B, 3.0, 0.8)
        assert torch.equal(mix_of(remixed).lam_B, expected_B)
        moved = mix_of(remixed).lam_B != mix_of(plain).lam_B
        assert 0.2 < float(moved.double().mean()) < 1
        kept = torch.where(own_B[moved] > other_B[moved], 0.0, 1.0)
        assert torch.equal(mix_of(remixed).lam_B[moved], kept), "the whole label goes to the rarer class"


def test_nothing_is_asked_of_the_device() -> None:
    """A tensor without values can only be computed with; whoever looked at one would wait for a GPU."""
    batch = batch_of(8).to("meta")
    batch = batch.with_images(batch.images_VBCHW.float())
    cfg = AugmentConfig(mixup_alpha=1.0, cutmix_alpha=1.0, remix_kappa=3.0, mix_probability=0.5)
    out = mixed(batch, cfg, COUNTS.to("meta"), 0, 0)
    assert out.images_VBCHW.is_meta and mix_of(out).lam_B.is_meta


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cutmix_alpha": -1.0}, r"cutmix_alpha must be a finite number >= 0, got -1.0"),
        ({"cutmix_probability": 1.5}, r"cutmix_probability must be in \[0, 1\], got 1.5"),
        ({"mix_probability": 0.0}, r"mix_probability must be in \(0, 1\], got 0.0"),
        ({"remix_kappa": 1.0, "mixup_alpha": 1.0}, r"remix_kappa must be a finite number > 1, got 1.0"),
        ({"remix_kappa": float("inf"), "mixup_alpha": 1.0}, r"remix_kappa must be a finite number > 1, got inf"),
        ({"remix_kappa": 3.0}, r"remix_kappa=3 needs mixed images: set augment.mixup_alpha or augment.cutmix_alpha"),
        ({"remix_tau": 2.0}, r"remix_tau must be in \[0, 1\], got 2.0"),
    ],
)
def test_wrong_values_are_named(fields: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        AugmentConfig(**fields)
