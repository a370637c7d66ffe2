"""Published weights of a backbone: which file they are, whether it is at hand, and what images they expect.

Nothing here downloads anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch

from ltcore.errors import ConfigError
from ltcore.framing import INTERPOLATIONS
from ltcore.models import timm_weights
from ltcore.models.registry import MODELS
from ltcore.models.timm_names import FILES, is_timm

AUTO, DEFAULT = "auto", "default"
"""Values of ``model.weights`` that name no file: the published weights if they are at hand, and these or nothing."""
WEIGHT_FILES = FILES


@dataclass(frozen=True, kw_only=True)
class WeightsInput:
    """The images that weights were trained for. The fields are those of the same name in ``data``."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str | None
    crop_fraction: float | None
    crop_mode: str | None


IMAGENET = WeightsInput(
    image_size=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bilinear",
    crop_fraction=224 / 256,
    crop_mode="center",
)
"""Of all weights that torchvision publishes for the backbones here."""


def expected_input(name: str, weights: str | None) -> WeightsInput | None:
    """Returns what the backbone's weights expect images to be; None of drawn weights, and where nobody knows it.

    ``weights`` is ``model.weights`` once it is settled.
    """
    if weights in (None, AUTO):
        return None
    return _of_timm(name, weights) if is_timm(name) else IMAGENET if MODELS[name].weights else None


def _of_timm(name: str, weights: str | None) -> WeightsInput:
    from ltcore.models.timm_backbone import pretrained_config  # it imports timm

    found = pretrained_config(name, weights)
    _, height, width = found["input_size"]
    interpolation = found["interpolation"]
    if height != width or interpolation not in INTERPOLATIONS:
        raise ConfigError(
            f"model.weights={weights}: those of {name} expect images of {height}x{width} px, resized by {interpolation}, but "
            f"images are square here, and resized by {' or '.join(INTERPOLATIONS)}. Choose other weights, or null."
        )
    return WeightsInput(
        image_size=height,
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        interpolation=interpolation,
        crop_fraction=found["crop_pct"] or IMAGENET.crop_fraction,
        crop_mode=found["crop_mode"] or "center",
    )


def published_file(model: str) -> Path | None:
    """Returns the file of the published weights of a backbone, or where it would be.

    None for a backbone without any.
    """
    if is_timm(model):
        found = timm_weights.published(model)
        return None if found is None else found.at_hand() or found.place
    if not (name := MODELS[model].weights):
        return None
    from torchvision.models import get_weight  # it takes a second

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(get_weight(name).url).path).name


def at_hand(model: str) -> bool:
    """Tells whether the published weights of a backbone lie on this machine."""
    file = published_file(model)
    return file is not None and file.is_file()


def download_command(model: str) -> str:
    """Returns the command that fetches the published weights, for a person to run where there is a network."""
    if is_timm(model):
        return timm_weights.download_command(model)
    name = MODELS[model].weights
    return f"""python -c "from torchvision.models import get_weight; get_weight('{name}').get_state_dict(check_hash=True)\""""
