"""The configuration of augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ltcore.data.images.boxes import SCHEDULES
from ltcore.errors import at_least, one_of, within
from ltcore.plugins.generated import generate, refuse_idle

CROP_FROM = ("auto", "canvas", "original")

if TYPE_CHECKING:  # a stand-in for the class generated below

    class AugmentOptions:
        def __getattr__(self, name: str) -> Any: ...

else:
    AugmentOptions = generate("AugmentOptions", __name__, "Options of augmentations of plugins, under their names.", [])


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to training images. Evaluation only normalizes."""

    view1: str = "crop_flip"
    """Stack of the view that is classified; ``ltcore methods`` lists them."""
    view2: str = "sim"
    """Stack of the second view. No effect unless a loss asks for a key."""
    randaugment: bool = False
    """Whether RandAugment follows ``view1``'s stack, whatever that is; an error where it is in it already."""
    mixup_alpha: float = 0.0
    """mixup: blends neighbors of a batch with a share drawn from Beta(alpha, alpha); 0 is off. Published: 1."""
    cutmix_alpha: float = 0.0
    """CutMix: exchanges a box between neighbors of a batch, of about 1 - Beta(alpha, alpha) of the area; labels are mixed by the
    exact share of pixels. 0 is off. Published: 1. With ``mixup_alpha`` above 0 a pair is either cut or blended."""
    cutmix_probability: float = 0.5
    """Share of the mixed pairs that are cut, in [0, 1]. No effect unless both ``mixup_alpha`` and ``cutmix_alpha`` are above 0.
    """
    mix_probability: float = 1.0
    """Share of all pairs that are mixed, in (0, 1]; CutMix's code for CIFAR: 0.5. No effect without mixup and CutMix."""
    remix_kappa: float | None = None
    """Remix: gives the whole label of a mixed image to the rarer class where the other one has at least this many times its
    training images, > 1, and the rarer image's share is large enough (``remix_tau``). Priors of losses stay those of the
    images. null: labels are mixed like the images. Published: 3. Needs mixup or CutMix."""
    remix_tau: float = 0.5
    """Upper limit, in [0, 1], of the frequent image's share for that. No effect without ``remix_kappa``."""
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
    """Side of the erased square as a fraction of the image's, in (0, 1]: 16 px of 32. No effect without cutout."""
    crop_from: str = "auto"
    """What random resized crops are cut out of: ``canvas`` (the centered square that every image is brought to, on the
    device), ``original`` (the whole image at its own size, by the reader, which then delivers one canvas per view), or
    ``auto``: original where ``data.image_size`` is above 64. No effect on stacks without such a crop."""
    crop_schedule: str = "constant"
    """How the least area of random resized crops grows to the whole image over training, by the epoch: ``constant`` (not),
    ``linear``, or a quarter circle, ``convex`` (late; LIFT+) or ``concave`` (early). No effect on stacks without such a crop,
    nor in a training of one epoch."""
    fill: int = 0
    """Gray level 0..255 of what rotations, shears and translations bring in from outside. Crops always bring in 0. No
    effect in stacks without these operations."""
    options: AugmentOptions = field(default_factory=AugmentOptions)
    """Options of augmentations of plugins, under their names."""

    def __post_init__(self) -> None:
        one_of(CROP_FROM, crop_from=self.crop_from)
        one_of(tuple(SCHEDULES), crop_schedule=self.crop_schedule)
        one_of(("paper", "timm"), randaugment_variant=self.randaugment_variant)
        at_least(0, mixup_alpha=self.mixup_alpha, cutmix_alpha=self.cutmix_alpha, randaugment_std=self.randaugment_std)
        within("[0, 1]", cutmix_probability=self.cutmix_probability, remix_tau=self.remix_tau)
        within("(0, 1]", mix_probability=self.mix_probability)
        if self.remix_kappa is not None and not 1 < self.remix_kappa < math.inf:
            raise ValueError(f"remix_kappa must be a finite number > 1, got {self.remix_kappa}")
        if self.remix_kappa is not None and not self.mixes:
            raise ValueError(
                f"remix_kappa={self.remix_kappa:g} needs mixed images: set augment.mixup_alpha or augment.cutmix_alpha above 0"
            )
        at_least(1, randaugment_ops=self.randaugment_ops)
        within("[0, 30]", randaugment_magnitude=self.randaugment_magnitude)
        within("(0, 1]", randaugment_probability=self.randaugment_probability, cutout_fraction=self.cutout_fraction)
        within("[0, 255]", fill=self.fill)
        refuse_idle(self.options, (self.view1, self.view2), "augment.view1")

    @property
    def mixes(self) -> bool:
        """Tells whether training images are mixed of two."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0
