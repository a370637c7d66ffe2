"""Published weights of a backbone: which file they are, and whether it is at hand. Nothing here uses the network."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import torch

from ltcore.models.registry import MODELS

AUTO, DEFAULT = "auto", "default"
"""Values of ``model.weights`` that name no file: the published weights if they are at hand, and these or nothing."""
WEIGHT_FILES = (".pth", ".pt")


def published_file(model: str) -> Path | None:
    """Returns where torch keeps the published weights of a backbone once they are downloaded.

    None for a backbone without any.
    """
    url = MODELS[model].weights
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name if url else None


def at_hand(model: str) -> bool:
    """Tells whether the published weights of a backbone lie on this machine."""
    file = published_file(model)
    return file is not None and file.is_file()


def download_command(model: str) -> str:
    """Returns the command that fetches the published weights, for a person to run where there is a network."""
    return (
        f"""python -c "import torch; torch.hub.load_state_dict_from_url('{MODELS[model].weights}', check_hash=True)\""""
    )
