"""What of a backbone is trained: everything, or a small part of it, with or without additional parameters.

Everything that is not the backbone (classifiers, projections) is always trained. A batch norm whose weight is not trained
stays in evaluation mode: it normalizes by the running statistics that came with the weights, and they do not move.
Otherwise a "frozen" backbone would still follow the new data, its checkpoints could not leave the frozen part out, and its
features would depend on who else is in the batch. In a backbone that was drawn at random these statistics are mean 0 and
variance 1. Batch norms with a trained weight ('norm', those in the blocks of 'partial') work as ever; of 'bias', which leaves
every scale of the network as it is, only their biases move.

Sources: BitFit, Ben Zaken et al., ACL 2022, arXiv:2106.10199; LoRA and AdaptFormer: see ``lora`` and ``adaptformer``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ltcore import rng
from ltcore.errors import ConfigError, at_least, one_of, positive
from ltcore.models.adaptformer import (
    ADAPTER,
    BLOCK,
    NORMS,
    OWN,
    Adapter,
    add_adapter_,
    auto_bottleneck,
    norm_before,
    transformer_mlps,
)
from ltcore.models.blocks import blocks_of
from ltcore.models.lora import LORA, add_lora_
from ltcore.models.norm import FROZEN_STATS, is_frozen

FULL = "full"
HEAD = "head"
TUNES = (FULL, HEAD, "bias", "norm", "lora", "adaptformer")
PARTIAL = "partial:"

_BEGINNINGS = {"attention": "attn", "mlp": "mlp"}
_POSITION_MLPS = frozenset({"cpb_mlp", "meta_mlp", "rel_pos"})
"""Parts of attention that compute its bias from relative positions; they read no tokens."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Updates of low rank beside frozen layers. No effect unless ``model.tune`` is 'lora'."""

    rank: int = 8
    """Rank of each update, >= 1. Below the smaller dimension of a layer, or the update trains more than the layer has, which
    is told, and refused where it is so for all layers."""
    alpha: float = 8.0
    """Each update is scaled by alpha / rank, > 0."""
    targets: str = "all"
    """Layers with an update: 'attention' (linear layers of the attention of transformers: qkv, proj), 'mlp' (those of their
    MLPs), both without what computes position biases, or 'all' (every linear layer and convolution of the backbone)."""

    def __post_init__(self) -> None:
        at_least(1, rank=self.rank)
        positive(alpha=self.alpha)
        one_of(("attention", "mlp", "all"), targets=self.targets)


@dataclass(frozen=True, kw_only=True)
class AdaptFormerConfig:
    """Narrow networks beside the MLPs of transformer blocks. No effect unless ``model.tune`` is 'adaptformer'."""

    bottleneck: int | None = None
    """Width of each, >= 1. null: as in LIFT, the largest power of two up to C / (2 blocks) for C classes, at least 1.
    Above the width of every block it is refused."""
    scale: float = 1.0
    """Initial value of the trained factor on what each adds, > 0. LIFT begins at 1; AdaptFormer keeps it at 0.1."""
    norm: str = BLOCK
    """Layer norm that the tokens which each reads have passed: 'block', the block's frozen one before the MLP, or 'own', a
    trained one in its place, as in LIFT's code."""

    def __post_init__(self) -> None:
        at_least(1, bottleneck=self.bottleneck)
        positive(scale=self.scale)
        one_of(NORMS, norm=self.norm)


def check_partial(tune: str) -> None:
    """Raises ValueError for 'partial:' without a number."""
    number = tune.removeprefix(PARTIAL)
    if number != tune and not (number.isascii() and number.isdigit() and int(number) >= 1):
        raise ValueError(f"tune={tune!r}: expected {PARTIAL}K with the number K >= 1 of last blocks")


def is_added(name: str) -> bool:
    """Tells whether a parameter or state-dict entry of this name exists only because of ``model.tune``."""
    parts = name.split(".")
    return parts[-1] in LORA or ADAPTER in parts


class Tuned(Protocol):
    """The keys of ``ModelConfig`` that say what is trained."""

    @property
    def tune(self) -> str:
        """Returns one of ``TUNES``, or 'partial:K'."""

    @property
    def lora(self) -> LoraConfig:
        """Returns the options of 'lora'."""

    @property
    def adaptformer(self) -> AdaptFormerConfig:
        """Returns the options of 'adaptformer'."""


def tune_(backbone: nn.Module, cfg: Tuned, *, num_classes: int, seed: int, scope: str) -> None:
    """Freezes what is not trained, in place, after adding what is trained beside it.

    Initial values of new parameters come from generators keyed by ``seed`` and their names, which begin with ``scope``.
    Raises ConfigError where the backbone has nothing of the kind that should be trained.
    """
    if cfg.tune == FULL:
        return
    if cfg.tune == "lora":
        for layer in _lora_targets(backbone, cfg.lora.targets):
            add_lora_(layer, cfg.lora.rank, cfg.lora.alpha)
    if cfg.tune == "adaptformer":
        _add_adapters_(backbone, cfg.adaptformer, num_classes)
    _init_added_(backbone, cfg.adaptformer.scale, seed, scope)
    trained = _trained(backbone, cfg.tune)
    if cfg.tune != HEAD and not trained:
        raise ConfigError(f"model.tune={cfg.tune} finds nothing to train in this backbone. Set it to another value.")
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in trained)
    for module in backbone.modules():
        if getattr(module, "running_mean", None) is not None:
            weight = getattr(module, "weight", None)
            setattr(module, FROZEN_STATS, weight is None or not weight.requires_grad)
    keep_frozen_(backbone)


