"""Augmentation: on the device, a batch at a time, with parameters that are a function of the sample.

Every number is keyed by (seed, epoch, index, copy, view and stage), so the image a sample becomes does not depend on
the batch it is in, on the number of ranks or workers, or on the engine. Shape legend: see ``ltcore.batch``; S is the
canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore import rng
from ltcore.batch import Batch, Mix
from ltcore.data.augment import ops
from ltcore.data.augment import transforms as stages
from ltcore.data.augment.transforms import Draw, Stage
from ltcore.data.images.boxes import Crop

CROP_FROM = ("auto", "canvas", "original")
LARGE_PX = 64
"""Canvases up to here hold images whole, as they were made: CIFAR, digits, thumbnails."""


@dataclass(frozen=True)
class Stack:
    """A random resized crop, where there is one, and a sequence of stages."""

    stages: tuple[Stage, ...]
    says: str
    min_area: float | None = None
    """Least share of the area that the crop keeps; None: no such crop. It comes first, so that the reader can do it."""


# A dict literal: the linter (F601) refuses a repeated name.
AUGMENTS: dict[str, Stack] = {
    "none": Stack((), "the canvas as it is"),
    "crop": Stack((stages.crop,), "crop with S/8 padding; keeps color and orientation"),
    "crop_cutout": Stack((stages.crop, stages.cutout), "crop and one erased square; keeps color and orientation"),
    "crop_flip": Stack((stages.crop, stages.flip), "crop and flip: the CIFAR standard"),
    "crop_flip_rotate15": Stack(
        (stages.crop, stages.flip, stages.rotate15), "crop, flip, up to 15 degrees (RIDE, SADE)"
    ),
    "autoaugment_cutout": Stack(
        (stages.crop, stages.flip, stages.autoaugment, stages.cutout),
        "crop, flip, AutoAugment's CIFAR-10 policy, Cutout (PaCo, DRO-LT)",
    ),
    "randaugment": Stack((stages.crop, stages.flip, stages.randaugment), "crop, flip, RandAugment"),
    "rrc_flip": Stack((stages.flip,), "random resized crop (area 0.08..1) and flip: ImageNet", min_area=0.08),
    "rrc_flip_jitter": Stack(
        (stages.flip, stages.jitter_no_hue),
        "random resized crop, flip, color jitter: the plain augmentation of codes for ImageNet-LT",
        min_area=0.08,
    ),
    "rrc_rand": Stack(
        (stages.flip, stages.jitter_no_hue, stages.eight_bits, stages.randaugment),
        "random resized crop, flip, color jitter, RandAugment: PaCo's first view on ImageNet-LT ('randcls')",
        min_area=0.08,
    ),
    "rrc_rand_stack": Stack(
        (stages.flip, stages.jitter_no_hue, stages.gray, stages.blur, stages.eight_bits, stages.randaugment),
        "the same with gray and blur before RandAugment ('randclsstack')",
        min_area=0.08,
    ),
    "rrc_sim": Stack(
        (stages.flip, stages.jitter_no_hue, stages.gray, stages.blur),
        "random resized crop (area 0.08..1), flip, color jitter, gray, blur: PaCo's second view on ImageNet-LT",
        min_area=0.08,
    ),
    "sim": Stack(
        (stages.flip, stages.jitter, stages.gray, stages.blur),
        "random resized crop (area 0.2..1), flip, color jitter, gray, blur: the second view of PaCo",
        min_area=0.2,
    ),
    "sim_noflip": Stack(
        (stages.jitter, stages.gray, stages.blur),
        "sim without flip, area 0.5..1: for digits and other images whose orientation matters",
        min_area=0.5,
    ),
}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to training images. Evaluation only normalizes."""

    view1: str = "crop_flip"
    """Stack of the view that is classified (a wrong name is answered by the list of all)."""
    view2: str = "sim"
    """Stack of the second view. No effect unless a loss asks for a key."""
    mixup_alpha: float = 0.0
    """Mixes neighbors of a batch with a share drawn from Beta(alpha, alpha); 0 is off. Published: 1."""
    randaugment_ops: int = 2
    """Operations per image, >= 1. No effect on stacks without RandAugment."""
    randaugment_magnitude: float = 9.0
    """Strength of each operation, 0..30 (10 on the scale 0..10 of other codes is 30 here). No effect without
    RandAugment."""
    randaugment_variant: str = "paper"
    """Whose operations: 'paper' (14, contrast and the like both ways) or 'timm' (15, with inversion and added solarization;
    contrast and the like from 0.1 to 1.9 of the image's own). No effect without RandAugment."""
    randaugment_std: float = 0.0
    """Standard deviation, >= 0, of a normal draw around that strength, for each operation; cut to 0..30. No effect
    without RandAugment."""
    randaugment_probability: float = 1.0
    """Probability with which each operation is applied, in (0, 1]. No effect without RandAugment."""
    cutout_fraction: float = 0.5
    """Side of the erased square as a fraction of the canvas, in (0, 1]: 16 px of 32. No effect without cutout."""
    crop_from: str = "auto"
    """What random resized crops are cut out of: ``canvas`` (the centered square that every image is brought to, on the
    device), ``original`` (the whole image at its own size, by the reader, which then delivers one canvas per view), or
    ``auto``: original where the canvas is larger than 64 px. No effect on stacks without such a crop."""
    fill: int = 0
    """Gray level 0..255 of what rotations, shears and translations bring in from outside. Crops always bring in 0. No
    effect in stacks without these operations."""

    def __post_init__(self) -> None:
        for field in ("view1", "view2"):
            if getattr(self, field) not in AUGMENTS:
                raise ValueError(f"{field} must be one of {', '.join(sorted(AUGMENTS))}, got {getattr(self, field)!r}")
        if self.crop_from not in CROP_FROM:
            raise ValueError(f"crop_from must be one of {', '.join(CROP_FROM)}, got {self.crop_from!r}")
        if not 0 <= self.mixup_alpha < float("inf"):
            raise ValueError(f"mixup_alpha must be a finite number >= 0, got {self.mixup_alpha}")
        if self.randaugment_ops < 1:
            raise ValueError(f"randaugment_ops must be >= 1, got {self.randaugment_ops}")
        if self.randaugment_variant not in ("paper", "timm"):
            raise ValueError(f"randaugment_variant must be paper or timm, got {self.randaugment_variant!r}")
        if not 0 <= self.randaugment_magnitude <= 30:
            raise ValueError(f"randaugment_magnitude must be in [0, 30], got {self.randaugment_magnitude}")
        if not 0 <= self.randaugment_std < float("inf"):
            raise ValueError(f"randaugment_std must be a finite number >= 0, got {self.randaugment_std}")
        if not 0 < self.randaugment_probability <= 1:
            raise ValueError(f"randaugment_probability must be in (0, 1], got {self.randaugment_probability}")
        if not 0 < self.cutout_fraction <= 1:
            raise ValueError(f"cutout_fraction must be in (0, 1], got {self.cutout_fraction}")
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill must be in 0..255, got {self.fill}")


