"""The training step on the device: images/s by network and precision, where its time goes, and how much of it is memory traffic.

Images are random numbers in host memory, since reading them is measured by the ladder. On a machine without a GPU the same is
measured on its CPU, and said.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ltcore.batch import Batch
from ltcore.benchmarks import datasets as images
from ltcore.benchmarks.baselines import BareLoop, timm_step
from ltcore.benchmarks.harness import Aim, Measurement, Rung, Section, Work, interleave, milliseconds
from ltcore.benchmarks.machine import device, wait_for
from ltcore.benchmarks.options import Options
from ltcore.benchmarks.resident import NOTE, measure_resident
from ltcore.config.schema import RunConfig
from ltcore.data.loading.loader import CachedLoader
from ltcore.errors import ConfigError, LtcoreError
from ltcore.models.net import LongTailNet
from ltcore.text import counted
from ltcore.training.build import build
from ltcore.training.context import LocalContext
from ltcore.training.descent import build_descent, take_step
from ltcore.training.hardware import choose_precision, describe_hardware

PARTS = ("host", "augment", "forward", "backward", "optimizer")
"""Of a step, in their order: 'host' copies the images to the device, 'forward' includes the loss."""
PROGRESS = 0.5
BANDWIDTH = "copy"
VIT = "vit_base_patch16_224"
OF_TIMM = Aim(">=", 0.95)


@dataclass(frozen=True)
class Net:
    """A network and the images that it is measured with."""

    name: str
    side: int
    batch_size: int
    of_timm: str = ""
    """What timm calls the same network; '' where it has none, or its loop is not compared."""
    aim_images_per_s: int | None = None
    """On a GPU, in bf16 and compiled."""


def gpu(options: Options) -> Iterator[Section]:
    """Measures the step of every network in every precision, or of those that are asked for, one after another.

    What fails, as for want of memory, says so in a section of its own, and the next is measured.
    """
    place = device()
    uri = images.shards(options.data, quick=options.quick)
    bytes_per_s = copy_rate(place, options)
    pairs = {
        f"{net.name} {net.side} px {precision}": (net, precision)
        for net in networks(place, quick=options.quick)
        for precision in precisions(place)
    }
    wanted = {label: pair for label, pair in pairs.items() if options.only in label}
    if not wanted:
        raise ConfigError(f"--only {options.only}: expected a part of one of {', '.join(map(repr, pairs))}.")
    for label, (net, precision) in wanted.items():
        sections = [Section(f"gpu: {what}", unit) for what, unit in SECTIONS]
        try:
            with contextlib.closing(Step(net, precision, uri, place)) as ours:
                _measure(sections, label, ours, options, bytes_per_s)
        except (RuntimeError, LtcoreError) as error:  # torch's own, of memory and of its compiler, and ours of no room
            failed = Section("gpu: not measured", "-", notes=[f"{label}: {type(error).__name__}: {str(error)[:500]}"])
            sections = [*(section for section in sections if section.rungs), failed]
        finally:  # what was compiled for one network holds the memory that the next one needs
            torch.compiler.reset()
            if place.type == "cuda":
                torch.cuda.empty_cache()
        for section in sections:
            section.notes.insert(0, f"numbers of {place_name(place)}")
        yield from sections


def _measure(sections: Sequence[Section], label: str, ours: Step, options: Options, bytes_per_s: float) -> None:
    rates, split, traffic, fed = sections
    rates.notes.append(
        "bare: plain PyTorch with the same network, precision and batch; timm: the step of its training script, which does "
        "not clip gradients where ours does, of networks with attention; compiled: train.compile; in fp16 all scale the loss; "
        "cudnn.benchmark, which that script switches on and ours does not, is off for all"
    )
    split.notes.append(f"of a step: {', '.join(PARTS)}; the ratio is the share of their sum")
    traffic.notes.append(
        f"what the operations of a step read and write, at the {bytes_per_s / 1e9:.3g} GB/s of a big copy; the ratio is the "
        "share of the step's time that memory alone would take if nothing stayed in caches, and may exceed 1 where it does"
    )
    fed.notes.append(NOTE)
    measure_rate(rates, label, ours, options)
    measure_split(split, label, ours, options.turns)
    measure_traffic(traffic, label, ours, split, bytes_per_s)
    measure_resident(
        fed,
        label,
        ours.cfg,
        ours.net.side,
        ours.place,
        steps=1 if options.quick else 20,
        turns=options.turns,
        compiled="reduce-overhead" if ours.place.type == "cuda" and not options.quick else "off",
        aim=_aim(ours),
    )


def _aim(ours: Step) -> Aim | None:
    """Returns the images/s that are wanted of a compiled step, where any are."""
    wanted = ours.net.aim_images_per_s if ours.place.type == "cuda" and ours.precision == "bf16" else None
    return Aim(">=", wanted, on="median") if wanted else None


SECTIONS = [("speed", "images/s"), ("parts of a step", "ms"), ("memory traffic", "ms"), ("images", "images/s")]


def networks(place: torch.device, *, quick: bool) -> list[Net]:
    """Returns what is measured: on a CPU the small network alone."""
    if quick:
        return [Net("resnet8", 16, 8)]
    small = Net("resnet32", 32, 128, aim_images_per_s=50_000)
    if place.type != "cuda":
        return [small]
    return [small, Net("resnet50", 224, 128, "resnet50"), Net(f"timm:{VIT}", 224, 128, VIT)]


def precisions(place: torch.device) -> list[str]:
    """Returns fp32, bf16 where the device computes in it, and fp16 on a GPU."""
    bf16 = choose_precision("auto", place).autocast is torch.bfloat16
    return ["fp32", *["bf16"] * bf16, *["fp16"] * (place.type == "cuda")]


def place_name(place: torch.device) -> str:
    """Returns the name of the device."""
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"the CPU, since there is no GPU: {describe_hardware().cpu}, {counted(torch.get_num_threads(), 'thread')}"


def copy_rate(place: torch.device, options: Options) -> float:
    """Returns the bytes per second that a copy of a big tensor reads and writes."""
    size = (4 if options.quick else 256 if place.type == "cpu" else 2048) * 2**20
    source = torch.zeros(size, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)

    def work() -> float:
        target.copy_(source)
        wait_for(place)
        return 2 * size

    return max(m.value for m in interleave({BANDWIDTH: work}, options.turns))


class Step:
    """Our training step on one batch of random images in host memory."""

    def __init__(self, net: Net, precision: str, uri: str, place: torch.device, compiled: str = "off") -> None:
        self.net, self.precision, self.uri, self.place = net, precision, uri, place
        self.cfg = RunConfig.from_flat(
            {
                "name": "bench",
                "data.uri": uri,
                "data.image_size": images.SIDE_PX,
                "augment.view1": "crop_flip",
                "model.name": net.name,
                "train.batch_size": net.batch_size,
                "train.precision": precision,
                "train.compile": compiled,
                "tracking.wandb": False,
            }
        )
        self._loader = CachedLoader(self.cfg.data, uri, batch_size=net.batch_size, seed=0)  # for classes and counts
        self.parts = build(self.cfg, self._loader, LocalContext(place))
        self.descent = build_descent(self.cfg.train, self.parts, place)
        self.raw = random_batch(net, len(self._loader.store.manifest.classes))
        self._on_device = self.parts.augment(self.raw.to(place), 0)

    def close(self) -> None:
        """Closes the loader."""
        self._loader.close()

    def train(self) -> None:
        """Runs the step on images that are on the device and augmented."""
        take_step(self.parts, self.descent, self._on_device, PROGRESS, accumulate=1)

    def marked(self) -> list[float]:
        """Runs the whole step and returns the milliseconds of each of ``PARTS``, by the clock of the device."""
        clock = Clock(self.place)
        clock.mark()
        batch = self.raw.to(self.place)
        clock.mark()
        batch = self.parts.augment(batch, 0, self.raw)
        clock.mark()
        loss, _, out = self.parts.wrapped(batch, PROGRESS)
        clock.mark()
        self.descent.backward(loss)
        clock.mark()
        self.descent.step()
        self.descent.zero_grad()
        self.parts.step.objective.observe(out, batch, PROGRESS)
        clock.mark()
        return clock.milliseconds()

    def bare(self) -> BareLoop:
        """Returns the plain loop with the same network and precision."""
        manifest = self._loader.store.manifest
        net = LongTailNet(self.cfg.model, len(manifest.classes), frozenset(), 0)
        return BareLoop(
            net.to(device=self.place, memory_format=torch.channels_last),  # type: ignore[call-overload]
            self.raw.images_VBCHW[0].to(self.place),
            self.raw.labels_B.to(self.place),
            mean=manifest.mean,
            std=manifest.std,
            batch_size=self.net.batch_size,
            autocast=self.parts.precision.autocast,
        )

    def timm_train(self) -> Callable[[], object]:
        """Returns timm's step on the same images."""
        images, labels_B = self._on_device.images_VBCHW[0], self._on_device.labels_B
        classes = len(self._loader.store.manifest.classes)
        return timm_step(self.net.of_timm, classes, images, labels_B, self.parts.precision.autocast)

    def bare_train(self) -> Callable[[], object]:
        """Returns the plain loop's step on the same images."""
        bare = self.bare()
        return lambda: bare.step(self._on_device.images_VBCHW[0], self._on_device.labels_B)


