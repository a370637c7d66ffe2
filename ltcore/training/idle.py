"""Options of parts that a run does not use, of which its person hears before it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ltcore.config.schema import RunConfig
from ltcore.data.augment import transforms
from ltcore.data.augment.auto_augment import autoaugment, randaugment
from ltcore.data.augment.policies import stacks
from ltcore.data.loading.class_sampling import CLASS_AWARE
from ltcore.plugins.loading import known_parts
from ltcore.training.build import num_views

_RANDAUGMENT = tuple(f"randaugment_{name}" for name in ("ops", "magnitude", "variant", "std", "probability"))
_MOVES = (transforms.rotate15, autoaugment, randaugment)
"""Transforms that bring in something from outside."""


def idle_options(cfg: RunConfig) -> Iterator[str]:
    """Yields a sentence about each group of options that were changed and have no effect: which, why, and what would."""
    for tune in ("lora", "adaptformer"):
        if cfg.model.tune != tune:
            why = f"with model.tune={cfg.model.tune}; model.tune={tune} trains so"
            yield from _said(f"model.{tune}.", getattr(cfg.model, tune), None, why)
    yield from _of_augmentation(cfg)
    if cfg.train.patience is None:
        yield from _said("train.", cfg.train, ("min_delta",), "without train.patience, which stops a training early")
    if cfg.train.sampling != CLASS_AWARE:
        why = f"with train.sampling={cfg.train.sampling}; train.sampling={CLASS_AWARE} fills batches so"
        yield from _said("train.", cfg.train, ("images_per_class",), why)


def _of_augmentation(cfg: RunConfig) -> Iterator[str]:
    augment = cfg.augment
    if not augment.mixes:
        yield from _said(
            "augment.", augment, ("mix_probability",), "without augment.mixup_alpha or augment.cutmix_alpha"
        )
    if not (augment.mixup_alpha and augment.cutmix_alpha):
        why = "unless both augment.mixup_alpha and augment.cutmix_alpha are above 0"
        yield from _said("augment.", augment, ("cutmix_probability",), why)
    if augment.remix_kappa is None:
        yield from _said("augment.", augment, ("remix_tau",), "without augment.remix_kappa")
    used = stacks(augment, num_views(cfg))
    names = [getattr(augment, view) for view in used]
    if any(("augmentation", name) in known_parts() for name in names):
        return  # what a plugin's reads is its own affair
    stages = {stage for stack in used.values() for stage in stack.stages}
    words = " and ".join(f"augment.{view}={name}" for view, name in zip(used, names, strict=True))
    if randaugment not in stages:
        yield from _said("augment.", augment, _RANDAUGMENT, f"with {words}; augment.randaugment=true adds RandAugment")
    if transforms.cutout not in stages:
        yield from _said("augment.", augment, ("cutout_fraction",), f"with {words}: nothing is erased")
    if all(stack.min_area is None for stack in used.values()):
        why = f"with {words}: there is no random resized crop"
        yield from _said("augment.", augment, ("crop_from", "crop_schedule"), why)
    elif cfg.train.epochs == 1:
        yield from _said("augment.", augment, ("crop_schedule",), "in a training of one epoch")
    if not stages.intersection(_MOVES):
        yield from _said("augment.", augment, ("fill",), f"with {words}: nothing comes in but zeros of a padded crop")


def _said(prefix: str, section: Any, names: tuple[str, ...] | None, why: str) -> Iterator[str]:
    """Yields one sentence about those of the options, None for all, that are not at their defaults."""
    fields = (field for field in dataclasses.fields(section) if names is None or field.name in names)
    changed = [
        f"{prefix}{field.name}={value}" for field in fields if (value := getattr(section, field.name)) != field.default
    ]
    if changed:
        yield f"{', '.join(changed)}: no effect {why}"
