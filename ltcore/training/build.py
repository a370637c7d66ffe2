"""Construction of the components of a run from RunConfig and data, on their device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ltcore import dist
from ltcore.config.schema import RunConfig
from ltcore.data.augment.augment import Augment
from ltcore.data.loading.loader import Loader
from ltcore.errors import ConfigError
from ltcore.models.ema import EmaCopy
from ltcore.models.net import LongTailNet
from ltcore.models.norm import has_ghost_norm
from ltcore.models.recompute import recompute_
from ltcore.objective.dims import FeatureDims
from ltcore.objective.objective import Objective
from ltcore.objective.registry import BASES, TERMS
from ltcore.training.compiled import compiled
from ltcore.training.context import RunContext
from ltcore.training.hardware import Precision, choose_precision, compute_float32_exactly
from ltcore.training.key_encoder import key_decay
from ltcore.training.step import TrainStep


@dataclass
class Components:
    """The parts of a training step. ``step`` is the bare module, ``wrapped`` the one to call (compiled, and
    DDP with several ranks)."""

    step: TrainStep
    wrapped: nn.Module
    augment: Augment
    average: EmaCopy | None
    """Moving average of the weights, for evaluation."""
    precision: Precision

    @property
    def eval_net(self) -> LongTailNet:
        """Returns the network that is evaluated and saved: the averaged one where it exists."""
        return self.average.net if self.average else self.step.net


def build(cfg: RunConfig, loader: Loader, ctx: RunContext) -> Components:
    """Builds the components on the CPU, then moves them to the device.

    Initial values then do not depend on the device.
    """
    manifest = loader.store.manifest
    stats = manifest.stats(cfg.data.train_split)
    num_train = manifest.split(cfg.data.train_split).num_samples
    net, objective = build_modules(cfg, len(manifest.classes), stats, num_train)
    views = num_views(cfg)
    precision = choose_precision(cfg.train.precision, ctx.device)
    compute_float32_exactly(ctx.device)
    net.heads.requires_grad_(cfg.train.freeze != "classifier")
    net = net.to(device=ctx.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    twin = build_twin(cfg, len(manifest.classes), objective)
    if twin is not None:
        twin = twin.to(device=ctx.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.train.grad_checkpointing:
        for trained in (net, twin):
            if trained is not None:
                recompute_(trained.backbone, cfg.model.name)
    decay = key_decay(cfg, loader.num_batches)
    key = EmaCopy(net, decay, buffers="own") if "key" in objective.needs else None
    average = EmaCopy(net, cfg.train.ema_decay, buffers="copy") if cfg.train.ema_decay else None
    step = TrainStep(net, objective.to_device(ctx.device), key, precision.autocast, twin)
    step.train()
    augment = Augment(
        cfg.augment,
        seed=cfg.seed,
        mean=loader.prep.mean,
        std=loader.prep.std,
        num_views=views,
        counts_C=stats.counts_C,
        epochs=cfg.train.epochs,
    )
    wrapped = parallel(compiled(step, cfg.train.compile, ctx.device), ctx.device)
    return Components(step, wrapped, augment, average, precision)


def num_views(cfg: RunConfig) -> int:
    """Returns the views of each training image: 2 where a loss needs a second one, else 1."""
    base, terms = cfg.objective.base, cfg.objective.active_terms()
    views = [BASES[base].build.views(getattr(cfg.objective.base_options, base))]
    return max(views + [TERMS[name].build.views(term) for name, term in terms.items()])


def stream_options(cfg: RunConfig) -> dict[str, Any]:
    """Returns the arguments of a loader that say what of each image, and which images beside it, a step needs."""
    return {
        "augment": cfg.augment,
        "num_views": num_views(cfg),
        "paired": BASES[cfg.objective.base].build.pairs,
        "epochs": cfg.train.epochs,
    }


def parallel(step: nn.Module, device: torch.device) -> nn.Module:
    """Returns ``step`` itself, or wrapped such that gradients are averaged over ranks.

    Buffers are not synchronized: running statistics are averaged exactly at the end of an epoch, and memories are not
    buffers.
    """
    if not dist.is_distributed():
        return step
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the flag's replacement exists only in newer torch versions
        return nn.parallel.DistributedDataParallel(step, device_ids=ids, broadcast_buffers=False)


def build_twin(cfg: RunConfig, num_classes: int, objective: Objective) -> LongTailNet | None:
    """Builds the second network with initial values of its own; None where no loss needs one."""
    if "twin" not in objective.needs:
        return None
    return LongTailNet(cfg.model, num_classes, frozenset(), cfg.seed, scope="twin.")


def build_modules(cfg: RunConfig, num_classes: int, stats: object, num_train: int) -> tuple[LongTailNet, Objective]:
    """Builds network and objective, each of which depends on the other.

    The objective needs the network's sizes, and the network the outputs that the objective requires.
    """
    probe = LongTailNet(cfg.model, num_classes, frozenset(), cfg.seed)
    dims = FeatureDims(probe.feature_dim, cfg.model.projection_dim, num_train, probe.stage_dims, probe.fmap_dim)
    objective = Objective(cfg.objective, stats, dims, cfg.seed)  # type: ignore[arg-type]
    needs = objective.needs - {"key", "twin", "second"}
    net = LongTailNet(cfg.model, num_classes, needs, cfg.seed) if needs else probe
    if cfg.model.ghost_batch is not None and not has_ghost_norm(net):
        raise ConfigError(
            f"model.ghost_batch={cfg.model.ghost_batch} has no effect on {cfg.model.name}, which has no batch norm. Set it to "
            "null."
        )
    return net, objective
