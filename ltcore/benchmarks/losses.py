"""The cost of losses: against the literal form of each paper, as a share of a training step, and in numbers held."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ltcore.benchmarks.harness import (
    Aim,
    Measurement,
    Rung,
    Section,
    Work,
    duration,
    interleave,
    milliseconds,
    repeated,
)
from ltcore.benchmarks.largest import largest_tensor
from ltcore.benchmarks.loss_cases import NAMES, PROGRESS, QUICK_SIZES, SIZES, Case, Size
from ltcore.benchmarks.machine import on_cpus
from ltcore.benchmarks.options import Options
from ltcore.benchmarks.reference_calls import dro_by_bank, literally
from ltcore.models.ema import EmaCopy
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.objective.terms.lpa.kmeans import kmeans
from ltcore.text import counted
from ltcore.training.hardware import allocated_cpus

LEAST_S = 0.1
"""Least seconds of a measured round of calls."""
LARGE_STEP = "training step, ResNet-50"
LARGE_FORWARD = "forward, ResNet-50"
LARGE_MAP_PX = 7
PART = 8
"""Images of a ResNet-50 step; a whole batch takes most of a minute on two cores."""
LPA_LOSS, LPA_ATTRIBUTES = "lpa, loss alone", "lpa, attributes"
WITH_MEMORY = ("paco", "lpa", "dro", "ifl")
SAME_INERTIA = 1.01
"""Inertias within 1% count as equal."""
SAME_BEST = 1.005
OVERLAPPING = 0.5
"""Spread of the centers of blobs of spread 1. With separate blobs, the initial centers alone would determine the
inertia.
"""
PASSES = (1, 2, 4, 8, 16)


def losses(options: Options) -> list[Section]:
    """Measures all sections on losses."""
    with on_cpus(allocated_cpus()) as cpus:
        sizes = QUICK_SIZES if options.quick else SIZES
        sections = [arithmetic(size, options) for size in sizes]
        sections += [forwards(sizes[0], options), numbers_held(sizes[0]), *clustering(options)]
    sections[0].notes.insert(0, f"{counted(cpus, 'CPU')} and torch threads for every side, float32 on the CPU")
    return sections


def network(size: Size, quick: bool) -> tuple[LongTailNet, Tensor]:
    """Returns ResNet-32 in training mode and a batch of images of 32 px."""
    name, side = ("resnet8", 16) if quick else ("resnet32", 32)
    return _network(name, size.projection, size.batch, side)


def _network(name: str, projection: int, batch: int, side: int) -> tuple[LongTailNet, Tensor]:
    cfg = ModelConfig(name=name, projection_dim=projection)
    net = LongTailNet(cfg, 100, frozenset({"fmap", "query"}), seed=0).train()
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    return net.to(memory_format=torch.channels_last), images


def in_parts(size: Size, call: Callable[[], object]) -> Work:
    """Measures ``call``, which processes ``PART`` images, as that part of a batch."""

    def part() -> float:
        call()
        return PART / size.batch

    return part


def training_step(net: LongTailNet, images: Tensor) -> Callable[[], object]:
    """Returns a plain training step: forward, cross-entropy, backward and SGD."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    labels_B = torch.arange(len(images)) % 100

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(images).logits_BC, labels_B).backward()
        optimizer.step()

    return step


def arithmetic(size: Size, options: Options) -> Section:
    """Measures every loss against its literal form and against a ResNet-32 step at the same batch size.

    LPA's attributes, which use the whole feature map, are compared with a forward of the network that has such a map.
    """
    least_s = 0.0 if options.quick else LEAST_S
    case, large = Case(size), size.map_px == LARGE_MAP_PX
    step, forward = "training step", LARGE_FORWARD if large else "forward"
    small_net, small_images = network(size, options.quick)
    sides = {step: repeated(training_step(small_net, small_images), 0.0)}
    section = Section(f"losses at (B, C, D) = {size}, {size.prototypes} prototypes", "ms")
    if large:
        net, images = _network("resnet50", size.projection, PART, 224)
        sides[LARGE_STEP] = in_parts(size, training_step(net, images))
        sides[forward] = in_parts(size, lambda: net(images))
        section.notes.append(f"ResNet-50 at 224 px is measured on {PART} images, times {size.batch // PART}")
    else:
        sides[forward] = repeated(lambda: small_net(small_images), least_s)
    for name in NAMES:
        objective = case.objective(name)
        sides[name] = repeated(case.ours(objective), least_s)
        sides[f"{name}, literal"] = repeated(literally(case, name, objective), least_s)
        section.rungs.append(Rung(name, f"{name}, literal"))
        if name == "lpa":
            sides[LPA_LOSS] = repeated(case.ours(objective, attributes=False), least_s)
            sides[LPA_ATTRIBUTES] = repeated(case.attributes(objective), least_s)
            section.rungs += [
                Rung(name, step),
                Rung(LPA_LOSS, step, Aim("<=", 0.05)),
                Rung(LPA_ATTRIBUTES, forward, Aim("<=", 0.05)),
            ]
        else:
            section.rungs.append(Rung(name, step, Aim("<=", 0.05)))
        if large and name in WITH_MEMORY:
            section.rungs.append(Rung(name, LARGE_STEP))
        if name == "dro":
            bank = f"dro, bank of {size.bank:,}"
            sides[bank] = repeated(dro_by_bank(case, objective), 0.0)
            section.rungs.append(Rung(name, bank, Aim("<=", 1 / 20)))
    section.measurements += interleave(sides, options.turns, milliseconds)
    section.notes.append(
        "forward, backward and memories of a loss without the network; terms on top of cross-entropy; the step is that "
        "of ResNet-32 on images of 32 px"
    )
    return section


