"""Published weights of a backbone: which file they are, and whether it is at hand. Nothing here downloads anything."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import torch

from ltcore.models import timm_weights
from ltcore.models.registry import MODELS
from ltcore.models.timm_names import FILES, is_timm

AUTO, DEFAULT = "auto", "default"
"""Values of ``model.weights`` that name no file: the published weights if they are at hand, and these or nothing."""
WEIGHT_FILES = FILES
IMAGENET_PX = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images that published weights were trained on."""


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
