"""What is added beside layers that are no larger than it: an update that is not of low rank, a bottleneck that is none.

Both would train more numbers than the layer has and restrict nothing. It is still a network, and one of an older run may be
so; hence it is built, but told before a run begins, and refused where all that is added is so.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ltcore.models.adaptformer import Adapter, transformer_mlps
from ltcore.models.lora import lora_layers
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.models.tune import Tuned

SHOWN = 3
"""Layers that a sentence names."""


@dataclass(frozen=True)
class Excess:
    """The layers of a network that are too small for what stands beside them."""

    text: str
    """One sentence that names key, value and layers, without a full stop."""
    everywhere: bool
    """Whether it is so for all layers beside which something stands."""


@functools.lru_cache(
    maxsize=2
)  # the data's and, before there are any, of two classes: a large network takes seconds to draw
def excess_of(model: ModelConfig, num_classes: int) -> Excess | None:
    """Returns what is too large in the network of a configuration; None where nothing is.

    Raises what building that network raises, such as ConfigError where nothing of it can be trained.
    """
    return excess(LongTailNet(model, num_classes, frozenset(), seed=0).backbone, model)


def excess(backbone: nn.Module, cfg: Tuned) -> Excess | None:
    """Returns what is too large in a backbone that was tuned as ``cfg`` says; None where nothing is."""
    if cfg.tune == "lora":
        layers, value = list(_updated(backbone)), cfg.lora.rank
        what = f"model.lora.rank={value} is not below the smaller dimension"
    elif cfg.tune == "adaptformer":
        layers, value = list(_adapted(backbone)), _bottleneck(backbone)
        what = f"model.adaptformer.bottleneck={cfg.adaptformer.bottleneck or f'null, here {value},'} is above the width"
    else:
        return None
    small = [layer for layer in layers if value > layer.most]
    if not small:
        return None
    shown = "; ".join([f"{layer.name}: {layer.sizes}" for layer in small[:SHOWN]] + ["..."] * (len(small) > SHOWN))
    number = f"all {len(layers)}" if len(small) == len(layers) else f"{len(small)} of {len(layers)}"
    return Excess(
        f"{what} of {number} layers ({shown}), beside which it trains more than they have; "
        f"{min(layer.most for layer in layers)} is the most that suits all of them",
        everywhere=len(small) == len(layers),
    )


@dataclass(frozen=True)
class _Layer:
    name: str
    sizes: str
    most: int
    """The largest rank or bottleneck that is smaller than the layer."""


def _updated(backbone: nn.Module) -> Iterator[_Layer]:
    for name, layer in lora_layers(backbone):
        outputs, inputs = len(layer.frozen_weight), layer.frozen_weight[0].numel()
        # a layer of one output or input has no lower rank than 1
        yield _Layer(name, f"{outputs} outputs, {inputs} inputs", max(min(outputs, inputs) - 1, 1))


def _adapted(backbone: nn.Module) -> Iterator[_Layer]:
    for name, _, width in transformer_mlps(backbone):
        yield _Layer(name, f"width {width}", width)


def _bottleneck(backbone: nn.Module) -> int:
    return next(module.down.out_features for module in backbone.modules() if isinstance(module, Adapter))
