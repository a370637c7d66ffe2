"""Rows of a classifier from CLIP's text features of the class names (``model.head_init=text``).

    w_c = P^T t_c / |P^T t_c|,    t_c = E_text(prompt of class c) / |.|

t_c [d] is the text feature, P [d, D] CLIP's projection of image features z [D] into the space that they share with text. The
classifier stands on z, so P^T takes the text there: z . P^T t_c = P z . t_c is CLIP's zero-shot score of the class but for
the lengths, and a cosine classifier begins close to it.

Source: LIFT, Shi et al., ICML 2024, arXiv:2309.10019, and its code ('init_head: text_feat', init_head_text_feat in
trainer.py: ``text_features @ image_encoder.proj.t()``, then normalized; prompt "a photo of a {}.", underscores as spaces).
P is the classifier in the file of ``model.weights``: timm keeps CLIP's projection there.
Differs: computed in float32, and the product with P in float64.
Cost: one pass of the text encoder per class (6 GFLOP of ViT-B/16's), once, on the device of rank 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ltcore.errors import CheckpointError, ConfigError
from ltcore.models.clip_text import TEXT, image_projection, open_clip, text_clip, text_features
from ltcore.models.net import ModelConfig
from ltcore.models.timm_weights import classifier_weight
from ltcore.training.class_words import class_words
from ltcore.training.init_from import weights_file
from ltcore.training.weights_file import TEXT_SHA256, TEXT_WEIGHTS, node_file, tensors, whole_file

SAME = 0.01
"""Largest distance of two projections of the same CLIP, relative to their length: one file may hold halves of the other."""


def text_rows(
    model: ModelConfig, classes: Sequence[str], dim: int, device: torch.device
) -> tuple[Tensor, dict[str, str]]:
    """Returns float64 unit rows [C, D] for the classes in their order, and where text encoder and words came from.

    Raises ConfigError or CheckpointError where text encoder, projection and network do not belong together.
    """
    clip = text_clip(model.name, model.weights, model.text)
    uri = clip.file()
    file, digest = whole_file(uri, "model.text.weights")
    theirs = _read(file, f"model.text.weights={clip.weights}")
    projection_dD = _projection(model, theirs)
    words, names = class_words(model.text.names, classes)
    text_Cd = text_features(clip, theirs, prompts(model.text.prompt, words), device)
    if projection_dD.shape != (text_Cd.shape[1], dim):
        raise ConfigError(
            f"model.text.name={clip.name} gives text features of length {text_Cd.shape[1]}, and model.name={model.name} image "
            f"features of length {dim}, but the projection in model.weights={model.weights} is of {tuple(projection_dD.shape)}. "
            "Set model.text.name and model.text.weights to the CLIP of which the network is the image encoder."
        )
    rows_CD = F.normalize(text_Cd.double() @ projection_dD.double(), dim=1)
    return rows_CD, {TEXT_WEIGHTS: uri, TEXT_SHA256: digest, "open_clip": open_clip().__version__, **names}


def prompts(prompt: str, words: Sequence[str]) -> list[str]:
    """Returns what is said of each class: the prompt with its words, whose underscores become spaces."""
    return [prompt.replace("{}", each.replace("_", " ")) for each in words]


def _read(file: Path, setting: str) -> dict[str, Any]:
    try:
        found = tensors(file)
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}")
    except Exception as error:  # torch raises any type on foreign bytes
        words = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{setting} is not a file of tensors ({type(error).__name__}: {words}). Use another file."
        ) from error
    return found


def _projection(model: ModelConfig, text_file: dict[str, Any]) -> Tensor:
    """Returns the image encoder's projection [d, D] from the file of ``model.weights``.

    Raises CheckpointError where it has none, or where that of the text encoder's file is another one.
    """
    uri = str(weights_file(model))
    theirs = _read(node_file(uri), f"model.weights={uri}")
    found = classifier_weight(model.name, model.weights, theirs)
    if found is None:
        found = image_projection(theirs)
    if not isinstance(found, Tensor) or found.ndim != 2 or not found.isfinite().all():
        raise CheckpointError(
            f"model.weights={uri} holds no projection of CLIP, which model.head_init={TEXT} needs. Use the weights of an image "
            "encoder of CLIP that were not tuned, or set model.head_init=class_means."
        )
    other = image_projection(text_file)
    if other is not None and (other.shape != found.shape or _distance(other, found) > SAME):
        raise CheckpointError(
            f"model.text.weights is of another CLIP than model.weights={uri}: their projections of images are different, so "
            f"that text and images share no space. Set both to weights of one CLIP."
        )
    return found


def _distance(one: Tensor, other: Tensor) -> float:
    one, other = one.double(), other.double()
    return float((one - other).norm() / other.norm())
