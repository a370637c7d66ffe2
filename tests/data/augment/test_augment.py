from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from ltcore import rng
from ltcore.batch import Batch
from ltcore.config.load import load_run
from ltcore.data.augment import transforms as transforms_of_ours
from ltcore.data.augment.augment import Augment
from ltcore.data.augment.auto_augment import CIFAR10_POLICY, OPS, apply_op, autoaugment, randaugment
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.ops import unit_range
from ltcore.data.augment.policies import AUGMENTS, stacks
from ltcore.data.augment.transforms import Draw, blur, eight_bits, gray, jitter, jitter_no_hue, resized_crop
from ltcore.errors import ConfigError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def batch_of(count: int, size: int = 32, first: int = 0) -> Batch:
    images = torch.randint(
        0, 256, (1, count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )
    index = torch.arange(first, first + count)
    return Batch(images, labels_B=index % 3, index_B=index, copy_B=index % 2)


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    return Batch(batch.images_VBCHW[:, rows], batch.labels_B[rows], batch.index_B[rows], batch.copy_B[rows])


def augment(num_views: int = 1, seed: int = 3, **fields: Any) -> Augment:
    return Augment(AugmentConfig(**fields), seed=seed, mean=MEAN, std=STD, num_views=num_views)


def draw_for(count: int) -> Draw:
    index = torch.arange(count)
    return Draw(seed=3, epoch=2, index_B=index, copy_B=torch.zeros_like(index), view="view1")


@pytest.mark.parametrize("size", [16, 40])
@pytest.mark.parametrize("name", AUGMENTS)
def test_a_samples_image_does_not_depend_on_its_batch(name: str, size: int) -> None:
    batch = batch_of(37, size)
    whole = augment(view1=name)(batch, epoch=4).images_VBCHW
    assert whole.shape == (1, 37, 3, size, size) and whole.dtype == torch.float32 and whole.isfinite().all()
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augment(view1=name)(rows_of(batch, order), epoch=4).images_VBCHW, whole[:, order])
    for parts in ([1] * 4 + [33], [20, 17]):
        pieces = [augment(view1=name)(rows_of(batch, rows), 4).images_VBCHW for rows in torch.arange(37).split(parts)]
        assert torch.equal(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize("name", [name for name in AUGMENTS if name != "none"])
def test_seed_epoch_copy_and_view_each_matter(name: str) -> None:
    batch = batch_of(16)
    both = augment(2, view1=name, view2=name)
    views = both(batch, epoch=0).images_VBCHW
    assert torch.equal(views, both(batch, epoch=0).images_VBCHW)
    assert not torch.equal(views[0], views[1])
    assert torch.equal(views[:1], augment(1, view1=name)(batch, epoch=0).images_VBCHW)
    assert not torch.equal(views, both(batch, epoch=1).images_VBCHW)
    assert not torch.equal(views, augment(2, seed=4, view1=name, view2=name)(batch, epoch=0).images_VBCHW)
    other = Batch(batch.images_VBCHW, batch.labels_B, batch.index_B, batch.copy_B + 1)
    assert not torch.equal(views, both(other, epoch=0).images_VBCHW)


def test_the_input_is_never_written_to() -> None:
    batch = batch_of(16)
    before = batch.images_VBCHW.clone()
    for name in AUGMENTS:
        augment(2, view1=name, view2=name, mixup_alpha=1.0)(batch, epoch=0)
    assert torch.equal(batch.images_VBCHW, before)


def test_evaluation_only_normalizes() -> None:
    batch = batch_of(4)
    out = augment(view1="randaugment", mixup_alpha=1.0).evaluate(batch)
    expected = tv.normalize(batch.images_VBCHW[0].double() / 255, list(MEAN), list(STD))
    torch.testing.assert_close(out.images_VBCHW[0].double(), expected, rtol=1e-5, atol=1e-5)
    assert out.mix is None and out.labels_B is batch.labels_B
    assert torch.equal(augment(view1="none")(batch, 0).images_VBCHW, out.images_VBCHW)


def test_crop_and_flip_are_uniform() -> None:
    count, size = 4096, 16
    row = torch.arange(1, size + 1, dtype=torch.uint8)[:, None].expand(size, size)
    picture = torch.stack([row, row.T, row.T])
    batch = Batch(picture.expand(1, count, 3, size, size), *(torch.arange(count) for _ in range(3)))
    unit = Augment(AugmentConfig(view1="crop_flip"), seed=0, mean=(0, 0, 0), std=(1 / 255,) * 3, num_views=1)
    out = unit(batch, 0).images_VBCHW[0].round().long()
    down = out[:, 0, 8, 8] - 9
    flipped = out[:, 1, 8, 8] < out[:, 1, 8, 7]
    right = torch.where(flipped, out[:, 1, 8, 7], out[:, 1, 8, 8]) - 9
    assert set(down.tolist()) == set(right.tolist()) == {-2, -1, 0, 1, 2}
    for counts in (torch.bincount(down + 2), torch.bincount(right + 2), torch.bincount(flipped.long())):
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_resized_crop_boxes_keep_area_and_aspect() -> None:
    count, size = 2000, 64
    row = torch.arange(size, dtype=torch.uint8)[:, None].expand(size, size) * 3
    images = torch.stack([row, row.T, row.T]).expand(count, 3, size, size)
    out = resized_crop(images, draw_for(count), 0.2).float() / 3
    height, width = out[:, 0, -1, 0] - out[:, 0, 0, 0] + 1, out[:, 1, 0, -1] - out[:, 1, 0, 0] + 1
    area, aspect = height * width / size**2, width / height
    assert area.min() > 0.18 and area.max() <= 1.0 and area.min() < 0.25 and area.max() > 0.9
    assert 0.70 < aspect.min() < 0.80 and 1.25 < aspect.max() < 1.42
    assert abs(aspect.log().mean()) < 0.02


def reference_op(image: Tensor, name: str, m: float) -> Tensor:
    """One operation by torchvision's functions; m in [-1, 1]."""
    size = image.shape[-1]
    plain: dict[str, Any] = {"angle": 0.0, "scale": 1.0, "center": [0, 0]}
    degrees = float(torch.rad2deg(torch.atan(torch.tensor(m * 0.3, dtype=torch.float64))))
    pixels = round(m * 150 / 331 * size)
    table: dict[str, Any] = {
        "identity": lambda: image,
        "shear_x": lambda: tv.affine(image, translate=[0, 0], shear=[degrees, 0.0], **plain),
        "shear_y": lambda: tv.affine(image, translate=[0, 0], shear=[0.0, degrees], **plain),
        "translate_x": lambda: tv.affine(image, translate=[pixels, 0], shear=[0.0, 0.0], **plain),
        "translate_y": lambda: tv.affine(image, translate=[0, pixels], shear=[0.0, 0.0], **plain),
        "rotate": lambda: tv.rotate(image, m * 30),
        "brightness": lambda: tv.adjust_brightness(image, 1 + 0.9 * m),
        "color": lambda: tv.adjust_saturation(image, 1 + 0.9 * m),
        "contrast": lambda: tv.adjust_contrast(image, 1 + 0.9 * m),
        "sharpness": lambda: tv.adjust_sharpness(image, 1 + 0.9 * m),
        "posterize": lambda: tv.posterize(image, 8 - round(4 * abs(m))),
        "solarize": lambda: tv.solarize(image, 255 * (1 - abs(m))),
        "autocontrast": lambda: tv.autocontrast(image),
        "equalize": lambda: tv.equalize(image),
        "invert": lambda: tv.invert(image),
    }
    return table[name]()


def assert_nearly_equal(mine: Tensor, theirs: Tensor, what: Any) -> None:
    """Equal up to two levels in nearly every pixel.

    Each operation alone is within one level, but one that follows may enlarge that: posterize turns it into a whole step.
    """
    far = ((mine.int() - theirs.int()).abs() > 2).float().mean().item()
    assert far < 0.05, (what, far)


def smooth_images(count: int) -> Tensor:
    at = torch.arange(32)
    phase = torch.arange(count)[:, None, None, None] * 5 + torch.tensor([0, 60, 120])[None, :, None, None]
    return ((at[:, None] * 4 + at * 3 + phase) % 256).to(torch.uint8)


def test_the_policy_is_the_published_one() -> None:
    published = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10).policies

    def plain(name: str) -> str:
        return name.lower().replace("_", "")

    signless = {"equalize", "autocontrast", "invert"}
    assert len(CIFAR10_POLICY) == len(published) == 25
    for mine, theirs in zip(CIFAR10_POLICY, published, strict=True):
        for (name, probability, level), (their_name, their_probability, their_level) in zip(mine, theirs, strict=True):
            assert (plain(name), probability) == (plain(their_name), their_probability)
            assert level == their_level or name in signless