def frozen_names(net: nn.Module, backbone: str = "backbone") -> frozenset[str]:
    """Returns the names of the state dict's entries that training leaves as they are: the base of a tuned network.

    They are the parameters of the backbone without gradient and the statistics of frozen batch norms. To be asked of a
    network that is trained, not of a copy of it, whose parameters have no gradient at all.
    """
    part = net.get_submodule(backbone)
    names = [name for name, parameter in part.named_parameters() if not parameter.requires_grad]
    for prefix, module in part.named_modules():
        if is_frozen(module):
            names += [f"{prefix}.{name}".removeprefix(".") for name, _ in module.named_buffers(recurse=False)]
    return frozenset(f"{backbone}.{name}" for name in names)


def keep_frozen_(net: nn.Module) -> None:
    """Puts batch norms with frozen statistics back into evaluation mode."""
    for module in net.modules():
        if is_frozen(module):
            module.eval()


def count(net: nn.Module) -> tuple[int, int]:
    """Returns how many parameters are trained, and how many there are."""
    sizes = [(p.numel(), p.requires_grad) for p in net.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _trained(backbone: nn.Module, tune: str) -> set[str]:
    names = [name for name, _ in backbone.named_parameters()]
    if tune == HEAD:
        return set()
    if tune == "bias":
        return {name for name in names if name.endswith("bias")}
    if tune == "norm":
        return {
            f"{prefix}.{name}".removeprefix(".")
            for prefix, module in backbone.named_modules()
            if "norm" in type(module).__name__.lower()
            for name, _ in module.named_parameters(recurse=False)
        }
    if tune.startswith(PARTIAL):
        return _last_blocks(backbone, int(tune.removeprefix(PARTIAL)))
    return {name for name in names if is_added(name)}


def _last_blocks(backbone: nn.Module, number: int) -> set[str]:
    _, *blocks = blocks_of(backbone)
    if number > len(blocks):
        raise ConfigError(
            f"model.tune={PARTIAL}{number}: this backbone has {len(blocks)} blocks after its stem. Choose at most as many, or "
            f"{FULL}."
        )
    return {name for block in blocks[-number:] for name in block}


def _lora_targets(backbone: nn.Module, targets: str) -> list[nn.Linear | nn.Conv2d]:
    layers = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    if targets != "all":
        layers = {n: layer for n, layer in layers.items() if isinstance(layer, nn.Linear) and _part_of(n) == targets}
    if not layers:
        raise ConfigError(
            f"model.lora.targets={targets}: this backbone has no such layers, which are those of transformers. Set it to all."
        )
    return list(layers.values())


def _part_of(name: str) -> str | None:
    """Returns 'attention' or 'mlp', of which a layer of a transformer is by its name; None for what is of neither.

    The innermost name decides: attention and MLP may lie in one container, and a pooling by attention contains an MLP.
    """
    parts = name.split(".")
    if _POSITION_MLPS.intersection(parts):
        return None
    kinds = (kind for part in reversed(parts) for kind, begin in _BEGINNINGS.items() if part.startswith(begin))
    return next(kinds, None)


def _add_adapters_(backbone: nn.Module, cfg: AdaptFormerConfig, num_classes: int) -> None:
    mlps = list(transformer_mlps(backbone))
    if not mlps:
        raise ConfigError(
            "model.tune=adaptformer: this backbone has no block with both attn and mlp, beside which adapters stand. Set it to "
            "lora, which any network takes."
        )
    bottleneck = cfg.bottleneck or auto_bottleneck(num_classes, len(mlps))
    for name, mlp, width in mlps:
        block_norm = norm_before(backbone, name) if cfg.norm == OWN else None
        add_adapter_(mlp, Adapter(width, bottleneck, cfg.scale, cfg.norm), block_norm)


@torch.no_grad()
def _init_added_(backbone: nn.Module, scale: float, seed: int, scope: str) -> None:
    """Draws what reads the input normal with variance 1 / (3 inputs), as LoRA's and LIFT's codes do; the rest is constant."""
    for name, parameter in backbone.named_parameters():
        if not is_added(name):
            continue
        if name.endswith(("lora_down", f"{ADAPTER}.down.weight")):
            gen = rng.generator(seed, "init", f"{scope}backbone.{name}")
            inputs = math.prod(parameter.shape[1:])
            parameter.copy_(torch.randn(parameter.shape, generator=gen) * math.sqrt(1 / (3 * inputs)))
        elif name.endswith(f"{ADAPTER}.norm.weight"):
            parameter.fill_(1)
        else:
            parameter.fill_(scale if name.endswith(f"{ADAPTER}.scale") else 0)