def stacks(cfg: AugmentConfig, num_views: int) -> dict[str, Stack]:
    """View -> its stack, for the first ``num_views`` views."""
    return dict(list({"view1": AUGMENTS[cfg.view1], "view2": AUGMENTS[cfg.view2]}.items())[:num_views])


def reader_crops(cfg: AugmentConfig, num_views: int, canvas: int) -> tuple[Crop, ...]:
    """What a reader cuts out of the originals, view by view; () where it delivers canvases and they are cropped here."""
    used = stacks(cfg, num_views)
    original = cfg.crop_from == "original" or (cfg.crop_from == "auto" and canvas > LARGE_PX)
    if not original or all(stack.min_area is None for stack in used.values()):
        return ()
    return tuple(Crop(view, stack.min_area) for view, stack in used.items())


class Augment:
    """Turns uint8 canvases into normalized views.

    Args:
        cfg: the stacks of the views and their strength.
        seed: of the run.
        mean, std: per channel, of pixel values in [0, 1].
        num_views: V, 1 or 2.
    """

    def __init__(
        self, cfg: AugmentConfig, *, seed: int, mean: Sequence[float], std: Sequence[float], num_views: int
    ) -> None:
        self._cfg = cfg
        self._seed = seed
        self._stacks = stacks(cfg, num_views)
        self._scale = torch.tensor(std, dtype=torch.float64).reciprocal().float()[:, None, None]
        self._shift = (-torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)).float()[
            :, None, None
        ]

    def __call__(self, batch: Batch, epoch: int, host: Batch | None = None) -> Batch:
        """uint8 [1, B, 3, S, S] -> float32 [V, B, 3, S, S] on the same device; sets ``mix`` where mixup is on.

        Draws are made on the host, by what ``host``, the same batch there, knows of its samples; without it a batch on a GPU
        has to be asked, which waits for all that the GPU still computes.
        A batch that the reader cropped (``boxes_VB4``) brings all V views, and is not cropped again.
        """
        views = []
        known = host or batch
        index_B, copy_B = known.index_B.cpu(), known.copy_B.cpu()
        cropped = batch.boxes_VB4 is not None
        for number, (view, stack) in enumerate(self._stacks.items()):
            images = batch.images_VBCHW[number if cropped else 0]
            draw = Draw(self._seed, epoch, index_B, copy_B, view, images.device)
            if stack.min_area is not None and not cropped:
                images = stages.resized_crop(images, draw, stack.min_area)
            for stage in stack.stages:
                images = stage(images, draw, self._cfg)
            views.append(self._normalize(images))
        images_VBCHW = torch.stack(views)
        if self._cfg.mixup_alpha == 0:
            return batch.with_images(images_VBCHW)
        return _mixup(batch.with_images(images_VBCHW), self._cfg.mixup_alpha, self._seed, epoch)

    def evaluate(self, batch: Batch) -> Batch:
        """uint8 [1, B, 3, S, S] -> float32 [1, B, 3, S, S], normalized and nothing else."""
        return batch.with_images(self._normalize(batch.images_VBCHW[0])[None])

    def _normalize(self, images: Tensor) -> Tensor:
        self._scale = self._scale.to(images.device)
        self._shift = self._shift.to(images.device)
        return ops.unit_range(images) * self._scale + self._shift