def forwards(size: Size, options: Options) -> Section:
    """Measures extra forwards in units of one forward."""
    least_s = 0.0 if options.quick else LEAST_S
    net, images = network(size, options.quick)
    key = EmaCopy(net, 0.999)

    def key_forward() -> None:
        key.update(net)
        with torch.no_grad():
            key.net(images)

    section = Section(f"forwards at B = {size.batch}", "ms")
    sides = {
        "forward": repeated(lambda: net(images), least_s),
        "key encoder (paco, lpa)": repeated(key_forward, least_s),
    }
    section.measurements += interleave(sides, options.turns, milliseconds)
    section.rungs.append(Rung("key encoder (paco, lpa)", "forward"))
    section.notes.append(
        "extra forwards per step: one of the key encoder for paco and lpa together, none for dro and ifl (authors' codes: "
        "two more passes over the data per epoch for DRO-LT, E times the steps per epoch for IFL)"
    )
    return section


def numbers_held(size: Size) -> Section:
    """Measures the largest tensor of a step of each loss and of the following merge.

    The case is so large that N x D and B x N exceed everything that may be large (LPA keeps 128 vectors per class for
    its clustering).
    """
    case = Case(replace(size, largest=50 * size.largest))
    num_samples = int(case.counts_C.sum())
    bounds = {"N x D": num_samples * size.features, "B x N": size.batch * num_samples}
    bound = min(bounds, key=lambda name: bounds[name])
    section = Section(f"largest tensor of a step and of a merge, N = {num_samples:,}", "numbers")
    section.measurements.append(Measurement(bound, 0, float(bounds[bound])))
    for name in WITH_MEMORY:
        objective = case.objective(name)
        found = {
            f"{name}, step": largest_tensor(case.ours(objective)),
            f"{name}, merge": largest_tensor(functools.partial(objective.merge, PROGRESS + 0.1)),
        }
        section.measurements += [Measurement(side, 0, float(numbers)) for side, numbers in found.items()]
        section.rungs += [Rung(side, bound, Aim("<", 1)) for side in found]
    section.notes.append(f"N samples, B = {size.batch}, D = {size.features}; without the network's own activations")
    return section


def clustering(options: Options) -> list[Section]:
    """Compares k-means with scikit-learn's MiniBatchKMeans at as many passes as it needs for the same inertia."""
    rows, dim, centers = (2000, 8, 8) if options.quick else (65_536, 64, 128)
    gen = torch.Generator().manual_seed(0)
    blobs_LD = torch.randn(2 * centers, dim, generator=gen) * OVERLAPPING
    points_RD = blobs_LD[torch.randint(2 * centers, (rows,), generator=gen)] + torch.randn(rows, dim, generator=gen)
    inertias: dict[str, list[float]] = {"kmeans": [], "MiniBatchKMeans": []}

    def ours() -> float:
        found = kmeans(points_RD, centers, torch.Generator().manual_seed(1), iterations=20, spherical=False)
        inertias["kmeans"].append(float(found.inertia))
        return 1

    ours()
    passes, reached = passes_for(points_RD, centers, inertias["kmeans"][0] * SAME_INERTIA)

    def theirs() -> float:
        inertias["MiniBatchKMeans"].append(float(minibatch(points_RD, centers, passes).inertia_))
        return 1

    timed = Section(f"k-means, {rows:,} x {dim}, K = {centers}, 20 iterations", "s")
    timed.measurements += interleave({"kmeans": ours, "MiniBatchKMeans": theirs}, options.turns, duration)
    timed.rungs.append(Rung("kmeans", "MiniBatchKMeans", Aim("<=", 1)))
    outcome = "come within 1% of our inertia" if reached else "come near its own best: it never reached our inertia"
    timed.notes.append(f"MiniBatchKMeans with {passes} passes, the fewest that {outcome}")
    quality = Section("inertia of the same fits", "sum of squared distances")
    for name, values in inertias.items():
        quality.measurements += [Measurement(name, turn, v) for turn, v in enumerate(values[-options.turns :])]
    quality.rungs.append(Rung("kmeans", "MiniBatchKMeans", Aim("<=", SAME_INERTIA)))
    return [timed, quality]


def minibatch(points_RD: Tensor, centers: int, passes: int) -> Any:
    """Fits MiniBatchKMeans with a fixed number of passes."""
    from sklearn.cluster import MiniBatchKMeans

    # Early stopping would change time and inertia at once; the number of passes controls both in steps.
    fit = MiniBatchKMeans(
        n_clusters=centers, max_iter=passes, max_no_improvement=None, tol=0.0, n_init=1, random_state=1
    )
    return fit.fit(points_RD.numpy())


def passes_for(points_RD: Tensor, centers: int, inertia: float) -> tuple[int, bool]:
    """Returns the fewest of 1, 2, 4, ... passes that reach the inertia, and True.

    Where none does, returns the fewest that come within half a percent of the best, and False, so that the peer is
    never charged for passes that do not improve it.
    """
    found: dict[int, float] = {}
    for passes in PASSES:
        found[passes] = float(minibatch(points_RD, centers, passes).inertia_)
        if found[passes] <= inertia:
            return passes, True
    good = min(found.values()) * SAME_BEST
    return next(passes for passes, value in found.items() if value <= good), False
