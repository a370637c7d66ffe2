"""The ladder: read | decode | to device | step | full loop, each beside a peer on the same CPUs in the same run.

A rung includes those before it, except 'step', which is only the step, on a batch on the device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltcore.batch import Batch
from ltcore.benchmarks import datasets as images
from ltcore.benchmarks.baselines import BareLoop, webdataset_loader
from ltcore.benchmarks.full_loop import full_loop
from ltcore.benchmarks.harness import Aim, Rung, Section, Work, interleave
from ltcore.benchmarks.machine import device, on_cpus, wait_for
from ltcore.benchmarks.options import Options
from ltcore.config.schema import RunConfig
from ltcore.data.loading.loader import CachedLoader, Loader, ThreadedLoader
from ltcore.data.loading.prefetch import prefetch
from ltcore.models.net import LongTailNet
from ltcore.text import counted
from ltcore.training.build import build
from ltcore.training.context import LocalContext
from ltcore.training.hardware import choose_precision
from ltcore.training.optim import build_optimizer

CPUS = 2
"""CPUs of both sides: the number of DataLoader workers and of torch's threads."""


def ladder(options: Options) -> list[Section]:
    """Measures all rungs of the ladder."""
    with on_cpus(CPUS) as cpus:
        uri = images.shards(options.data, quick=options.quick)
        cfg = config(uri, options, cpus)
        section = Section("ladder", "images/s")
        section.notes.append(
            f"{counted(cpus, 'CPU')} for each side; torch threads {cpus}, DataLoader workers {CPUS}; {device()}"
        )
        feed_rungs(section, cfg, options.turns)
        training_rungs(section, cfg, options.turns)
        if options.quick:
            section.notes.append("--quick: the Ray loader is left out, since it needs Ray")
        else:
            stream_rung(section, cfg, options.turns)
    return [section]


def config(uri: str, options: Options, cpus: int) -> RunConfig:
    """Returns the published recipe without terms, at 32 px whatever the images are."""
    keys: dict[str, Any] = {
        "name": "bench",
        "data.uri": uri,
        "data.image_size": images.SIDE_PX,
        "data.loader": "cache",
        "augment.view1": "crop_flip",
        "model.name": "resnet8" if options.quick else "resnet32",
        "train.batch_size": 32 if options.quick else 128,
        "train.epochs": options.turns + 2,  # one unmeasured, and a last one, never reached, since it costs more
        "train.eval_every": options.turns + 2,
        "train.threads": cpus,
        "tracking.wandb": not options.quick,
        "tracking.wandb_mode": "offline",
    }
    return RunConfig.from_flat(keys)


class Epochs:
    """Consecutive epochs of a loader as a side of a measurement."""

    def __init__(self, loader: Loader, use: Callable[[Batch, int], object] | None = None) -> None:
        self._loader, self._use, self._epoch = loader, use, 0

    def __call__(self) -> int:
        count = 0
        for batch in self._loader.train_batches(self._epoch):
            if self._use is not None:
                self._use(batch, self._epoch)
            count += len(batch)
        wait_for(device())
        self._epoch += 1
        return count


def feed_rungs(section: Section, cfg: RunConfig, rounds: int) -> None:
    """Measures 'read' and 'decode': without and with decoding on both sides.

    'decode' is the cached loader from its second epoch on.
    """
    sides: dict[str, Work] = {}
    options: dict[str, Any] = {"batch_size": cfg.train.batch_size, "seed": cfg.seed}
    threads = ThreadedLoader(cfg.data, cfg.data.uri, **options)
    cache = CachedLoader(cfg.data, cfg.data.uri, **options)
    sides["read"] = _reads(threads)
    sides["webdataset, bytes"] = loader_epochs(cfg, image_size=None)
    sides["decode (cached loader)"] = Epochs(cache)
    sides["decode (threaded loader)"] = Epochs(threads)
    sides["webdataset, decoded"] = loader_epochs(cfg, image_size=cfg.data.image_size)
    section.measurements += interleave(sides, rounds)
    cache.close()
    section.rungs += [
        Rung("read", "webdataset, bytes"),
        Rung("decode (cached loader)", "webdataset, decoded", Aim(">=", 10)),
        Rung("decode (threaded loader)", "webdataset, decoded"),
    ]


def _reads(loader: ThreadedLoader) -> Work:
    epoch = -1

    def work() -> int:
        nonlocal epoch
        epoch += 1
        rows = (step.index_B for step in loader.sampler(epoch).rank_batches(0))
        read = prefetch(
            lambda index_B: loader.store.read_rows(loader.cfg.train_split, index_B),
            rows,
            ahead=loader.cfg.prefetch_steps,
            threads=CPUS,
        )
        return sum(len(encoded) for encoded in read)

    return work


def loader_epochs(cfg: RunConfig, *, image_size: int | None) -> Work:
    """Returns epochs of a WebDataset DataLoader with persistent workers, which start in the unmeasured round."""
    loader = webdataset_loader(
        cfg.data.uri, batch_size=cfg.train.batch_size, image_size=image_size, workers=CPUS, persistent=True
    )
    return lambda: sum(len(labels_B) for _, labels_B in loader)


def training_rungs(section: Section, cfg: RunConfig, rounds: int) -> None:
    """Measures 'to device', 'step' and 'full loop' against the bare loop."""
    loader = CachedLoader(cfg.data, cfg.data.uri, batch_size=cfg.train.batch_size, seed=cfg.seed)
    bare = bare_loop(cfg, loader)
    place, context = device(), LocalContext()
    parts = build(cfg, loader, context)
    to_device = Epochs(loader, lambda batch, epoch: parts.augment(batch.to(place), epoch))
    section.measurements += interleave({"to device": to_device, "bare: to device": _augmented(bare)}, rounds)
    steps = 2 if rounds == 1 else 20  # as steady as an epoch in a fraction of its time
    batch = parts.augment(next(iter(loader.train_batches(0))).to(place), 0)
    sides = {"step": _steps(cfg, parts, batch, steps), "bare: step": _bare_steps(bare, batch, steps)}
    section.measurements += interleave(sides, rounds)
    with tempfile.TemporaryDirectory(prefix="ltcore-bench-") as folder:
        section.measurements += full_loop(cfg.to_dict(), cfg.data.uri, Path(folder) / "run", bare.epoch, rounds)
    loader.close()
    section.rungs += [
        Rung("to device", "bare: to device"),
        Rung("step", "bare: step"),
        Rung("full loop", "bare: full loop", Aim(">=", 0.95)),
    ]
    section.notes.append(
        "bare: plain PyTorch on images decoded on the device, the same network, precision and augmentation "
        "(torch's generator instead of keyed numbers), no log; full loop: with logs and checkpoints"
    )


def bare_loop(cfg: RunConfig, loader: CachedLoader) -> BareLoop:
    """Builds the bare loop on the training images of ``loader``."""
    manifest, place = loader.store.manifest, device()
    split = cfg.data.train_split
    batches = list(loader.eval_batches(split, 512))
    net = LongTailNet(cfg.model, len(manifest.classes), frozenset(), cfg.seed)
    return BareLoop(
        net.to(device=place, memory_format=torch.channels_last),  # type: ignore[call-overload]
        torch.cat([batch.images_VBCHW[0] for batch in batches]).to(place),
        torch.from_numpy(loader.store.labels(split).copy()).to(place),
        mean=manifest.mean,
        std=manifest.std,
        batch_size=cfg.train.batch_size,
        autocast=choose_precision(cfg.train.precision, place).autocast,
    )


def _augmented(bare: BareLoop) -> Work:
    def work() -> int:
        count = sum(len(labels_B) for _, labels_B in bare.batches())
        wait_for(bare.place)
        return count

    return work


def _steps(cfg: RunConfig, parts: Any, batch: Batch, steps: int) -> Work:
    optimizer = build_optimizer(cfg.train.optim, parts.step)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss, _, out = parts.wrapped(batch, 0.5)
        loss.backward()
        optimizer.step()
        parts.step.objective.observe(out, batch, 0.5)

    return _counted(step, steps, len(batch))


def _bare_steps(bare: BareLoop, batch: Batch, steps: int) -> Work:
    images_B3SS: Tensor = batch.images_VBCHW[0]
    return _counted(lambda: bare.step(images_B3SS, batch.labels_B), steps, len(batch))


def _counted(step: Callable[[], object], steps: int, size: int) -> Work:
    def work() -> int:
        for _ in range(steps):
            step()
        wait_for(device())
        return steps * size

    return work


def stream_rung(section: Section, cfg: RunConfig, rounds: int) -> None:
    """Measures Ray Data against the DataLoader, both restarted for every epoch, so that start-up counts."""
    from ltcore.runtime.cluster import connect, disconnect
    from ltcore.runtime.ray_data import RayLoader

    def streamed() -> int:
        options: dict[str, Any] = {"batch_size": cfg.train.batch_size, "seed": cfg.seed}
        loader = RayLoader(cfg.data, cfg.data.uri, epochs=1, **options)
        count = sum(len(batch) for batch in loader.train_batches(0))
        loader.close()
        return count

    def loaded() -> int:
        loader = webdataset_loader(
            cfg.data.uri,
            batch_size=cfg.train.batch_size,
            image_size=cfg.data.image_size,
            workers=CPUS,
            persistent=False,
        )
        return sum(len(labels_B) for _, labels_B in loader)

    sides: Mapping[str, Work] = {"decode (Ray loader)": streamed, "webdataset, started anew": loaded}
    connect()
    try:
        section.measurements += interleave(sides, rounds)
    finally:
        disconnect()
    section.rungs.append(Rung("decode (Ray loader)", "webdataset, started anew", Aim(">=", 0.9)))
    section.notes.append(
        "Ray loader: Ray is running, each epoch is a new Ray Data execution; the peer starts its workers"
    )
