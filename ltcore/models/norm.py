"""Batch normalization over fixed groups, so that statistics do not depend on how a batch is split over ranks.

With ``group`` samples per statistic, one process with batch 128 and two ranks with 64 each normalize by the same
numbers. The running statistics of one process equal the mean of those of the ranks, because their update is linear and
the groups are equally large; ``average_running_stats_`` takes that mean.

Source: ghost batch normalization, Hoffer et al. 2017, arXiv:1705.08741.
Differs: the running update is the mean over groups of one linear step from the same starting point, not a chain of
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm

from ltcore import dist

NormFactory = Callable[[int], nn.Module]
"""``norm(num_channels)``, a normalization of [B, C, h, w]."""

FROZEN_STATS = "frozen_stats"
"""Attribute of a batch norm that stays in evaluation mode, because none of its parameters is trained."""

_MOMENTUM = 0.1  # torch's default, used by all published long-tail codes


class _GhostBatchNorm(_BatchNorm):
    """Common part of the 1d and 2d forms; in training, every ``group`` consecutive samples are normalized on their own."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int, group: int) -> None:
        super().__init__(num_features, momentum=_MOMENTUM)
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        if len(input) % self.group:
            raise ValueError(
                f"a batch of {len(input)} samples on this rank cannot be cut into groups of model.ghost_batch="
                f"{self.group}: choose a divisor of the batch size per rank."
            )
        parts = input.split(self.group)
        mean_GC = self.running_mean.repeat(len(parts), 1)
        var_GC = self.running_var.repeat(len(parts), 1)
        normed = [
            F.batch_norm(part, mean_GC[g], var_GC[g], self.weight, self.bias, True, self.momentum, self.eps)
            for g, part in enumerate(parts)
        ]
        with torch.no_grad():
            self.running_mean.copy_(mean_GC.mean(0))
            self.running_var.copy_(var_GC.mean(0))
            self.num_batches_tracked += 1
        return torch.cat(normed)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group}"


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """Batch norm of [B, C, h, w] with statistics per channel over ``group`` samples and all positions.

    B must be a multiple of ``group``. In evaluation mode it is ``nn.BatchNorm2d``. Raises ValueError on a training
    batch that ``group`` does not divide.
    """


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """Batch norm of [B, C] with statistics per channel over ``group`` samples; otherwise as ``GhostBatchNorm2d``."""


def norm2d(group: int | None) -> NormFactory:
    """Returns a builder of ``nn.BatchNorm2d`` for None, of ``GhostBatchNorm2d`` for a group size."""
    return nn.BatchNorm2d if group is None else partial(GhostBatchNorm2d, group=group)


def norm1d(group: int | None) -> NormFactory:
    """Returns a builder of ``nn.BatchNorm1d`` for None, of ``GhostBatchNorm1d`` for a group size."""
    return nn.BatchNorm1d if group is None else partial(GhostBatchNorm1d, group=group)


def has_ghost_norm(net: nn.Module) -> bool:
    """Tells whether ``model.ghost_batch`` acts on any part of the network."""
    return any(isinstance(module, _GhostBatchNorm) for module in net.modules())


def running_stats(net: nn.Module) -> list[Tensor]:
    """Returns every buffer named ``running_mean`` or ``running_var`` in a fixed order, the tensors themselves.

    These are the statistics of batch norms, and the mean feature of a TDE classifier. ``num_batches_tracked`` is left out
    because it is equal on all ranks, and so are frozen statistics, which a mean over ranks would change in the last digit.
    """
    frozen = {id(stat) for module in net.modules() if is_frozen(module) for stat in module.buffers(recurse=False)}
    return [
        stat
        for name, stat in net.named_buffers()
        if name.endswith(("running_mean", "running_var")) and id(stat) not in frozen
    ]


def is_frozen(module: nn.Module) -> bool:
    """Tells whether it is a batch norm whose running statistics never move."""
    return bool(getattr(module, FROZEN_STATS, False))


def flatten(stats: list[Tensor]) -> Tensor:
    """Concatenates the tensors into one vector."""
    return torch.cat([stat.flatten() for stat in stats])


@torch.no_grad()
def assign_(stats: list[Tensor], flat: Tensor) -> None:
    """Writes the vector of ``flatten`` back into the tensors."""
    for stat, values in zip(stats, flat.split([stat.numel() for stat in stats]), strict=True):
        stat.copy_(values.view_as(stat))


@torch.no_grad()
def average_running_stats_(net: nn.Module) -> None:
    """Replaces the running statistics by their mean over ranks; one collective."""
    stats = running_stats(net)
    if stats and dist.is_distributed():
        assign_(stats, dist.all_reduce_sum_(flatten(stats)) / dist.world())
