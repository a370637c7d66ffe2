"""What training steps take of a GPU that they have alone: memory, and the time in which its kernels run.

Real steps of the real network on real images, optimizer and memories included, on batches that are read beforehand: what
waits for the disk keeps no GPU busy, and would not go faster with more runs on the node. Left out is what comes once per
epoch (k-means, environments), apart from evaluation, so the head-room in ``runtime.gpu_share`` is for that too.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ltcore.batch import Batch
from ltcore.config.gpu_share import Occupancy
from ltcore.config.schema import RunConfig
from ltcore.data.loading.factory import make_loader
from ltcore.data.loading.loader import Loader
from ltcore.data.shards.manifest import Manifest
from ltcore.models.recompute import recompute_
from ltcore.training.build import Components, build, build_modules, num_views, stream_options
from ltcore.training.context import LocalContext
from ltcore.training.cost import held_bytes
from ltcore.training.descent import Descent, build_descent, take_step
from ltcore.training.evaluate import Evaluator
from ltcore.training.hardware import CONTEXT_BYTES

WARM_UP_STEPS = 10
"""Steps before the measured ones: the first ones allocate, choose algorithms and compile."""
STEPS = 20
KEPT_BATCHES = 4
SIZELESS = ("name", "seed", "train.optim.lr", "train.optim.weight_decay", "train.optim.momentum", "train.epochs")
"""Keys in which runs often differ, and which take no memory: such runs are looked at once."""
LATE = 0.99
"""Progress of training at which every term acts."""


def heaviest(runs: Sequence[RunConfig], manifest: Manifest) -> RunConfig:
    """Returns the run that needs most memory, by ``footprint``; of equal ones the first."""
    sizes: dict[str, int] = {}
    largest, most = runs[0], 0
    for cfg in runs:
        key = str({name: value for name, value in cfg.to_flat().items() if name not in SIZELESS})
        if key not in sizes:
            sizes[key] = footprint(cfg, manifest)
        if sizes[key] > most:
            largest, most = cfg, sizes[key]
    return largest


def described(cfg: RunConfig, recipe: RunConfig) -> str:
    """Says in which keys a run differs from the run of its recipe."""
    theirs = recipe.to_flat()
    changes = [f"{key}={value}" for key, value in cfg.to_flat().items() if theirs.get(key, cfg) != value]
    more = f" and {len(changes) - 3} more keys" if len(changes) > 3 else ""
    return f"the recipe with {', '.join(changes[:3])}{more}" if changes else "the recipe"


def footprint(cfg: RunConfig, manifest: Manifest) -> int:
    """Estimates the bytes that a run keeps on its device: weights, optimizer, memories, and what a backward pass needs.

    The last is counted in a forward on one image on the CPU, in float32. It ranks runs and says nothing of a device.
    """
    split = cfg.data.train_split
    net, objective = build_modules(cfg, len(manifest.classes), manifest.stats(split), manifest.split(split).num_samples)
    if cfg.train.grad_checkpointing:
        recompute_(net.backbone, cfg.model.name)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    size = cfg.data.image_size or manifest.image_size
    images = torch.zeros(1, 3, size, size)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        net.eval()(images)  # as in training, where a batch norm refuses to normalize one image
    own = {value.untyped_storage().data_ptr() for value in (*net.parameters(), *net.buffers())}
    per_image = sum(nbytes for place, nbytes in kept.items() if place not in own)
    forwards = 1 + ("twin" in objective.needs) + ("second" in objective.needs or objective.base.pairs)
    images_per_pass = cfg.train.batch_size // cfg.train.accumulate
    inputs = num_views(cfg) * images[0].numel() * images.element_size()
    return held_bytes(cfg, net, objective) + images_per_pass * (forwards * per_image + inputs)


def occupancy(cfg: RunConfig, data_uri: str, *, name: str, cpus: float, gpus: float) -> Occupancy:
    """Measures steps of a run, called ``name``, on this process's GPU, which nobody else uses meanwhile.

    ``cpus`` and ``gpus`` are those of the node. Memory is the most that torch's allocator reserved, and beside it what CUDA
    takes for the process, which is measured and at least ``CONTEXT_BYTES``.
    """
    ctx = LocalContext()
    device = ctx.device
    torch.cuda.reset_peak_memory_stats(device)
    per_pass = {"batch_size": cfg.train.batch_size, "seed": cfg.seed, **stream_options(cfg)}
    with contextlib.closing(make_loader(cfg.data, data_uri, device=device, **per_pass)) as loader:
        parts = build(cfg, loader, ctx)
        descent = build_descent(cfg.train, parts, device)
        batches = list(itertools.islice(loader.train_batches(0), KEPT_BATCHES))
        run_steps(cfg, parts, descent, batches, WARM_UP_STEPS, device)
        parts.step.objective.merge(LATE)
        run_steps(cfg, parts, descent, batches, 2, device)
        step_s = run_steps(cfg, parts, descent, batches, STEPS, device) / STEPS
        kernels_s = _kernel_seconds(cfg, parts, descent, batches, device) / STEPS
        _evaluate(cfg, parts, loader, device)
        free, total = torch.cuda.mem_get_info(device)
        outside = max(CONTEXT_BYTES, total - free - torch.cuda.memory_reserved(device))
        return Occupancy(
            device=torch.cuda.get_device_name(device),
            run=name,
            peak_bytes=torch.cuda.max_memory_reserved(device) + outside,
            device_bytes=total,
            busy=min(1.0, kernels_s / step_s) if kernels_s > 0 else None,
            cpus=cpus,
            gpus=gpus,
        )


def run_steps(
    cfg: RunConfig, parts: Components, descent: Descent, batches: Sequence[Batch], steps: int, device: torch.device
) -> float:
    """Trains on the batches in turn. Returns the seconds that it took."""
    started = _now(device)
    for raw in itertools.islice(itertools.cycle(batches), steps):
        batch = parts.augment(raw.to(device), 0, raw)
        take_step(parts, descent, batch, LATE, cfg.train.accumulate)
    return _now(device) - started


def _kernel_seconds(
    cfg: RunConfig, parts: Components, descent: Descent, batches: Sequence[Batch], device: torch.device
) -> float:
    """Returns the time in which at least one kernel or copy ran in ``STEPS`` steps, from CUPTI's records.

    CUDA events around a step would not tell: between them also count the gaps in which the GPU waits for the next launch,
    and these are what other runs can use. Recording slows launches down but not kernels, so the time of a step is taken
    elsewhere. 0 where nothing was recorded, as where CUPTI is not allowed or missing.
    """
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        run_steps(cfg, parts, descent, batches, STEPS, device)
    spans = (
        (event.time_range.start, event.time_range.end)
        for event in recorded.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    )
    return covered(spans) / 1e6


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _evaluate(cfg: RunConfig, parts: Components, loader: Loader, device: torch.device) -> None:
    """Runs the network on one batch of validation, which may be larger than one of training."""
    split = "val" if "val" in loader.store.manifest.splits else cfg.data.train_split
    evaluator = Evaluator(
        net=parts.eval_net,
        loader=loader,
        device=device,
        batch_size=cfg.train.eval_batch_size,
        normalize=parts.augment.evaluate,
        autocast=parts.precision.autocast,
    )
    next(evaluator.outputs(split), None)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
