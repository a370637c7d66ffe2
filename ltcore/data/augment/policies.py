"""The named stacks of transforms, and what a reader crops for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltcore.data.augment import transforms
from ltcore.data.augment.auto_augment import autoaugment, randaugment
from ltcore.data.augment.config import AugmentConfig, AugmentOptions
from ltcore.data.augment.transforms import Draw, Stage
from ltcore.data.images.boxes import Crop
from ltcore.errors import ConfigError, PluginError, pick, within
from ltcore.plugins.generated import add_row, configured, grow_if_it_has_options
from ltcore.plugins.loading import attach
from ltcore.plugins.parts import Part

LARGE_PX = 64
"""Canvases up to here hold images whole, as they were made: CIFAR, digits, thumbnails."""


@dataclass(frozen=True)
class Stack:
    """A random resized crop, where there is one, and a sequence of transforms."""

    stages: tuple[Stage, ...]
    summary: str
    min_area: float | None = None
    """Least share of the area that the crop keeps; None: no such crop. It comes first, so that the reader can do it."""
    paper: str = "-"
    square: bool = False
    """Whether that crop is a square, in place of one with an aspect from 3/4 to 4/3."""


# A dict literal: the linter (F601) refuses a repeated name.
AUGMENTS: dict[str, Stack] = {
    "none": Stack((), "the canvas as it is"),
    "crop": Stack((transforms.crop,), "crop with S/8 padding; keeps color and orientation"),
    "crop_cutout": Stack(
        (transforms.crop, transforms.cutout), "crop and one erased square; keeps color and orientation"
    ),
    "crop_flip": Stack((transforms.crop, transforms.flip), "crop and flip: the CIFAR standard"),
    "crop_flip_rotate15": Stack(
        (transforms.crop, transforms.flip, transforms.rotate15), "crop, flip, up to 15 degrees (RIDE, SADE)"
    ),
    "autoaugment_cutout": Stack(
        (transforms.crop, transforms.flip, autoaugment, transforms.cutout),
        "crop, flip, AutoAugment's CIFAR-10 policy, Cutout (PaCo, DRO-LT)",
    ),
    "randaugment": Stack((transforms.crop, transforms.flip, randaugment), "crop, flip, RandAugment"),
    "randaugment_noflip": Stack((transforms.crop, randaugment), "the same without flip: for digits and the like"),
    "rrc_flip": Stack((transforms.flip,), "random resized crop (area 0.08..1) and flip: ImageNet", min_area=0.08),
    "square_crop": Stack(
        (),
        "random square (area 0.08..1) and nothing else: LIFT+, with augment.crop_schedule=convex",
        min_area=0.08,
        square=True,
    ),
    "rrc_half_flip": Stack((transforms.flip,), "random resized crop (area 0.5..1) and flip: MSCOCO-GLT", min_area=0.5),
    "rrc_flip_jitter": Stack(
        (transforms.flip, transforms.jitter_no_hue),
        "random resized crop, flip, color jitter: the plain augmentation of codes for ImageNet-LT",
        min_area=0.08,
    ),
    "rrc_rand": Stack(
        (transforms.flip, transforms.jitter_no_hue, transforms.eight_bits, randaugment),
        "random resized crop, flip, color jitter, RandAugment: PaCo's first view on ImageNet-LT ('randcls')",
        min_area=0.08,
    ),
    "rrc_rand_stack": Stack(
        (
            transforms.flip,
            transforms.jitter_no_hue,
            transforms.gray,
            transforms.blur,
            transforms.eight_bits,
            randaugment,
        ),
        "the same with gray and blur before RandAugment ('randclsstack')",
        min_area=0.08,
    ),
    "rrc_sim": Stack(
        (transforms.flip, transforms.jitter_no_hue, transforms.gray, transforms.blur),
        "random resized crop (area 0.08..1), flip, color jitter, gray, blur: PaCo's second view on ImageNet-LT",
        min_area=0.08,
    ),
    "sim": Stack(
        (transforms.flip, transforms.jitter, transforms.gray, transforms.blur),
        "random resized crop (area 0.2..1), flip, color jitter, gray, blur: the second view of PaCo",
        min_area=0.2,
    ),
    "sim_noflip": Stack(
        (transforms.jitter, transforms.gray, transforms.blur),
        "sim without flip, area 0.5..1: for digits and other images whose orientation matters",
        min_area=0.5,
    ),
}


def stacks(cfg: AugmentConfig, num_views: int) -> dict[str, Stack]:
    """Maps the first ``num_views`` views to their stacks. Raises ConfigError where a name is unknown."""
    names = {"view1": cfg.view1, "view2": cfg.view2}
    found = {view: pick(AUGMENTS, names[view], f"augment.{view}") for view in list(names)[:num_views]}
    return found | {"view1": _with_randaugment(found["view1"], cfg.view1)} if cfg.randaugment else found


def _with_randaugment(stack: Stack, name: str) -> Stack:
    if randaugment in stack.stages:
        raise ConfigError(
            f"augment.randaugment=true: augment.view1={name} has RandAugment already. Leave one of them out."
        )
    return replace(stack, stages=(*stack.stages, transforms.eight_bits, randaugment))


def reader_crops(cfg: AugmentConfig, num_views: int, image_size: int) -> tuple[Crop, ...]:
    """Returns what a reader cuts out of the originals, view by view.

    It is () where the reader delivers canvases, which are cropped here.
    """
    used = stacks(cfg, num_views)
    original = cfg.crop_from == "original" or (cfg.crop_from == "auto" and image_size > LARGE_PX)
    if not original or all(stack.min_area is None for stack in used.values()):
        return ()
    return tuple(Crop(view, stack.min_area, stack.square, cfg.crop_schedule) for view, stack in used.items())


def _checked(name: str, stage: Stage) -> Stage:
    """Returns a stage of a plugin that is refused where it gives something else than images, or writes to those it gets.

    Both views, and every epoch where canvases are kept, begin with the same tensor.
    """

    def checked(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:
        version = images._version
        found = stage(images, draw, cfg)
        if images._version != version:
            raise PluginError(
                f"augmentation {name!r} changes the images that it gets, which others need too: let it work on a copy "
                "(images.clone())."
            )
        dtype, shape = getattr(found, "dtype", type(found).__name__), tuple(getattr(found, "shape", ()))
        if shape != tuple(images.shape) or dtype not in (torch.uint8, torch.float32) or found.device != images.device:
            raise PluginError(
                f"augmentation {name!r} gives {dtype} {list(shape)} for images {list(images.shape)}, expected uint8, or float32 "
                "in [0, 1], of the same shape on the same device."
            )
        return found

    return checked


def _add(part: Part) -> None:
    within("(0, 1]", min_area=part.extra["min_area"])

    def stage(images: Tensor, draw: Draw, cfg: AugmentConfig) -> Tensor:
        found: Tensor = configured(part.build, cfg.options, part.name)(images, draw, cfg)
        return found

    stages = (_checked(part.name, stage),)
    add_row(AUGMENTS, part.kind, part.name, Stack(stages, part.summary, paper=part.paper, **part.extra))
    grow_if_it_has_options(AugmentOptions, part)


attach("augmentation", _add)