def test_autoaugment_against_torchvision() -> None:
    count = 300
    images, draw = smooth_images(count), draw_for(count)
    mine = autoaugment(images, draw, AugmentConfig())
    u = rng.uniform(3, 2, draw.index_B, draw.copy_B, "augment/view1/autoaugment", 5).tolist()
    seen = set()
    for b in range(count):
        pair = CIFAR10_POLICY[int(u[b][0] * 25)]
        expected = images[b]
        for k, (name, probability, level) in enumerate(pair):
            if u[b][1 + k] < probability:
                expected = reference_op(expected, name, level / 9 * (-1 if u[b][3 + k] < 0.5 else 1))
                seen.add(name)
        assert_nearly_equal(mine[b], expected, pair)
    paper = {name for name in OPS if not name.startswith("timm_")}
    assert seen == paper - {"identity", "shear_x"}  # which no sub-policy contains


def test_translations_move_by_as_many_pixels_as_with_pil() -> None:
    """Levels 9, 8 and 3 of the policy on images of 32 px, by PIL's affine transform with the same fraction of the side."""
    image = smooth_images(1)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    moved = {}
    for level in (9, 8, 3):
        m = torch.tensor([level / 9])
        mine, op = image.clone(), torch.tensor([OPS.index("translate_x")])
        apply_op(mine, op, op, m, fill=128)
        share = float(m) * 150 / 331 * 32
        theirs = picture.transform((32, 32), Image.Transform.AFFINE, (1, 0, -share, 0, 1, 0), fillcolor=(128,) * 3)
        assert np.array_equal(mine[0].permute(1, 2, 0).numpy(), np.asarray(theirs)), level
        moved[level] = int((mine[0] == 128).all(0).all(0).sum())
    assert moved == {9: 15, 8: 13, 3: 5}


