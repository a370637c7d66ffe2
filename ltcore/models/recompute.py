"""Activations that are computed again in the backward pass instead of being kept (Chen et al. 2016, arXiv:1604.06174).

The second forward sees the batch of the first one, so it gives the same activations, but batch norms would also count the
batch twice in their running statistics: ``kept_running_stats`` prevents that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ltcore.errors import ConfigError
from ltcore.models.backbones import Backbone
from ltcore.models.depth import outermost


def recompute_(backbone: nn.Module, name: str) -> None:
    """Makes a backbone keep the inputs of its blocks alone.

    Raises ConfigError, with the network's ``name``, where it cannot.
    """
    nets = [net for _, net in outermost(backbone, "set_grad_checkpointing")]
    try:
        for net in nets:
            net.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, NotImplementedError):  # timm's ways to say that a network cannot
        nets = []
    else:
        if not nets and isinstance(backbone, Backbone) and type(backbone).with_stages is Backbone.with_stages:
            backbone.recompute = True
            return
    if not nets:
        raise ConfigError(
            f"train.grad_checkpointing=true does not go with model.name={name}, which cannot compute its activations again. "
            "Set train.grad_checkpointing=false and, if memory is short, raise train.accumulate."
        )


@contextmanager
def kept_running_stats(net: nn.Module) -> Iterator[None]:
    """Gives batch norms copies of their buffers to write to, and afterwards the buffers as they were.

    For a backward pass that computes activations again.
    """
    kept = [
        (module, name, buffer)
        for module in net.modules()
        if module._buffers.get("running_mean") is not None
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for module, name, buffer in kept:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer
