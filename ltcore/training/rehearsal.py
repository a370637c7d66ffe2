"""What a dry run finds out by doing: whether the weights and the disks fit, and how long a step takes here.

A few steps of the real network run on the first images of the real data, for some seconds. They are as real as they are
short: every term acts, the reader reads, nothing is written.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ltcore.batch import Batch
from ltcore.config.schema import RunConfig
from ltcore.data.augment.policies import reader_crops
from ltcore.data.config import OFF
from ltcore.data.loading.canvas_cache import canvas_bytes
from ltcore.data.loading.factory import cache_fits, make_loader
from ltcore.data.loading.loader import Loader
from ltcore.data.loading.resident import is_resident
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import CapacityError
from ltcore.models.clip_text import TEXT
from ltcore.models.net import CLASS_MEANS
from ltcore.storage import cache_root, free_bytes, is_local, local_path
from ltcore.text import byte_size, counted, duration
from ltcore.training import ncm
from ltcore.training.base import leaves_out, trained_part
from ltcore.training.build import Components, build, num_views, stream_options
from ltcore.training.context import LocalContext
from ltcore.training.cost import COPIES, memory_bytes
from ltcore.training.evaluate import check_train_split
from ltcore.training.hardware import describe_hardware, wished_cpus
from ltcore.training.init_from import start_from
from ltcore.training.monitor import timed
from ltcore.training.step import micro_batches
from ltcore.training.text_head import text_rows

WARM_UP_S = 3.0
MEASURE_S = 4.0
MOST_STEPS = 50
LEAST_IMAGES = 8
"""Fewest images of a measured step; more are taken while that takes less than half of ``WARM_UP_S``."""
LATE = 0.99
"""Progress of training at which every term acts."""


@dataclass(frozen=True)
class Speed:
    """What the measured steps say."""

    device: str
    steps: int
    images_per_step: int
    train_per_s: float
    """Training images per second, reading not included."""
    eval_per_s: float
    read_per_s: float
    """Images per second at which the loop got them from the shards while it computed."""


def rehearse(cfg: RunConfig, data_uri: str, root: str) -> list[str]:
    """Checks what a run needs, measures some steps, and returns what was found in a few lines.

    Raises what the run itself would raise where weights, data or room are missing.
    """
    ctx = LocalContext()
    cfg = _measurable(cfg, ctx.device)
    per_pass = cfg.train.batch_size // cfg.train.accumulate
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.train.threads or wished_cpus())
    data = replace(cfg.data, loader="threads", resident=OFF)  # filling the cache would decode all images
    try:
        with contextlib.closing(
            make_loader(data, data_uri, batch_size=per_pass, seed=cfg.seed, **stream_options(cfg))
        ) as loader:
            check_train_split(loader, cfg.data.train_split)
            parts = build(cfg, loader, ctx)
            checked = ["every class has training images"]
            if cfg.train.init_from is not None or cfg.model.weights is not None:
                start_from(cfg, parts, loader.store.manifest.classes)
                checked.append(f"the weights of {cfg.train.init_from or cfg.model.weights} fit the network")
            if cfg.model.head_init == TEXT:
                # one name is enough to see that file and sizes fit; all of them are billions of operations each
                text_rows(cfg.model, loader.store.manifest.classes[:1], parts.step.net.feature_dim, ctx.device)
                checked.append("the text encoder fits the network")
            cached, room = _room(cfg, data_uri, root, loader.store.manifest, parts)
            checked += room + _resident(cfg, loader.store.manifest, ctx.device, cached=cached)
            speed = measure(cfg, parts, loader, ctx.device)
            return [f"Checked: {'; '.join(checked)}.", estimate(cfg, loader.store.manifest, speed, cached=cached)]
    finally:
        torch.set_num_threads(threads)


def _measurable(cfg: RunConfig, device: torch.device) -> RunConfig:
    """Returns the run without what only the machine that trains it must be able to do."""
    cfg = cfg.replace({"train.compile": "off"})
    return cfg.replace({"train.precision": "auto"}) if cfg.train.precision == "fp16" and device.type != "cuda" else cfg


def _room(cfg: RunConfig, data_uri: str, root: str, manifest: Manifest, parts: Components) -> tuple[bool, list[str]]:
    """Returns whether the cache will be used, and sentences about disks. Raises CapacityError where one is too small."""
    said = []
    image_size = cfg.data.image_size or manifest.image_size
    cached = cfg.data.loader == "cache"
    if cfg.data.loader == "auto":
        cached, why = cache_fits(cfg.data, data_uri, cfg.augment, num_views(cfg))
        said.append(f"images are {'decoded once into the cache' if cached else 'decoded in every epoch'}, {why}")
    elif cached and not reader_crops(cfg.augment, num_views(cfg), image_size):
        need, free = (
            sum(canvas_bytes(s.num_samples, image_size) for s in manifest.splits.values()),
            free_bytes(cache_root()),
        )
        _refuse(
            f"data.loader=cache needs {byte_size(need)}",
            need,
            free,
            str(cache_root()),
            "set LTCORE_CACHE or data.loader=threads",
        )
    need = checkpoint_bytes(cfg, parts)
    if is_local(root):
        free = free_bytes(local_path(root))
        _refuse(f"the checkpoints take {byte_size(need)}", need, free, root, "choose another --storage")
        said.append(f"checkpoints take up to {byte_size(need)} of {byte_size(free)} free in {root}")
    else:
        said.append(f"checkpoints take up to {byte_size(need)} in {root}")
    return cached, said


def _resident(cfg: RunConfig, manifest: Manifest, device: torch.device, *, cached: bool) -> list[str]:
    """Says whether decoded images would stay on this machine's device. Raises what opening them there would raise."""
    crops = reader_crops(cfg.augment, num_views(cfg), cfg.data.image_size or manifest.image_size)
    _, why = is_resident(cfg.data, manifest, device, cached=cached, cropped=bool(crops))
    return [why] if why else []