@pytest.mark.parametrize("magnitude", [9.0, 30.0])
def test_randaugment_against_torchvision(magnitude: float) -> None:
    count = 120
    images, draw = smooth_images(count), draw_for(count)
    mine = randaugment(images, draw, AugmentConfig(randaugment_ops=3, randaugment_magnitude=magnitude))
    u = rng.uniform(3, 2, draw.index_B, draw.copy_B, "augment/view1/randaugment", 6).tolist()
    for b in range(count):
        expected = images[b]
        names = [OPS[int(u[b][k] * 14)] for k in range(3)]
        for k, name in enumerate(names):
            expected = reference_op(expected, name, magnitude / 30 * (-1 if u[b][3 + k] < 0.5 else 1))
        assert_nearly_equal(mine[b], expected, names)
    assert not torch.equal(
        randaugment(images, draw, AugmentConfig(fill=128)), randaugment(images, draw, AugmentConfig())
    )


TIMM_OPS = (
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "autocontrast", "equalize", "invert"),
    *("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "solarize_add"),
)


def timm_op(image: Tensor, name: str, m: float) -> Tensor:
    """One operation of timm's list at the signed share ``m`` of the largest magnitude."""
    level = abs(m)
    table: dict[str, Any] = {
        "brightness": lambda: tv.adjust_brightness(image, 0.1 + 1.8 * level),
        "color": lambda: tv.adjust_saturation(image, 0.1 + 1.8 * level),
        "contrast": lambda: tv.adjust_contrast(image, 0.1 + 1.8 * level),
        "sharpness": lambda: tv.adjust_sharpness(image, 0.1 + 1.8 * level),
        "posterize": lambda: tv.posterize(image, int(4 * level)),
        "solarize": lambda: torch.where(image.int() < int(256 * level), image, 255 - image),
        "solarize_add": lambda: torch.where(image < 128, (image.int() + int(110 * level)).clamp(max=255), image).byte(),
    }
    return table[name]() if name in table else reference_op(image, name, m)


