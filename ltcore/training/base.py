"""The base of a tuned run: what ``model.tune`` leaves alone, which checkpoints name by a hash instead of containing it.

A checkpoint of such a run holds what was trained: parameters, and buffers that change. Whoever reads it builds the rest
again as the run did, from its configuration, its seed and the file of ``model.weights``, and compares the hash. A run with
``train.init_from`` starts from weights that neither of these gives, and that may be gone later, so its checkpoints are
whole; so are those of stage 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ltcore.config.schema import RunConfig
from ltcore.models.net import LongTailNet
from ltcore.models.tune import FULL
from ltcore.training.build import Components

META = "base"
"""Field of ``meta.json``: the hash of the base that its checkpoint leaves out. Whole checkpoints have no such field."""


def leaves_out(cfg: RunConfig) -> bool:
    """Tells whether checkpoints of a run are without the base."""
    return cfg.model.tune != FULL and cfg.train.init_from is None


def described(cfg: RunConfig, net: LongTailNet) -> dict[str, str]:
    """Returns what ``meta.json`` says of the base that a run's checkpoints leave out; {} where they are whole.

    The base never changes, so that once is enough for a start of the run.
    """
    if not leaves_out(cfg):
        return {}
    state = net.state_dict()
    return {META: tensors_hash({name: state[name] for name in net.frozen})}


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of these tensors, their names, types and sizes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def trained_part(net: LongTailNet, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Returns a state dict of ``net``, whose names begin with ``prefix``, without its base."""
    frozen = {f"{prefix}{name}" for name in net.frozen}
    return {name: value for name, value in state.items() if name not in frozen}


def trained_state(parts: Components, state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the training state without the bases of its networks."""
    net, twin = parts.step.net, parts.step.twin
    step = trained_part(net, state["step"], "net.")
    if twin is not None:
        step = trained_part(twin, step, "twin.")
    copies = {part: state[part] and trained_part(net, state[part]) for part in ("key", "average")}
    return {**state, "step": step, **copies}


def with_base(net: LongTailNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``weights`` with the base that ``net`` has, which they may leave out."""
    own = net.state_dict()
    return {**{name: own[name] for name in net.frozen}, **weights}
