"""AdaptFormer: a narrow trained network beside the MLP of every transformer block.

    MLP(x) + s up(relu(down(x)))

x is what the MLP reads, the tokens after the block's frozen layer norm; or the tokens before that, through a trained layer
norm of the adapter (``model.adaptformer.norm``). ``up`` begins at zero, so that at the beginning a network computes what it
computed without adapters. The scale s is trained. Because of the ReLU it cannot be merged into other layers; an exported
network contains it.

Source: AdaptFormer, Chen et al., NeurIPS 2022, arXiv:2205.13535, and LIFT, Shi et al., ICML 2024, arXiv:2309.10019, for the
trained scale, which begins at 1 there, for the width of the bottleneck and for the norm of the adapter's own.
Differs: the original's scale is constant, 0.1. In blocks whose MLP is followed by a layer scale or a norm, that acts on the
adapter too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ltcore.errors import ConfigError

ADAPTER = "adapter"
"""Name of the adapter in the MLP that it stands beside."""
OWN_NEEDS_NORM = (
    "model.adaptformer.norm=own: in this backbone a block has no norm2 that its MLP follows, of whose input the adapter has a "
    "norm of its own. Set it to block."
)


BLOCK = "block"
OWN = "own"
NORMS = (BLOCK, OWN)
"""Whose layer norm the tokens pass that an adapter reads."""


class Adapter(nn.Module):
    """``s up(relu(down(x)))``, [..., width] -> [..., width], of tokens that pass its own layer norm first or none."""

    def __init__(self, width: int, bottleneck: int, scale: float, norm: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm == OWN else None
        self.before_norm: Tensor | None = None
        """What the block's norm read, from then until the MLP has run."""
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.scale = nn.Parameter(torch.full((1,), scale))

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns what is added to the output of the MLP, which reads ``tokens``.

        Raises ConfigError where the adapter has a norm of its own and the MLP does not follow the block's.
        """
        if self.norm is not None:
            if self.before_norm is None:
                raise ConfigError(OWN_NEEDS_NORM)
            tokens, self.before_norm = self.norm(self.before_norm), None
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


def norm_before(net: nn.Module, mlp_name: str) -> nn.Module:
    """Returns the norm of the block in which an MLP stands. Raises ConfigError where there is none of that name."""
    norm = getattr(net.get_submodule(mlp_name.rpartition(".")[0]), "norm2", None)
    if not isinstance(norm, nn.Module):
        raise ConfigError(OWN_NEEDS_NORM)
    return norm


def add_adapter_(mlp: nn.Module, adapter: Adapter, block_norm: nn.Module | None) -> None:
    """Puts an adapter beside an MLP, in place, as a submodule of it.

    ``block_norm``, which an adapter with a norm of its own needs, is what stands before the MLP.
    """
    mlp.add_module(ADAPTER, adapter)
    # hooks, so that the MLP keeps its place and its parameters their names, under which published weights are found
    mlp.register_forward_hook(_add_update)
    if block_norm is not None:
        block_norm.register_forward_pre_hook(functools.partial(_keep, adapter))


def _keep(adapter: Adapter, _norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    adapter.before_norm = args[0]


def _add_update(mlp: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    adapter: Adapter = mlp.adapter
    return output + adapter(args[0])