@pytest.mark.parametrize("magnitude", [12.0, 30.0])
def test_timms_randaugment_has_its_own_list(magnitude: float) -> None:
    count = 150
    images, draw = smooth_images(count), draw_for(count)
    cfg = AugmentConfig(randaugment_variant="timm", randaugment_ops=1, randaugment_magnitude=magnitude)
    mine = randaugment(images, draw, cfg)
    u = rng.uniform(3, 2, draw.index_B, draw.copy_B, "augment/view1/randaugment", 2).tolist()
    names = [TIMM_OPS[int(u[b][0] * 15)] for b in range(count)]
    assert set(names) == set(TIMM_OPS)
    for b, name in enumerate(names):
        expected = timm_op(images[b], name, magnitude / 30 * (-1 if u[b][1] < 0.5 else 1))
        assert_nearly_equal(mine[b], expected, name)
    if magnitude == 30:  # the largest: nothing is solarized, and contrast and the like grow
        assert all(torch.equal(mine[b], images[b]) for b, name in enumerate(names) if name == "solarize")


def test_randaugment_with_noise_and_probability() -> None:
    """As by hand from the same draws; 0.5 of the operations stay out, and magnitudes lie around the middle."""
    count = 200
    images, draw = smooth_images(count), draw_for(count)
    options: dict[str, Any] = {"randaugment_ops": 1, "randaugment_magnitude": 15.0}
    mine = randaugment(images, draw, AugmentConfig(**options, randaugment_std=3.0, randaugment_probability=0.5))

    def uniforms(purpose: str, n: int) -> Tensor:
        return rng.uniform(3, 2, draw.index_B, draw.copy_B, f"augment/view1/{purpose}", n)

    u, noise, applied = (uniforms(p, n).tolist() for p, n in _RANDAUGMENT_DRAWS)
    magnitudes = []
    for b in range(count):
        name = OPS[int(u[b][0] * 14)]
        normal = (-2 * math.log(1 - noise[b][0])) ** 0.5 * math.cos(2 * math.pi * noise[b][1])
        magnitudes.append(min(max(15 + 3 * normal, 0), 30))
        if applied[b][0] >= 0.5:
            assert torch.equal(mine[b], images[b])
        else:
            assert_nearly_equal(
                mine[b], reference_op(images[b], name, magnitudes[-1] / 30 * (-1 if u[b][1] < 0.5 else 1)), name
            )
    assert 0.4 < sum(a[0] < 0.5 for a in applied) / count < 0.6
    assert stats.kstest(magnitudes, stats.norm(15, 3).cdf).pvalue > 1e-3


_RANDAUGMENT_DRAWS = (("randaugment", 2), ("randaugment_std", 2), ("randaugment_probability", 1))


@pytest.mark.parametrize(
    ("view1", "whole"), [("crop", "randaugment_noflip"), ("crop_flip", "randaugment"), ("rrc_flip_jitter", "rrc_rand")]
)
def test_randaugment_follows_any_stack(view1: str, whole: str) -> None:
    batch = batch_of(20)
    both = augment(2, view1=view1, randaugment=True)(batch, epoch=1).images_VBCHW
    assert torch.equal(both[0], augment(view1=whole)(batch, epoch=1).images_VBCHW[0])
    assert torch.equal(both[1], augment(2, view1=view1)(batch, epoch=1).images_VBCHW[1])  # the second view has none
    with pytest.raises(ConfigError, match=f"augment.view1={whole} has RandAugment already"):
        stacks(AugmentConfig(view1=whole, randaugment=True), 1)