class Clock:
    """Marks in the stream of the device's work: events on a GPU, the time of the process on a CPU."""

    def __init__(self, place: torch.device) -> None:
        self._place = place
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Adds a mark after all work so far."""
        if self._place.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Waits for the device, and returns the time between each two marks."""
        wait_for(self._place)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._place.type == "cuda":
            return [a.elapsed_time(b) for a, b in pairs]
        return [1000 * (b - a) for a, b in pairs]


class Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that operations read and write; views and allocations move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.__name__:
            tensors = [t for t in pytree.tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return result


def random_batch(net: Net, num_classes: int) -> Batch:
    """Returns uint8 images and labels in host memory."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, net.batch_size, 3, net.side, net.side)
    number_B = torch.arange(net.batch_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return Batch(pixels, number_B % num_classes, number_B, torch.zeros_like(number_B))


def measure_rate(section: Section, label: str, ours: Step, options: Options) -> None:
    """Adds images/s of our step, compiled too except with --quick, beside the plain loop and timm's."""
    bare = f"bare: {label}"
    sides, rungs = {label: ours.train, bare: ours.bare_train()}, [Rung(label, bare)]
    if ours.net.of_timm:
        sides[f"timm: {label}"] = ours.timm_train()
        rungs.append(Rung(label, f"timm: {label}", OF_TIMM))
    on_gpu = ours.place.type == "cuda"
    with contextlib.ExitStack() as opened:
        for how in () if options.quick else ("default", "reduce-overhead") if on_gpu else ("default",):
            step = opened.enter_context(contextlib.closing(Step(ours.net, ours.precision, ours.uri, ours.place, how)))
            sides[f"{label}, compiled ({how})"] = step.train
            rungs.append(Rung(f"{label}, compiled ({how})", bare, _aim(ours)))
        works = {side: repeated_steps(call, ours, 1 if options.quick else 20) for side, call in sides.items()}
        section.measurements += interleave(works, options.turns)
        section.rungs += rungs


def repeated_steps(call: Callable[[], object], ours: Step, steps: int) -> Work:
    """Returns rounds of ``steps`` calls, whose amount is images."""

    def work() -> float:
        for _ in range(steps):
            call()
        wait_for(ours.place)
        return steps * ours.net.batch_size

    return work


def measure_split(section: Section, label: str, ours: Step, rounds: int) -> None:
    """Adds the milliseconds of each part of a step, beside their sum."""
    ours.marked()
    for turn in range(rounds):
        found = ours.marked()
        for name, value in zip((*PARTS, "step"), (*found, sum(found)), strict=True):
            section.measurements.append(milliseconds(f"{label}: {name}", turn, value / 1000, 1))
    section.rungs += [Rung(f"{label}: {name}", f"{label}: step") for name in PARTS]


def measure_traffic(section: Section, label: str, ours: Step, split: Section, bytes_per_s: float) -> None:
    """Adds the time that the bytes of a step take at the speed of a copy, beside that of the whole step."""
    with Traffic() as traffic:
        ours.marked()
    step = f"{label}: step"
    section.measurements += [m for m in split.measurements if m.side == step]
    section.measurements.append(Measurement(f"{label}: memory", 0, 1000 * traffic.bytes / bytes_per_s))
    section.rungs.append(Rung(f"{label}: memory", step))
