"""LoRA: a frozen linear layer or convolution plus a trained update of low rank.

    W' = W + (alpha / rank) B A,    A: [rank, inputs],  B: [outputs, rank]

B begins at zero, so that at the beginning a network computes bit for bit what it computed without the update. The layer
keeps its place, its name and the name of its weight; A and B are ``lora_down`` and ``lora_up`` beside it. So published
weights fit a network with updates, and initial values, which are keyed by names, stay as they are.

Source: LoRA, Hu et al., ICLR 2022, arXiv:2106.09685.
The package peft is not used: it needs transformers, and wraps networks, which changes the names of their weights.
Differs: A begins normal with variance 1 / (3 inputs), that of the authors' code, whose draws are uniform.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

LORA = ("lora_down", "lora_up")
"""Last parts of the names of a layer's trained parameters."""


class Lora:
    """Mixed into the class of a layer: its ``weight`` is the sum, whoever reads it; that of its state dict is the frozen one."""

    lora_down: nn.Parameter
    lora_up: nn.Parameter
    lora_scale: float
    plain_class: type[nn.Module]

    @property
    def weight(self) -> Tensor:
        """Returns frozen weight plus update."""
        return self.frozen_weight + self.update()

    @property
    def frozen_weight(self) -> Tensor:
        """Returns the weight without the update."""
        weight: Tensor = vars(self)["_parameters"]["weight"]
        return weight

    def update(self) -> Tensor:
        """Returns (alpha / rank) B A in the shape of the weight."""
        flat = self.lora_scale * (self.lora_up @ self.lora_down.flatten(1))
        return flat.view_as(self.frozen_weight)


class LoraLinear(Lora, nn.Linear):  # type: ignore[override]  # the sum is read, never set
    """A linear layer that applies A and B one after the other, which needs no gradient of the size of W."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps [..., inputs] to [..., outputs]."""
        update = F.linear(F.linear(input, self.lora_down), self.lora_up)
        return F.linear(input, self.frozen_weight, self.bias) + self.lora_scale * update


class LoraConv2d(Lora, nn.Conv2d):  # type: ignore[override]
    """A convolution to ``rank`` channels followed by one of 1x1, beside the frozen one; with groups, one with the sum."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, inputs, h, w] to [B, outputs, h', w']."""
        if self.groups > 1:
            return self._conv_forward(input, self.weight, self.bias)
        narrow = self._conv_forward(input, self.lora_down, None)
        update = F.conv2d(narrow, self.lora_up[:, :, None, None])
        return self._conv_forward(input, self.frozen_weight, self.bias) + self.lora_scale * update


@functools.cache
def _with_update(plain: type[nn.Module]) -> type[nn.Module]:
    known: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LoraLinear, nn.Conv2d: LoraConv2d}
    # a class with a forward of its own, such as a convolution that pads: it reads ``weight``, which is the sum
    return known.get(plain) or type(f"Lora{plain.__name__}", (Lora, plain), {})


def add_lora_(layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
    """Gives a layer an update of that rank, in place, whose parameters are zero; the weight is frozen."""
    weight = layer.weight.requires_grad_(False)
    of_weight: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    down = nn.Parameter(torch.zeros(rank, *weight.shape[1:], **of_weight))
    up = nn.Parameter(torch.zeros(weight.shape[0], rank, **of_weight))
    changed: Any = layer
    changed.lora_scale, changed.plain_class = alpha / rank, type(layer)
    layer.register_parameter(LORA[0], down)
    layer.register_parameter(LORA[1], up)
    plain: Any = type(layer)
    changed.__class__ = _with_update(plain)


def lora_layers(net: nn.Module) -> Iterator[tuple[str, Lora]]:
    """Yields the layers with an update, by name."""
    for name, module in net.named_modules():
        if isinstance(module, Lora):
            yield name, module


@torch.no_grad()
def merge_(net: nn.Module) -> nn.Module:
    """Adds every update to its weight, in place, and returns the network, whose layers are plain again."""
    for _, layer in list(lora_layers(net)):
        changed: Any = layer
        layer.frozen_weight.add_(layer.update())
        for name in LORA:
            del changed._parameters[name]
        plain = layer.plain_class
        del changed.lora_scale, changed.plain_class
        changed.__class__ = plain
    return net


def merged(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict that ``net``, of which ``state`` is one, would have after ``merge_``."""
    found = dict(state)
    for name, layer in lora_layers(net):
        begin = f"{name}." if name else ""
        down, up = (found.pop(f"{begin}{part}") for part in LORA)
        weight = found[f"{begin}weight"]
        found[f"{begin}weight"] = weight + (layer.lora_scale * (up @ down.flatten(1))).view_as(weight)
    return found
