"""Does a run start from what it started from? Hashes of the weights that its configuration leads to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltcore.config.schema import RunConfig
from ltcore.errors import CheckpointError, DataError
from ltcore.limits import MAX_MANIFEST_BYTES
from ltcore.models import timm_weights
from ltcore.models.clip_text import TEXT, text_clip
from ltcore.models.net import ModelConfig
from ltcore.models.timm_names import is_tag, is_timm
from ltcore.models.weights import AUTO, DEFAULT, WEIGHT_FILES, published_file
from ltcore.storage import read_bytes
from ltcore.training import checkpoint as ckpt
from ltcore.training.fetch import fetched_checkpoint
from ltcore.training.weights_file import NAMES_SETTING, NAMES_SHA256, SHA256, TEXT_SHA256, sha256, whole_file

FINGERPRINT = "fingerprint"
"""Name of a checkpoint's hash beside ``checkpoint`` in what a run notes of its start."""


def origin_of(found: ckpt.Checkpoint) -> dict[str, Any]:
    """Returns what distinguishes a checkpoint from another of the same name.

    Its record contains the metrics that its weights reached, so a hash of the record is enough.
    """
    record = read_bytes(str(found.path / "meta.json"), MAX_MANIFEST_BYTES)
    return {
        "checkpoint": found.path.name,
        "epoch": found.meta["epoch"],
        "step": found.meta["step"],
        FINGERPRINT: hashlib.sha256(record).hexdigest()[:16],
    }


def settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns for each hash that a run notes of its start the setting that leads to the file, from its flat configuration.

    Two runs with the same words mean the same file.
    """
    weights, text = config.get("model.weights"), config.get("model.text.weights")
    of_network = f"model.weights={weights}{_unless_file(weights, config.get('model.name'))}"
    of_text = f"model.text.weights={text}{_unless_file(text, config.get('model.text.name') or of_network)}"
    return {
        SHA256: of_network,
        TEXT_SHA256: of_text if text else f"the text encoder of {of_network}",
        NAMES_SHA256: f"{NAMES_SETTING}={config.get(NAMES_SETTING)}",
        FINGERPRINT: f"train.init_from={config.get('train.init_from')}",
    }


def _unless_file(weights: Any, network: str | None) -> str:
    """Returns the words for whose weights these are; '' where they are a file, which needs none."""
    return "" if str(weights).endswith(WEIGHT_FILES) else f" of {network}"


def hashes_at_hand(cfg: RunConfig) -> dict[str, str]:
    """Returns the hashes that a run notes of its start, of those files that are at hand now.

    No published one is downloaded; of one in a store a copy is made where this node has none of it as it is now.
    """
    model = cfg.model
    found = {SHA256: _sha256_at_hand(model), FINGERPRINT: _fingerprint_at_hand(cfg.train.init_from)}
    if model.head_init == TEXT:
        found[TEXT_SHA256] = _text_at_hand(model)
        found[NAMES_SHA256] = None if model.text.names is None else _sha256_of(model.text.names)
    return {key: value for key, value in found.items() if value is not None}


def refuse_other_weights(where: Path | str, started_from: Mapping[str, Any] | None, cfg: RunConfig) -> None:
    """Raises CheckpointError where ``cfg`` leads to other weights than the run at ``where`` started from.

    They are those of ``model.weights`` and ``train.init_from``, the text encoder's, and the words of the classes. A file that
    is gone is no other one: what a run continues with is in its checkpoint.
    """
    before, words = started_from or {}, settings(cfg.to_flat())
    for key, now in hashes_at_hand(cfg).items() if before else ():
        if before.get(key, now) != now:
            what = "class names" if key == NAMES_SHA256 else "weights"
            raise CheckpointError(
                f"{where} started from {what} with hash {before[key][:12]}, now {words[key]} leads to {now[:12]}. "
                "Restore it, or use another --name, or --fresh."
            )


def _fingerprint_at_hand(uri: str | None) -> str | None:
    """Returns the hash of what ``train.init_from`` leads to; None where no checkpoint can be had by now."""
    if uri is None:
        return None
    try:
        with fetched_checkpoint(uri, weights=False) as path:
            fingerprint: str = origin_of(ckpt.read(path, uri))[FINGERPRINT]
    except (CheckpointError, DataError):
        return None
    return fingerprint


def _sha256_at_hand(model: ModelConfig) -> str | None:
    """Returns the hash of what ``model.weights`` leads to; None where there is none by now. Nothing published is downloaded."""
    if model.weights is None:
        return None
    if is_timm(model.name) and is_tag(model.weights):
        found = timm_weights.published(model.name, model.weights)
        return None if found is None else _sha256_if_there(found.at_hand())
    if model.weights in (AUTO, DEFAULT):
        return _sha256_if_there(published_file(model.name))
    return _sha256_of(model.weights)


def _text_at_hand(model: ModelConfig) -> str | None:
    """Returns the hash of the text encoder in the same way."""
    clip = text_clip(model.name, model.weights, model.text)
    return _sha256_of(clip.weights) if clip.published is None else _sha256_if_there(clip.published.at_hand())


def _sha256_if_there(path: Path | None) -> str | None:
    return sha256(path) if path is not None and path.is_file() else None


def _sha256_of(uri: str) -> str | None:
    try:
        return whole_file(uri)[1]
    except CheckpointError:
        return None
