"""Optimizers and learning-rate schedules.

A schedule is a function of the epoch and of fractions of training, so a recipe keeps its meaning when only the number
of epochs changes. The rate is constant within an epoch, as in the published CIFAR long-tail codes, except in a warm-up
that is too short to rise by epochs.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ltcore.config.schema import OptimConfig


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


def build_optimizer(cfg: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Builds SGD or AdamW over the trainable parameters.

    Unless ``decay_norm_and_bias`` is set, norm parameters and biases form a group without weight decay.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    plain = [p for _, p in named if cfg.decay_norm_and_bias or p.ndim > 1]
    bare = [p for _, p in named if not (cfg.decay_norm_and_bias or p.ndim > 1)]
    groups = [{"params": plain, "weight_decay": cfg.weight_decay}]
    if bare:
        groups.append({"params": bare, "weight_decay": 0.0})
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.momentum, 0.999))
    return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
