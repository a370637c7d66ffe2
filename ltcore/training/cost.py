"""A run's memory, bytes read and floating-point operations, counted without training."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ltcore.config.schema import RunConfig
from ltcore.data.augment.policies import reader_crops
from ltcore.data.config import OFF, ON, STREAMS
from ltcore.data.loading.canvas_cache import canvas_bytes
from ltcore.data.loading.class_sampling import CLASS_AWARE, NATURAL, SAMPLINGS
from ltcore.data.loading.resident import resident_bytes, resident_splits
from ltcore.data.shards.manifest import Manifest, read_manifest
from ltcore.models.tune import FULL, HEAD, PARTIAL, count
from ltcore.objective.memory.base import Memory
from ltcore.objective.objective import Objective
from ltcore.text import byte_size, counted
from ltcore.training.build import build_modules, num_views
from ltcore.training.key_encoder import key_decay

COPIES = {"sgd": 3, "adamw": 4}
"""Numbers kept per trained parameter: itself, its gradient, and the state of the optimizer."""


def cost(cfg: RunConfig, manifest: Manifest, images: int) -> list[str]:
    """Returns lines of text about the cost of a run that sees ``images`` training images.

    Evaluation and losses are not included.
    """
    split = manifest.split(cfg.data.train_split)
    image_size = cfg.data.image_size or manifest.image_size
    views = num_views(cfg)
    net, objective = build_modules(cfg, len(manifest.classes), manifest.stats(cfg.data.train_split), split.num_samples)
    forward = forward_flops(net, image_size)
    has_key, forwards = "key" in objective.needs, _forwards(cfg, objective)
    total = images * forward * forwards
    _, parameters = count(net)
    tuned = f" model.tune={cfg.model.tune} {_share(net)}." if cfg.model.tune != FULL else ""
    memories = sum(memory_bytes(memory) for memory in objective.memories().values())
    cropped = ", cropped from the originals while reading" if reader_crops(cfg.augment, views, image_size) else ""
    steps_per_epoch = split.num_samples // cfg.train.batch_size
    encoder = (
        f" The key encoder keeps {key_decay(cfg, steps_per_epoch):.4g} of its weights per step." if has_key else ""
    )
    shards, decoded = sum(shard.bytes for shard in split.shards), canvas_bytes(split.num_samples, image_size)
    return [
        f"{cfg.model.name} at {image_size} px: {parameters / 1e6:.1f} million parameters, {forward / 1e9:.2f} GFLOP forward; "
        f"{counted(forwards, 'forward')} per image with its training make {total:.2g} FLOP.{tuned}{encoder}",
        f"Each worker holds {byte_size(held_bytes(cfg, net, objective) - memories)} of weights, gradients and optimizer and "
        f"{byte_size(memories)} of memories of the objective, besides activations for {cfg.train.batch_size} images over all "
        "workers.",
        f"The training shards are {byte_size(shards)}, read once per epoch; decoded images take {byte_size(decoded)} "
        f"(data.loader={cfg.data.loader}){_residence(cfg, manifest)}. {counted(views, 'view')} of each image{cropped}.",
    ]


def training_flops(cfg: RunConfig, manifest: Manifest) -> int:
    """Returns the floating-point operations of training on one image, without losses."""
    split = cfg.data.train_split
    net, objective = build_modules(cfg, len(manifest.classes), manifest.stats(split), manifest.split(split).num_samples)
    return forward_flops(net, cfg.data.image_size or manifest.image_size) * _forwards(cfg, objective)


def _forwards(cfg: RunConfig, objective: Objective) -> int:
    """Returns what training on one image costs, in forwards.

    It is three (the backward is two, see ``_passes``), one more where there is a key encoder, and as many again where a second
    network, view or stream is trained.
    """
    networks, twice = 1 + ("twin" in objective.needs), "second" in objective.needs or objective.base.pairs
    return _passes(cfg.model.tune) * (networks + twice) + ("key" in objective.needs)


def _residence(cfg: RunConfig, manifest: Manifest) -> str:
    """Says what the canvases take on each worker's device; '' where they never stay there."""
    data, image_size = cfg.data, cfg.data.image_size or manifest.image_size
    splits, size = " and ".join(resident_splits(data, manifest)), byte_size(resident_bytes(data, manifest))
    if data.resident == OFF or data.loader in STREAMS or reader_crops(cfg.augment, num_views(cfg), image_size):
        return ""
    if data.resident == ON:
        return f"; those of {splits}, {size}, stay on the device of each worker (data.resident=on)"
    return f"; {splits}, {size}, stay on a worker's GPU if a quarter of its free memory holds them (data.resident=auto)"


