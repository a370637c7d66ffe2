"""RunConfig + data -> the parts of one run, on their device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from ltcore import dist
from ltcore.config.schema import RunConfig
from ltcore.data.augment.augment import Augment
from ltcore.data.loading.loader import Loader
from ltcore.models.ema import EmaCopy
from ltcore.models.net import LongTailNet
from ltcore.objective.dims import FeatureDims
from ltcore.objective.objective import Objective
from ltcore.objective.registry import BASES, TERMS
from ltcore.training.context import RunContext
from ltcore.training.hardware import Precision, choose_precision
from ltcore.training.step import TrainStep


@dataclass
class Components:
    """Everything that a step touches. ``step`` is the bare module, ``wrapped`` the one to call (DDP where there are ranks)."""

    step: TrainStep
    wrapped: nn.Module
    augment: Augment
    average: EmaCopy | None
    """Moving average of the weights, for evaluation."""
    precision: Precision

    @property
    def eval_net(self) -> LongTailNet:
        """What is evaluated and saved: the averaged network where there is one."""
        return self.average.net if self.average else self.step.net


def build(cfg: RunConfig, loader: Loader, ctx: RunContext) -> Components:
    """Builds on the CPU (so that initial values do not depend on the device), then moves."""
    manifest = loader.store.manifest
    stats = manifest.stats(cfg.data.train_split)
    num_train = manifest.split(cfg.data.train_split).num_samples
    net, objective = build_modules(cfg, len(manifest.classes), stats, num_train)
    views = num_views(cfg)
    precision = choose_precision(cfg.train.precision, ctx.device)
    net.heads.requires_grad_(cfg.train.freeze != "classifier")
    net = net.to(device=ctx.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    key = EmaCopy(net, cfg.model.key_decay, buffers="own") if "key" in objective.needs else None
    average = EmaCopy(net, cfg.train.ema_decay, buffers="copy") if cfg.train.ema_decay else None
    step = TrainStep(net, objective.to_device(ctx.device), key, precision.autocast)
    step.train()
    augment = Augment(cfg.augment, seed=cfg.seed, mean=manifest.mean, std=manifest.std, num_views=views)
    return Components(step, parallel(step, ctx.device), augment, average, precision)


def num_views(cfg: RunConfig) -> int:
    """Of each image in training: 2 where a loss looks at a second one, else 1."""
    base, terms = cfg.objective.base, cfg.objective.active_terms()
    views = [BASES[base].build.views(getattr(cfg.objective.base_options, base))]
    return max(views + [TERMS[name].build.views(term) for name, term in terms.items()])


def parallel(step: TrainStep, device: torch.device) -> nn.Module:
    """``step`` itself, or wrapped so that gradients are averaged over ranks.

    Buffers are not synchronized: running statistics are averaged exactly at the end of an epoch, and memories are none.
    """
    if not dist.is_distributed():
        return step
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the flag's successor exists only in newer versions of torch
        return nn.parallel.DistributedDataParallel(step, device_ids=ids, broadcast_buffers=False)


def build_modules(cfg: RunConfig, num_classes: int, stats: object, num_train: int) -> tuple[LongTailNet, Objective]:
    """Network and objective. The objective needs the network's sizes, the network what the objective asks for."""
    probe = LongTailNet(cfg.model, num_classes, frozenset(), cfg.seed)
    dims = FeatureDims(probe.feature_dim, cfg.model.projection_dim, num_train, probe.stage_dims)
    objective = Objective(cfg.objective, stats, dims, cfg.seed)  # type: ignore[arg-type]
    needs = objective.needs - {"key"}
    return (LongTailNet(cfg.model, num_classes, needs, cfg.seed) if needs else probe), objective
