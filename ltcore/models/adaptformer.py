"""AdaptFormer: a narrow trained network beside the MLP of every transformer block.

    MLP(x) + s up(relu(down(x)))

x is what the MLP reads: the tokens after the block's own layer norm. ``up`` begins at zero, so that at the beginning a
network computes what it computed without adapters. The scale s is trained. Because of the ReLU it cannot be merged into
other layers; an exported network contains it.

Source: AdaptFormer, Chen et al., NeurIPS 2022, arXiv:2205.13535, and LIFT, Shi et al., ICML 2024, arXiv:2309.10019, for the
trained scale, which begins at 1 there, and for the width of the bottleneck.
Differs: the original's scale is constant, 0.1. LIFT's adapter reads the tokens before the block's layer norm, through one of
its own. In blocks whose MLP is followed by a layer scale or a norm, that acts on the adapter too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

ADAPTER = "adapter"
"""Name of the adapter in the MLP that it stands beside."""


class Adapter(nn.Module):
    """``s up(relu(down(x)))``, [..., width] -> [..., width]."""

    def __init__(self, width: int, bottleneck: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.scale = nn.Parameter(torch.full((1,), scale))

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns what is added to the output of the MLP."""
        update: Tensor = self.up(F.relu(self.down(tokens)))
        return update * self.scale


def auto_bottleneck(num_classes: int, blocks: int) -> int:
    """Returns LIFT's width: the largest power of two up to C / (2 blocks), at least 1.

    With one adapter per block, the adapters then have about as many parameters as the classifier.
    """
    return int(2 ** max(0, math.floor(math.log2(num_classes / (2 * blocks)))))


def transformer_mlps(net: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Yields name, module and width of the MLP of every transformer block: what stands as ``mlp`` beside an ``attn``.

    MLPs made of convolutions are left out.
    """
    for name, block in net.named_modules():
        mlp = getattr(block, "mlp", None)
        if isinstance(mlp, nn.Module) and isinstance(getattr(block, "attn", None), nn.Module):
            layers = [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)]
            if layers:
                yield f"{name}.mlp".removeprefix("."), mlp, layers[0].in_features


def add_adapter_(mlp: nn.Module, width: int, bottleneck: int, scale: float) -> None:
    """Puts an adapter beside an MLP, in place, as a submodule of it."""
    mlp.add_module(ADAPTER, Adapter(width, bottleneck, scale))
    # a hook, so that the MLP keeps its place and its parameters their names, under which published weights are found
    mlp.register_forward_hook(_add_update)


def _add_update(mlp: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    adapter: Adapter = mlp.adapter
    return output + adapter(args[0])