def held_bytes(cfg: RunConfig, net: nn.Module, objective: Objective) -> int:
    """Returns the bytes of weights, gradients, optimizer and memories of the objective, which a worker holds all the time."""
    trained, parameters = count(net)
    networks = 1 + ("twin" in objective.needs)
    copies = networks + ("key" in objective.needs) + (cfg.train.ema_decay > 0)
    numbers = parameters * copies + trained * networks * (COPIES[cfg.train.optim.optimizer] - 1)
    return 4 * numbers + sum(memory_bytes(memory) for memory in objective.memories().values())


def _share(net: nn.Module) -> str:
    trained, parameters = count(net)
    return f"trains {trained:,} of {parameters:,} parameters ({100 * trained / parameters:.2g}%)"


def _passes(tune: str) -> int:
    """Returns what a training step costs, in forwards: the backward computes gradients of activations and of weights.

    Where weights are frozen the latter are left out, and under a frozen backbone both. Only part of the blocks may be trained;
    that counts as all of them.
    """
    if tune == HEAD:
        return 1
    return 3 if tune == FULL or tune.startswith(PARTIAL) else 2


def trained_note(cfg: RunConfig, manifest: Manifest) -> str:
    """Says how many parameters of its network a run trains; '' where it is all, and of stage 2, which trains classifiers."""
    if cfg.stage2 is not None or cfg.model.tune == FULL:
        return ""
    split = cfg.data.train_split
    num_train = manifest.split(split).num_samples
    net, _ = build_modules(cfg, len(manifest.classes), manifest.stats(split), num_train)
    return f"{cfg.model.name} with model.tune={cfg.model.tune} {_share(net)}"


def forward_flops(net: nn.Module, image_size: int) -> int:
    """Returns the floating-point operations of one forward on one image; a multiply-add counts as two."""
    was_training = net.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, image_size, image_size))
    net.train(was_training)
    return int(counter.get_total_flops())


def memory_bytes(memory: Memory) -> int:
    """Returns the size of all tensors of a memory that a checkpoint contains."""
    tensors = [*memory.published().values(), *memory.pending().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _what(cfg: RunConfig) -> str:
    if cfg.stage2 is None:
        return counted(cfg.train.epochs, "epoch")
    return f"stage 2 ({cfg.stage2.method}) of {cfg.stage2.from_run}"


def _num_images(cfg: RunConfig, manifest: Manifest) -> int:
    """Returns how many training images the run sees, counting repetitions."""
    steps = manifest.split(cfg.data.train_split).num_samples // cfg.train.batch_size
    return steps * cfg.train.batch_size * cfg.train.epochs


def dry_run_text(cfg: RunConfig, data_uri: str) -> str:
    """Describes what a run would read, hold and compute, without starting it. Its time is measured elsewhere."""
    manifest = read_manifest(data_uri)
    num_train = manifest.split(cfg.data.train_split).num_samples
    if cfg.stage2 is not None:
        return (
            f"{manifest.name}: {_what(cfg)}, {counted(cfg.epochs, 'round')} on the features of {num_train} training images, "
            "which are computed once."
        )
    images, steps = _num_images(cfg, manifest), num_train // cfg.train.batch_size
    ifl = cfg.objective.active_terms().get("ifl")
    budget = ""
    if SAMPLINGS[cfg.train.sampling].plan is not None:
        budget = f" train.sampling={cfg.train.sampling}, of a plugin, says which of them come, and how often."
    elif cfg.train.sampling != NATURAL:
        budget = (
            f" train.sampling={cfg.train.sampling} repeats images of small classes and leaves out some of large ones."
        )
    if cfg.train.sampling == CLASS_AWARE:
        per_class = cfg.train.images_per_class
        budget += f" A batch has {cfg.train.batch_size // per_class} times {per_class} images of one class."
    if ifl is not None:
        repeats = ifl.env_mode == "repeat" and ifl.num_envs > 1
        how = "repeat some of these images and leave out others" if repeats else "weight these images and repeat none"
        budget = f" Environments (objective.terms.ifl.num_envs={ifl.num_envs}) {how}: runs with 1 to 4 of them see equally many."
    return (
        f"{manifest.name}: {num_train} training images, {counted(len(manifest.classes), 'class')}; {counted(steps, 'step')} "
        f"per epoch of {cfg.train.batch_size}, {counted(cfg.train.epochs, 'epoch')}, {images:,} images in all.{budget}\n"
        + "\n".join(cost(cfg, manifest, images))
    )
