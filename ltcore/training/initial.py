"""The weights that a run starts from, where these are another run's (``train.init_from``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ltcore import dist
from ltcore.config.load import flat
from ltcore.config.schema import RunConfig
from ltcore.errors import CheckpointError
from ltcore.training import checkpoint as ckpt
from ltcore.training.build import Parts
from ltcore.training.predict import local_copy

_SAME = ("model.name", "model.head", "model.cosine_scale", "model.num_experts", "model.expert_width")
"""What makes a network with the same tensors compute the same function."""


def start_from(cfg: RunConfig, parts: Parts, classes: tuple[str, ...]) -> dict[str, Any]:
    """Loads the weights of ``train.init_from`` into the network and its moving averages. A collective: rank 0 reads.

    Returns the checkpoint's place, epoch and step, for the run's record. Raises CheckpointError where it is of another
    network or of other classes. A projection starts by the run's seed unless the checkpoint has one of the same sizes.
    """
    uri = cfg.train.init_from
    assert uri is not None
    found = dist.broadcast_object(_read(uri, flat(cfg), classes) if dist.rank() == 0 else None)
    weights, origin = found
    net = parts.step.net
    own, theirs = _projection(net.state_dict()), _projection(weights)
    fits = {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in theirs.items()}
    rest = {name: value for name, value in weights.items() if name not in theirs}
    net.load_state_dict(rest | (theirs if fits else own))
    for copy in (parts.step.key, parts.average):
        if copy is not None:
            copy.net.load_state_dict(net.state_dict())
    return origin


def _projection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("projection.")}


def _read(uri: str, config: dict[str, Any], classes: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    found = ckpt.read(local_copy(uri))
    theirs = found.meta.get("config")
    if not isinstance(theirs, dict) or not isinstance(found.meta.get("classes"), list):
        raise CheckpointError(f"{found.path}/meta.json has no network or no classes in it. Use another checkpoint.")
    different = [
        f"{key}: {theirs.get(key)!r} there, {config[key]!r} now" for key in _SAME if theirs.get(key) != config[key]
    ]
    if different:
        raise CheckpointError(
            f"train.init_from={uri} holds another network ({'; '.join(different)}). Set these keys alike, or start from "
            "another checkpoint."
        )
    if tuple(found.meta["classes"]) != classes:
        raise CheckpointError(
            f"train.init_from={uri} knows {len(found.meta['classes'])} classes "
            f"({', '.join(map(str, found.meta['classes'][:3]))}, ...), the data have {len(classes)} "
            f"({', '.join(classes[:3])}, ...): they must be the same, in the same order."
        )
    origin = {"checkpoint": str(found.path), "epoch": found.meta["epoch"], "step": found.meta["step"]}
    return found.model_state(), origin
