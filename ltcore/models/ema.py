"""Exponential moving average of a network, as a key encoder or for evaluation."""

from __future__ import annotations

import copy
from typing import Generic, Literal, TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


class EmaCopy(Generic[Net]):
    """A copy that follows the trained network: p <- decay * p + (1 - decay) * p_trained, without gradient.

    Args:
        net: the trained network, copied in its present state.
        decay: in [0, 1]; 0 copies, 1 never moves.
        buffers: 'copy' takes over the trained network's buffers at each update and keeps the copy in evaluation mode (EMA
            evaluation); 'own' leaves them alone and keeps the copy in training mode, so that a key encoder's batch norms
            use and collect the statistics of the key encoder's own forward (MoCo, PaCo).
    """

    def __init__(self, net: Net, decay: float, buffers: Literal["copy", "own"] = "own") -> None:
        self.net: Net = copy.deepcopy(net).requires_grad_(False)
        self.net.train(buffers == "own")
        self.decay = decay
        self._copy_buffers = buffers == "copy"

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Moves one step towards ``net``.

        For a key encoder, call it before the key forward of the step.
        """
        torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - self.decay)
        if self._copy_buffers:
            for mine, theirs in zip(self.net.buffers(), net.buffers(), strict=True):
                mine.copy_(theirs)