def _mixup(batch: Batch, alpha: float, seed: int, epoch: int) -> Batch:
    """Mixes rows 2k and 2k + 1 with each other, both by the same keyed share; an odd last row stays as it is.

    Published codes permute the whole batch, which no split over ranks could repeat. Neighbors are the same for every
    number of ranks whose rank-local batch is even, because a rank's rows are a contiguous piece of the global batch;
    and as rows of a batch are in random order, a neighbor is as good a partner as any.
    """
    rows = torch.arange(len(batch), device=batch.labels_B.device)
    partner_B = torch.where((rows ^ 1) < len(batch), rows ^ 1, rows)
    lam_B = mix_share(batch.index_B, batch.copy_B, partner_B, alpha, seed, epoch)
    lam = lam_B[:, None, None, None]
    images = batch.images_VBCHW
    mixed = images * lam + images[:, partner_B] * (1 - lam)
    return batch.with_images(mixed, Mix(batch.labels_B[partner_B], lam_B, batch.index_B[partner_B]))


def mix_share(index_B: Tensor, copy_B: Tensor, partner_B: Tensor, alpha: float, seed: int, epoch: int) -> Tensor:
    """float32 [B] from Beta(alpha, alpha), equal for both rows of a pair and 1 for a row that is its own partner.

    The sum of two uniforms modulo 1 is uniform and symmetric in the pair. Beta(a, a) is (1 + t / sqrt(2a + t^2)) / 2
    for t of Student's distribution with 2a degrees of freedom, and t has a closed form in two uniforms (Bailey 1994,
    Math. Comp. 62:779), so no rejection loop is needed.
    """
    u_B2 = rng.uniform(seed, epoch, index_B, copy_B, "augment/mixup", 2).double()
    shared_B2 = (u_B2 + u_B2[partner_B]) % 1.0
    radial = (1 - shared_B2[:, 0]).pow(1 / alpha)
    cos = (2 * torch.pi * shared_B2[:, 1]).cos()
    spread = (1 - radial) * cos.square()
    share = (1 + cos.sign() * (spread / (radial + spread)).sqrt()) / 2
    own = partner_B == torch.arange(len(partner_B), device=partner_B.device)
    return torch.where(own, 1.0, share).float()
