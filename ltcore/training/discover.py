"""Attributes that nobody gave: inside each class, clusters of features, merged to groups from the largest to the smallest.

Source: Tang et al. (ECCV 2022), ImageNet-GLT: k-means with 6 clusters on the images of one class, sorted by size and merged
in pairs to 3 "pretext" attributes; their features are a ResNet-50's, trained on ImageNet with labels.
Differs: the clustering is seeded and its input sorted by key, so it can be repeated; images are normalized as the network is
used to (theirs are not); features may also come from any checkpoint, or without a network.

A task is one class, so memory holds the features of one class in each process. On the CPU it computes with one thread, and
its results do not depend on how many processes there are; they may on the processor's kind, as sums in other orders do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ltcore import rng
from ltcore.data.augment.ops import scale_and_shift, unit_range
from ltcore.data.config import DataConfig
from ltcore.data.datasets.image_folder import Item
from ltcore.data.datasets.image_root import Readable
from ltcore.data.datasets.shard_task import Broken
from ltcore.data.datasets.workspace import Bar, Run, here
from ltcore.data.glt.choices import RANDOM, Discovery
from ltcore.data.glt.pool import Pool
from ltcore.data.glt.workspace import Discover
from ltcore.data.images.decode import Pixels, decode_canvas
from ltcore.data.prep import framing_of
from ltcore.data.shards.kept import keep, kept
from ltcore.errors import BadImageError, ConfigError
from ltcore.framing import OWN_WAY, Framing
from ltcore.models.registry import MODELS, is_backbone
from ltcore.models.weights import IMAGENET, expected_input
from ltcore.objective.terms.lpa.kmeans import kmeans
from ltcore.training import predict
from ltcore.training.base import tensors_hash
from ltcore.training.hardware import allocated_cpus, compute_float32_exactly
from ltcore.training.init_from import pretrained
from ltcore.training.predictor import find_device
from ltcore.training.weights_input import as_expected

RANDOM_PX, RANDOM_DIM = 32, 64
"""Side of the images that are projected, and length of their projection."""
BATCH = 64
ITERATIONS, STARTS = 100, 10
"""Of k-means; the best of several starts counts, or some classes would have clusters of a few outliers."""

Extract = Callable[[Tensor], Tensor]
"""uint8 [B, 3, S, S] -> float32 [B, D]."""


def discovery_of(choices: Discovery, seed: int, run: Run) -> Discover:
    """Returns what gives a pool's images the attributes that are chosen.

    Features of a network are computed on the GPU of this process where it has one, and else by tasks of ``run``.
    """
    network = open_features(choices, seed).network  # at once, so that what is wrong with it is said
    on_gpu = choices.features != RANDOM and torch.cuda.is_available()
    return partial(_discover, choices, seed, network, here if on_gpu else run)


def _discover(
    choices: Discovery, seed: int, network: str, run: Run, pool: Pool, folder: Path, bar: Bar
) -> tuple[Pool, Broken]:
    labels_N = pool.labels

    def tasks() -> Iterator[ClassTask]:
        for label in np.unique(labels_N).tolist():
            items = tuple(pool.items.take(np.flatnonzero(labels_N == label)))
            root = pool.root.part([item.path for item in items])
            yield ClassTask(root, items, choices, seed, network, folder / "attributes")

    groups_N, broken = np.full(len(pool.items), -1), Broken()
    with bar("clustering", len(pool.items)) as advance:
        for task, (groups, found) in run(tasks(), ClassTask.__call__):
            groups_N[labels_N == task.items[0].label] = groups
            broken |= found
            advance(len(task.items))
    names = tuple(f"group{n}" for n in range(choices.groups))
    return replace(pool, items=pool.items.with_attributes(groups_N), attributes=names), broken


@dataclass(frozen=True)
class ClassTask:
    """The images of one class, whose groups are to be found."""

    root: Readable
    items: tuple[Item, ...]
    """In the order of their keys."""
    choices: Discovery
    seed: int
    network: str
    """Hash of the weights that features are computed with: under one name there may be others by now."""
    folder: Path
    """Where the result is kept, for a build that continues."""

    def __call__(self) -> tuple[list[int], Broken]:
        """Returns the group of each image, -1 where it cannot be decoded, and what is wrong with those."""
        label = self.items[0].label
        words = [asdict(self.choices), self.seed, self.network, [(item.path, item.key) for item in self.items]]
        identity = hashlib.sha256(json.dumps(words).encode()).hexdigest()
        place = self.folder / f"{label:06d}.json"
        if (known := kept(place, identity)) is not None:
            groups, broken = known
            return groups, {path: (text[0], text[1]) for path, text in broken.items()}
        groups, broken = self._find(label)
        keep(place, identity, [groups, broken])
        return groups, broken

    def _find(self, label: int) -> tuple[list[int], Broken]:
        image_size, framing, extract, _ = open_features(self.choices, self.seed)
        broken: Broken = {}
        parts, sound = list[Tensor](), list[int]()
        with _one_thread():
            for positions, images_BCHW in self._batches(image_size, framing, broken):
                parts.append(extract(images_BCHW).double())
                sound += positions
            groups = [-1] * len(self.items)
            if parts:
                gen = rng.generator(self.seed, "glt", "clusters", label)
                for at, group in zip(sound, merged_clusters(torch.cat(parts), self.choices, gen), strict=True):
                    groups[at] = group
        return groups, broken

    def _batches(self, image_size: int, framing: Framing, broken: Broken) -> Iterator[tuple[list[int], Tensor]]:
        def decode(item: Item, image: bytes) -> Pixels | BadImageError:
            try:
                return decode_canvas(image, image_size, f"{self.root.where}: {item.path}", framing)
            except BadImageError as error:
                return error

        self.root.announce([item.path for item in self.items])
        with ThreadPoolExecutor(allocated_cpus() if torch.cuda.is_available() else 1) as pool:
            for first in range(0, len(self.items), BATCH):
                read = list(self._read(range(first, min(first + BATCH, len(self.items))), broken))
                canvases = pool.map(lambda row: decode(self.items[row[0]], row[1]), read)
                good = list[tuple[int, Pixels]]()
                for (position, _), canvas in zip(read, canvases, strict=True):
                    if isinstance(canvas, BadImageError):
                        broken[self.items[position].path] = str(canvas), canvas.problem
                    else:
                        good.append((position, canvas))
                if good:
                    yield [position for position, _ in good], torch.from_numpy(np.stack([canvas for _, canvas in good]))

    def _read(self, span: range, broken: Broken) -> Iterator[tuple[int, bytes]]:
        for position in span:
            path = self.items[position].path
            try:
                yield position, self.root.read(path)
            except BadImageError as error:
                broken[path] = str(error), error.problem


def merged_clusters(points_RD: Tensor, choices: Discovery, gen: torch.Generator) -> list[int]:
    """Returns the group of each point: clusters by descending size, merged to groups of equally many clusters.

    Ties of sizes go to the cluster of the earlier point. Fewer points than clusters are clusters of their own.
    """
    num_clusters = min(choices.clusters, len(points_RD))
    found = (kmeans(points_RD, num_clusters, gen, iterations=ITERATIONS, spherical=False) for _ in range(STARTS))
    assigned_R = min(found, key=lambda clustering: float(clustering.inertia)).assigned_R.tolist()
    first = {cluster: at for at, cluster in reversed(list(enumerate(assigned_R)))}
    by_size = sorted(first, key=lambda cluster: (-assigned_R.count(cluster), first[cluster]))
    group_of = {cluster: rank * choices.groups // choices.clusters for rank, cluster in enumerate(by_size)}
    return [group_of[cluster] for cluster in assigned_R]


class Features(NamedTuple):
    """What computes features, and the side and framing of the images that it takes."""

    image_size: int
    framing: Framing
    extract: Extract
    network: str
    """Hash of its weights; '' of a projection, which follows from the seed."""


@lru_cache(maxsize=1)
def open_features(choices: Discovery, seed: int) -> Features:
    """Opens what computes features; once in each process.

    Raises ConfigError or CheckpointError where there is no such backbone, weights or checkpoint.
    """
    if choices.features == RANDOM:
        size = choices.image_size or RANDOM_PX
        gen = rng.generator(seed, "glt", "projection")
        projection_PD = torch.randn(3 * size * size, RANDOM_DIM, generator=gen, dtype=torch.float64) / RANDOM_DIM**0.5
        return Features(size, OWN_WAY, lambda images_BCHW: (images_BCHW.flatten(1).double() / 255) @ projection_PD, "")
    device = find_device("auto")
    compute_float32_exactly(device)
    if is_backbone(choices.features):
        return _of_backbone(choices, device)
    if "/" not in choices.features and not Path(choices.features).exists():
        raise ConfigError(
            f"--discover {choices.features}: expected {RANDOM}, a run or checkpoint directory, or a backbone with published "
            f"weights ({', '.join(name for name, row in MODELS.items() if row.weights)}, or timm:NAME)."
        )
    predictor = predict.load(choices.features, device=device)

    @torch.no_grad()
    def extract(images_BCHW: Tensor) -> Tensor:
        features_BD: Tensor = predictor.net(predictor.normalize(images_BCHW.to(device))).features_BD
        return features_BD.float().cpu()

    size = choices.image_size or predictor.image_size
    return Features(size, predictor.framing, extract, _hash_of(predictor.net))


def _of_backbone(choices: Discovery, device: torch.device) -> Features:
    net = pretrained(choices.features, choices.weights, 1).to(device).eval()
    expected = expected_input(choices.features, choices.weights) or IMAGENET
    scale, shift = (part.to(device) for part in scale_and_shift(expected.mean, expected.std))

    @torch.no_grad()
    def extract(images_BCHW: Tensor) -> Tensor:
        features_BD: Tensor = net(unit_range(images_BCHW.to(device)) * scale + shift).features_BD
        return features_BD.float().cpu()

    size = choices.image_size or expected.image_size
    framing = framing_of(as_expected(DataConfig(image_size=size), expected), expected.mean)
    return Features(size, framing, extract, _hash_of(net))


def _hash_of(net: nn.Module) -> str:
    """Hashes the weights that features depend on."""
    return tensors_hash({name: value for name, value in net.state_dict().items() if not name.startswith("heads.")})


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Computes sums in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