def test_jitter_without_hue_always_acts_and_in_every_order() -> None:
    count = 60
    images, draw = smooth_images(count), draw_for(count)
    mine = jitter_no_hue(images, draw, AugmentConfig())
    u = rng.uniform(3, 2, draw.index_B, draw.copy_B, "augment/view1/jitter", 9).tolist()
    changes = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation]
    orders = set()
    for b in range(count):
        expected = images[b].float() / 255
        order = [i for i in sorted(range(4), key=lambda i: u[b][4 + i]) if i < 3]
        orders.add(tuple(order))
        for i in order:
            expected = changes[i](expected, u[b][i] * 0.8 + 0.6)
        torch.testing.assert_close(mine[b], expected, rtol=0, atol=1e-3)
    assert len(orders) == 6


def test_eight_bits_rounds_to_the_nearest_level() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    for shift in (-0.4, 0.0, 0.4):
        shifted = ((levels.float() + shift) / 255).clamp(0, 1)
        assert torch.equal(eight_bits(shifted, draw_for(2), AugmentConfig()), levels)


def test_jitter_against_torchvision() -> None:
    count = 60
    images, draw = smooth_images(count), draw_for(count)
    mine = jitter(images, draw, AugmentConfig())
    u = rng.uniform(3, 2, draw.index_B, draw.copy_B, "augment/view1/jitter", 9).tolist()
    changes = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    orders = set()
    for b in range(count):
        expected = images[b].float() / 255
        values = [u[b][0] * 0.8 + 0.6, u[b][1] * 0.8 + 0.6, u[b][2] * 0.8 + 0.6, u[b][3] * 0.2 - 0.1]
        order = sorted(range(4), key=lambda i: u[b][4 + i])
        orders.add(tuple(order))
        if u[b][8] < 0.8:
            for i in order:
                expected = changes[i](expected, values[i])
        torch.testing.assert_close(mine[b], expected, rtol=0, atol=1e-3)
    assert len(orders) > 15


def test_cutout_erases_before_normalization() -> None:
    white = Batch(torch.full((1, 8, 3, 32, 32), 255, dtype=torch.uint8), *(torch.arange(8) for _ in range(3)))
    out = augment(view1="crop_cutout", cutout_fraction=0.25)(white, 0).images_VBCHW[0]
    black = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])
    center = out[:, :, 4:28, 4:28].permute(0, 2, 3, 1)  # out of reach of the crop's padding
    erased = (center - black).abs().amax(-1) < 1e-4
    assert ((erased.sum((1, 2)) <= 64) & (erased.any(2).sum(1) <= 8)).all() and erased.any()


def test_mixup_pairs_neighbors_and_leaves_an_odd_last_row() -> None:
    batch = batch_of(7)
    plain = augment(view1="crop")(batch, 1).images_VBCHW[0]
    out = augment(view1="crop", mixup_alpha=1.0)(batch, 1)
    assert out.mix is not None
    lam, labels = out.mix.lam_B, out.mix.labels_B
    for i, partner in enumerate([1, 0, 3, 2, 5, 4, 6]):
        assert labels[i] == batch.labels_B[partner]
        assert out.mix.index_B[i] == batch.index_B[partner]
        assert lam[i] == lam[partner]
        torch.testing.assert_close(out.images_VBCHW[0, i], lam[i] * plain[i] + (1 - lam[i]) * plain[partner])
    assert lam[6] == 1 and torch.equal(out.images_VBCHW[0, 6], plain[6])
    assert len(set(lam.tolist())) == 4


