"""Images for benchmarks: those given by --data, or generated ones of the size of CIFAR-100-LT.

Generated images need no network.
"""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.folder_layout import Entries, Entry, Layout
from ltcore.data.datasets.image_folder import image_folder
from ltcore.data.datasets.image_root import open_root
from ltcore.data.datasets.longtail import profile
from ltcore.data.datasets.prepare import prepare, write_source
from ltcore.data.shards.manifest import MANIFEST, LabelTable, Manifest, Shard, Split, read_manifest, write_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.source import Sample, Source
from ltcore.data.shards.writer import write_dataset, write_labels
from ltcore.errors import ConfigError

SIDE_PX = 32
VAL_PER_CLASS = 4
CONSTRUCTION = 2
"""Version of the generated images: increase it when the same arguments give other images."""


def shards(data: str | None, *, quick: bool) -> str:
    """Returns the URI of local shards with a training split."""
    if data is None:
        return generated(profile(60, 10, 10) if quick else profile(500, 100, 100))
    uri = prepare(DataConfig(uri=data, val_per_class=0), progress=print)
    if not storage.is_local(uri):
        raise ConfigError(f"--data {data}: the peers read local files; copy the shards to a disk of this machine.")
    return str(storage.local_path(uri).absolute())


def unsorted(data: str) -> str:
    """Returns the URI of local shards with every image of a folder or zip, as one class.

    The structure of the folders does not matter.
    """
    if not storage.is_local(data) or storage.exists(storage.join(data, MANIFEST)):
        return shards(data, quick=False)
    root = open_root(str(storage.local_path(data).absolute()))
    layout = Layout(("image",), {"train": Entries.of(Entry(path, 0) for path in root.files), "test": Entries.of([])})
    folder = storage.cache_root() / "datasets" / f"bench-{root.fingerprint[:12]}-v{CONSTRUCTION}"
    with storage.locked(folder.with_suffix(".lock")):
        if not storage.exists(storage.join(str(folder), MANIFEST)):
            write_source(image_folder(root, layout, DataConfig(uri=data, val_per_class=0)), str(folder), seed=0)
    return str(folder)


def generated(counts_C: Sequence[int]) -> str:
    """Writes shards of PNGs into the cache folder, unless they exist, and returns their URI.

    ``counts_C`` are the training images of each class; there are a few validation images as well.
    """
    folder = storage.cache_root() / "datasets" / f"bench-{len(counts_C)}x{sum(counts_C)}-v{CONSTRUCTION}"
    with storage.locked(folder.with_suffix(".lock")):
        if not storage.exists(storage.join(str(folder), MANIFEST)):
            source = Source(
                name="bench",
                classes=tuple(f"class{c}" for c in range(len(counts_C))),
                splits={"train": list(_samples(counts_C)), "val": list(_samples([VAL_PER_CLASS] * len(counts_C)))},
                image_size=SIDE_PX,
                mean=(0.5, 0.5, 0.5),
                std=(0.25, 0.25, 0.25),
                shot_rule="count",
                provenance={"source": "bench", "construction": CONSTRUCTION},
            )
            shard_size = min(1000, -(-sum(counts_C) // 4))  # every worker of a peer needs shards of its own
            write_dataset(str(folder), source, seed=0, shard_size=shard_size)
    return str(folder)


def _samples(counts_C: Sequence[int]) -> Iterator[Sample]:
    """Yields noisy waves with one direction and color per class.

    The PNGs are about as large as CIFAR's, 2 to 3 kB.
    """
    rng = np.random.default_rng(0)
    at = np.arange(SIDE_PX) / SIDE_PX
    for label, count in enumerate(counts_C):
        waves_2, color_3 = rng.uniform(-3, 3, 2), rng.uniform(20, 100, 3)
        for number in range(count):
            phase = rng.uniform(0, 1)
            wave_SS = np.sin(2 * np.pi * (waves_2[0] * at[:, None] + waves_2[1] * at + phase))
            pixels_SS3 = 128 + wave_SS[:, :, None] * color_3 + rng.normal(0, 8, (SIDE_PX, SIDE_PX, 3))
            out = io.BytesIO()
            Image.fromarray(pixels_SS3.clip(0, 255).astype(np.uint8)).save(out, "PNG")
            yield Sample(f"{label}_{number}", out.getvalue(), "png", label)


def repeat(uri: str, times: int) -> str:
    """Returns shards in which every training image of ``uri`` occurs ``times`` times, in the cache folder.

    The files are hard links under other names: a reader opens and indexes each of them separately, as it would other
    files of that size, and the disk holds one copy.
    """
    source = read_manifest(uri)
    folder = storage.cache_root() / "datasets" / f"bench-{source.hash[:12]}-times-{times}"
    with storage.locked(folder.with_suffix(".lock")):
        if not storage.exists(storage.join(str(folder), MANIFEST)):
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
            folder.mkdir(parents=True)
            made = _repeated(source, times, _repeat_labels(uri, times, folder))
            for copy, original in zip(made.split("train").shards, _originals(source, times), strict=True):
                for name in ("path", "index_path"):
                    file = storage.local_path(storage.join(uri, getattr(original, name)))
                    os.link(file, folder / getattr(copy, name))
            write_manifest(made, str(folder))
    return str(folder)


def _originals(source: Manifest, times: int) -> list[Shard]:
    return list(source.split("train").shards) * times


def _repeat_labels(uri: str, times: int, folder: Path) -> LabelTable:
    store = ShardStore(uri)
    labels_N, attributes_N = (np.tile(tags_N, times) for tags_N in (store.labels("train"), store.attributes("train")))
    return write_labels(folder, "train", labels_N, attributes_N, store.manifest)


def _repeated(source: Manifest, times: int, labels: LabelTable) -> Manifest:
    shards: list[Shard] = []
    first = 0
    for number, shard in enumerate(_originals(source, times)):
        path, index_path = (f"train-{number:05d}.{ext}" for ext in ("tar", "parquet"))
        shards.append(dataclasses.replace(shard, path=path, index_path=index_path, first_index=first))
        first += shard.count
    counts_C = tuple(count * times for count in source.class_counts["train"])
    return dataclasses.replace(
        source,
        splits={"train": Split(tuple(shards), labels)},
        class_counts={"train": counts_C},
        provenance={"repeats": source.hash, "times": times},
    )