def _refuse(what: str, need: int, free: int, place: str, else_: str) -> None:
    if need > free:
        raise CapacityError(f"{what}, and {place} has {byte_size(free)} free. Free some space, or {else_}.")


def checkpoint_bytes(cfg: RunConfig, parts: Components) -> int:
    """Returns the most that a run's checkpoints take together: the best, the last, and the next while it is written."""
    net = parts.step.net
    whole = net.state_dict()
    kept = trained_part(net, whole) if leaves_out(cfg) else whole
    model = sum(t.numel() * t.element_size() for t in kept.values())
    trained = (COPIES[cfg.train.optim.optimizer] - 1) * (1 + (parts.step.twin is not None))
    copies = trained + (parts.step.key is not None) + (parts.average is not None)
    state = model * copies + sum(memory_bytes(memory) for memory in parts.step.objective.memories().values())
    return 3 * model + 2 * state


def measure(cfg: RunConfig, parts: Components, loader: Loader, device: torch.device) -> Speed:
    """Measures steps after a warm-up, in some seconds also where one step of the whole batch would take longer."""
    batches = timed(itertools.chain.from_iterable(loader.train_batches(epoch) for epoch in itertools.count()))
    objective, count = parts.step.objective, 0
    began = _now(device)
    for pieces in _sizes(cfg):
        for _ in range(2):  # the first of its size also allocates and chooses algorithms
            started = _now(device)
            count = _step(parts, next(batches)[0], pieces, device)
            took = _now(device) - started
        if took > WARM_UP_S / 2 or _now(device) - began > WARM_UP_S:
            break
    objective.merge(LATE)
    steps, waited, started = 0, 0.0, _now(device)
    while steps < MOST_STEPS and (steps == 0 or _now(device) - started < MEASURE_S):
        raw, wait_s = next(batches)
        waited += wait_s
        _step(parts, raw, pieces, device)
        steps += 1
    seconds = _now(device) - started
    _evaluate(parts, raw, pieces, device)
    started = _now(device)
    _evaluate(parts, raw, pieces, device)
    per_pass = cfg.train.batch_size // cfg.train.accumulate
    return Speed(
        device=str(device),
        steps=steps,
        images_per_step=count,
        train_per_s=steps * count / max(seconds - waited, 1e-9),
        eval_per_s=count / max(_now(device) - started, 1e-9),
        read_per_s=steps * per_pass / max(seconds, 1e-9),
    )


