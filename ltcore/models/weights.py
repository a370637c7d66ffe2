"""Published weights of a backbone: which file they are, and whether it is at hand. Nothing here uses the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch

from ltcore.models.registry import MODELS

AUTO, DEFAULT = "auto", "default"
"""Values of ``model.weights`` that name no file: the published weights if they are at hand, and these or nothing."""
WEIGHT_FILES = (".pth", ".pt")


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
    return IMAGENET if MODELS[name].weights else None


def published_file(model: str) -> Path | None:
    """Returns where torch keeps the published weights of a backbone once they are downloaded.

    None for a backbone without any.
    """
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
    name = MODELS[model].weights
    return f"""python -c "from torchvision.models import get_weight; get_weight('{name}').get_state_dict(check_hash=True)\""""
