"""What a run needs and does, by arithmetic: memory, bytes read, floating-point operations. Nothing is trained for it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ltcore.config.schema import RunConfig
from ltcore.data.augment.policies import reader_crops
from ltcore.data.loading.canvas_cache import canvas_bytes
from ltcore.data.shards.manifest import Manifest
from ltcore.objective.memory.base import Memory
from ltcore.training.build import build_modules, num_views

RATE = 1e14
"""Operations per second by which hours are told: what a large GPU sustains in bf16 on these networks."""
COPIES = {"sgd": 3, "adamw": 4}
"""Numbers kept for each parameter: itself, its gradient, and what the optimizer remembers."""


def cost(cfg: RunConfig, manifest: Manifest, images: int) -> list[str]:
    """Lines for a person about a run that sees ``images`` training images.

    A training step counts three forwards (the backward is two), one more where there is a key encoder;
    evaluation and losses are left out.
    """
    split = manifest.split(cfg.data.train_split)
    canvas = cfg.data.canvas or manifest.canvas
    views = num_views(cfg)
    net, objective = build_modules(cfg, len(manifest.classes), manifest.stats(cfg.data.train_split), split.num_samples)
    forward = forward_flops(net, canvas)
    has_key = "key" in objective.needs
    forwards = 3 + has_key
    total = images * forward * forwards
    parameters = sum(p.numel() for p in net.parameters())
    copies = COPIES[cfg.train.optim.optimizer] + has_key + (cfg.train.ema_decay > 0)
    memories = sum(memory_bytes(memory) for memory in objective.memories().values())
    cropped = ", cut out of the originals as they are read" if reader_crops(cfg.augment, views, canvas) else ""
    shards, decoded = sum(shard.bytes for shard in split.shards), canvas_bytes(split.num_samples, canvas)
    return [
        f"{cfg.model.name} at {canvas} px: {parameters / 1e6:.1f} million parameters, {forward / 1e9:.2f} GFLOP forward; "
        f"{forwards} forwards per image with its training make {total:.2g} FLOP, {_hours(total)} at 100 TFLOP/s.",
        f"Each worker holds {_gib(4 * parameters * copies)} of weights, gradients and optimizer and {_gib(memories)} of "
        f"memories of the objective, besides activations for {cfg.train.batch_size} images over all workers.",
        f"The training shards are {_gib(shards)}, read once per epoch; decoded to canvases {_gib(decoded)} "
        f"(data.tier={cfg.data.tier}). {views} view{'s' * (views > 1)} of each image{cropped}.",
    ]


def forward_flops(net: nn.Module, canvas: int) -> int:
    """Floating-point operations of one forward on one image; a multiply-add counts two."""
    was_training = net.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, canvas, canvas))
    net.train(was_training)
    return int(counter.get_total_flops())


def memory_bytes(memory: Memory) -> int:
    """Of everything that a checkpoint would hold of it."""
    tensors = [*memory.published().values(), *memory.pending().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def _hours(flops: float) -> str:
    hours = flops / RATE / 3600
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.2g} minutes"