def _sizes(cfg: RunConfig) -> Iterator[int]:
    """Yields into how many pieces a pass is cut, from small pieces to the whole pass."""
    whole, group = cfg.train.batch_size // cfg.train.accumulate, cfg.model.ghost_batch or 1
    found = [1]
    while whole % (2 * found[-1]) == 0 and whole // (2 * found[-1]) >= LEAST_IMAGES:
        if (whole // (2 * found[-1])) % group:
            break
        found.append(2 * found[-1])
    return reversed(found)


def _step(parts: Components, raw: Batch, pieces: int, device: torch.device) -> int:
    """Runs one step on the first of ``pieces`` pieces of a batch. Returns its number of images."""
    piece = micro_batches(raw, pieces)[0]
    batch = parts.augment(piece.to(device), 0, piece)
    if parts.step.key is not None:
        parts.step.key.update(parts.step.net)
    parts.step.zero_grad(set_to_none=True)
    loss, _, out = parts.step(batch, LATE)
    loss.backward()
    parts.step.objective.observe(out, batch, LATE)
    return len(batch) // (2 if parts.step.objective.base.pairs else 1)


def _evaluate(parts: Components, raw: Batch, pieces: int, device: torch.device) -> None:
    net = parts.eval_net
    net.eval()
    batch = parts.augment.evaluate(micro_batches(raw, pieces)[0].to(device))
    with torch.no_grad():
        net(batch.images_VBCHW[0])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def estimate(cfg: RunConfig, manifest: Manifest, speed: Speed, *, cached: bool) -> str:
    """Says what was measured, and how long the run would take at this speed on this machine."""
    num_train = manifest.split(cfg.data.train_split).num_samples
    images = num_train // cfg.train.batch_size * cfg.train.batch_size * cfg.train.epochs
    validations = (cfg.train.epochs // cfg.train.eval_every or 1) if "val" in manifest.splits else 0
    val = manifest.splits["val"].num_samples if validations else 0
    test = sum(split.num_samples for name, split in manifest.splits.items() if name.startswith("test"))
    evaluated = validations * (val + ncm.in_validation(cfg) * (num_train + val))
    evaluated += 2 * (test + ncm.in_tests(cfg) * (num_train + test))  # with the last weights and the best ones
    evaluated += num_train * (cfg.model.head_init == CLASS_MEANS)
    seconds = images / speed.train_per_s + evaluated / speed.eval_per_s
    hardware = describe_hardware()
    where = (
        ", ".join(hardware.gpus)
        if speed.device.startswith("cuda")
        else f"{hardware.cpu}, {counted(torch.get_num_threads(), 'thread')}"
    )
    part = f" (of {cfg.train.batch_size} in a batch)" if speed.images_per_step < cfg.train.batch_size else ""
    reading = (
        "" if cached or speed.images_per_step < cfg.train.batch_size else f", {speed.read_per_s:,.0f} with reading,"
    )
    steps = f"{counted(speed.steps, 'step')} of {speed.images_per_step} images{part}"
    return (
        f"Measured on this machine ({speed.device}: {where}): {steps}, {speed.train_per_s:,.0f} images/s in training{reading} "
        f"and {speed.eval_per_s:,.0f} in evaluation. At that speed a run takes about {duration(max(1, seconds))}. Other "
        "machines differ: for a GPU of a cluster, only a run there tells."
    )
