"""Optimizers and learning-rate schedules.

A schedule is a function of the epoch and of fractions of training, so a recipe keeps its meaning when only the number
of epochs changes. The rate is constant within an epoch, as in the published CIFAR long-tail codes, except in a warm-up
that is too short to rise by epochs, and where ``schedule_per_step`` puts steps in the place of epochs, as codes of
fine-tuning do.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ltcore.config.optim import OptimConfig
from ltcore.models.depth import attends, depths, undecayed

AUTO_CLIP_NORM = 1.0
"""Of networks with attention, as in the fine-tuning of ViT (Dosovitskiy et al. 2021, arXiv:2010.11929, table 4)."""
ABOVE = sys.maxsize
"""Depth of all that lies above a backbone, and of everything where one rate is for all."""


def lr_factor(cfg: OptimConfig, epoch: int, epochs: int, share_done: float = 1.0) -> float:
    """Returns the factor on the peak rate in 0-based ``epoch`` of ``epochs``.

    Warm-up rises linearly and reaches 1 in its last epoch: (epoch + 1) / warmup_epochs. One that rounds to less than two
    epochs would not rise so; it rises with every step, by ``share_done``, the share of the epoch that is done after the
    step, in (0, 1].
    Afterwards ``multistep`` multiplies by gamma at every passed milestone, ``cosine`` falls as
    (1 + cos(pi * epoch / epochs)) / 2, ``cosine_after_warmup`` as (1 + cos(pi * (k + 1) / (n + 1))) / 2 in the k-th of the
    n epochs after warm-up, from 0, and ``constant`` stays 1.
    """
    rise = cfg.warmup * epochs
    warmup_epochs = round(rise)
    if warmup_epochs >= 2:
        if epoch < warmup_epochs:
            return (epoch + 1) / warmup_epochs
    elif epoch + share_done < rise:
        return (epoch + share_done) / rise
    fraction = epoch / epochs
    if cfg.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * fraction))
    if cfg.schedule == "cosine_after_warmup":
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs + 1) / (epochs - warmup_epochs + 1)))
    if cfg.schedule == "multistep":
        return cfg.gamma ** sum(fraction >= m - 1e-9 for m in cfg.milestones)
    return 1.0


def step_rate(cfg: OptimConfig, epochs: int, steps: int, epoch: int, step: int) -> float:
    """Returns the peak rate times its factor in 0-based ``step`` of the ``steps`` of 0-based ``epoch``.

    With ``schedule_per_step`` the factor is that of epoch ``epoch * steps + step`` of ``epochs * steps``.
    """
    if cfg.schedule_per_step:
        return cfg.lr * lr_factor(cfg, epoch * steps + step, epochs * steps)
    return cfg.lr * lr_factor(cfg, epoch, epochs, (step + 1) / steps)


def clip_norm(cfg: OptimConfig, module: nn.Module) -> float | None:
    """Returns the largest norm of the gradient of ``module``; None for no limit. 'auto' asks whether a backbone attends."""
    if isinstance(cfg.clip_norm, str):
        return AUTO_CLIP_NORM if any(attends(backbone) for _, backbone in _backbones(module)) else None
    return cfg.clip_norm


def build_optimizer(cfg: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Builds SGD or AdamW over the trainable parameters.

    Parameters of one depth form a group, those of all depths where neither ``layer_decay`` nor ``backbone_lr_factor`` is
    set. Unless ``decay_norm_and_bias`` is set, norm parameters, biases and what the network exempts form groups of their own,
    without weight decay. A group's ``lr_scale`` is its rate relative to that of the classifiers.
    """
    scales, exempt = _scales(cfg, module), _undecayed(cfg, module)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        depth, scale = scales.get(name, (ABOVE, 1.0))
        bare = name in exempt
        rates = {"lr": cfg.lr * scale, "lr_scale": scale, "weight_decay": 0.0 if bare else cfg.weight_decay}
        groups.setdefault((depth, bare), {"params": [], **rates})["params"].append(parameter)
    ordered = [groups[place] for place in sorted(groups)]
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(ordered, lr=cfg.lr, betas=(cfg.momentum, 0.999))
    return torch.optim.SGD(ordered, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of the classifiers; that of every other group in its proportion."""
    for group in optimizer.param_groups:
        rate = lr * group["lr_scale"]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def hold_rates(optimizer: torch.optim.Optimizer) -> None:
    """Makes each group's rate a tensor where its parameters are, so that a compiled update need not know its value."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)


def _backbones(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields the backbone of every network in ``module``, with the prefix of its parameters' names.

    A backbone may have one itself, as a hybrid's stem; that is a part of it.
    """
    if isinstance(backbone := getattr(module, "backbone", None), nn.Module):
        yield "backbone.", backbone
        return
    for name, child in module.named_children():
        for prefix, backbone in _backbones(child):
            yield f"{name}.{prefix}", backbone


def _scales(cfg: OptimConfig, module: nn.Module) -> dict[str, tuple[int, float]]:
    """Returns depth and relative rate by name of the parameters of backbones; {} where all learn at one rate."""
    if cfg.layer_decay is None and cfg.backbone_lr_factor == 1:
        return {}
    found = {}
    for prefix, backbone in _backbones(module):
        of_names, above = depths(backbone) if cfg.layer_decay is not None else ({}, 0)
        for name, _ in backbone.named_parameters():
            depth = of_names.get(name, 0)
            decay = 1.0 if cfg.layer_decay is None else cfg.layer_decay ** (above - depth)
            found[f"{prefix}{name}"] = (depth, cfg.backbone_lr_factor * decay)
    return found


def _undecayed(cfg: OptimConfig, module: nn.Module) -> set[str]:
    """Returns the names of the parameters without weight decay."""
    if cfg.decay_norm_and_bias:
        return set()
    small = {name for name, parameter in module.named_parameters() if parameter.ndim <= 1}
    return small | {f"{prefix}{name}" for prefix, backbone in _backbones(module) for name in undecayed(backbone)}