def test_mixup_is_the_same_for_two_ranks_and_for_swapped_pairs() -> None:
    batch, mixing = batch_of(12), augment(view1="crop_flip", mixup_alpha=0.4)
    whole = mixing(batch, 1)
    assert whole.mix is not None
    for rows in torch.arange(12).split(6):
        part = mixing(rows_of(batch, rows), 1)
        assert part.mix is not None
        assert torch.equal(part.images_VBCHW, whole.images_VBCHW[:, rows])
        assert torch.equal(part.mix.lam_B, whole.mix.lam_B[rows])
        assert torch.equal(part.mix.labels_B, whole.mix.labels_B[rows])
    swapped = mixing(rows_of(batch, torch.arange(12) ^ 1), 1)
    assert torch.equal(swapped.images_VBCHW, whole.images_VBCHW[:, torch.arange(12) ^ 1])


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_mixup_shares_follow_the_beta_distribution(alpha: float) -> None:
    count = 6000
    batch = Batch(torch.zeros(1, count, 3, 8, 8, dtype=torch.uint8), *(torch.arange(count) for _ in range(3)))
    mix = augment(view1="none", mixup_alpha=alpha)(batch, 0).mix
    assert mix is not None
    shares = mix.lam_B[::2].double().numpy()
    assert shares.min() >= 0 and shares.max() <= 1
    # the lower half only: above it, a small alpha puts much of its mass within float32's last bit below 1
    low = shares[shares < 0.5]
    assert stats.kstest(low, lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 1e-3
    assert stats.binomtest(len(low), len(shares)).pvalue > 1e-3


@pytest.mark.parametrize(
    "field, value",
    [
        ("mixup_alpha", -0.1),
        ("mixup_alpha", float("nan")),
        ("randaugment_ops", 0),
        ("randaugment_magnitude", 31.0),
        ("randaugment_variant", "torchvision"),
        ("randaugment_std", -1.0),
        ("randaugment_probability", 0.0),
        ("cutout_fraction", 0.0),
        ("fill", 256),
    ],
)
def test_wrong_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be .*got"):
        AugmentConfig(**{field: value})


def test_an_unknown_stack_lists_the_known_ones() -> None:
    for view, name in (("view1", "crops"), ("view2", "")):
        known = rf"augment.{view}='{name}' is unknown.*autoaugment_cutout, crop, crop_cutout, crop_flip"
        with pytest.raises(ConfigError, match=known):
            stacks(AugmentConfig(**{view: name}), 2)
        with pytest.raises(ConfigError, match=known):
            load_run("cifar100_lt_ce", {f"augment.{view}": name})


@pytest.mark.parametrize("view1", ["autoaugment_cutout", "randaugment", "rrc_sim", "crop_flip_rotate15"])
def test_nothing_is_asked_of_the_device(view1: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CropDraws come from what the host knows of the samples; what a GPU knows would have to be waited for."""
    batch = batch_of(8)
    augment = Augment(AugmentConfig(view1=view1, view2="sim"), seed=1, mean=MEAN, std=STD, num_views=2)
    expected = augment(batch, 3).images_VBCHW
    elsewhere = replace(batch, index_B=torch.zeros(8, device="meta"), copy_B=torch.zeros(8, device="meta"))
    assert torch.equal(augment(elsewhere, 3, batch).images_VBCHW, expected)


def test_one_image_of_five_is_gray_and_every_second_blurred_by_up_to_two_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, sigmas = 4000, list[Tensor]()
    images = batch_of(count, size=8).images_VBCHW[0]
    changed = (gray(images, draw_for(count), AugmentConfig()) != unit_range(images)).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.2, abs=0.02)
    real = transforms_of_ours.ops.blur

    def spy(picked: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
        sigmas.append(sigma_B)
        return real(picked, sigma_B, radius=radius)

    monkeypatch.setattr(transforms_of_ours.ops, "blur", spy)
    blur(images, draw_for(count), AugmentConfig())
    sigma_b = torch.cat(sigmas)
    assert len(sigma_b) / count == pytest.approx(0.5, abs=0.03)
    assert stats.kstest(sigma_b.numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
