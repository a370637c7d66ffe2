"""A data set of one shard, small enough to try something at each of its bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltcore.data.shards.manifest import Manifest, Shard, read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.source import Sample
from ltcore.errors import DataError
from tests.shards import write_dataset

COUNT = 3
GIB = 2**30


def tiny_png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def write_small(uri: Path | str, first_seed: int = 0, images: list[bytes] | None = None) -> Manifest:
    """One shard of three images (or those given) of as many classes, each with an attribute: 10 KiB."""
    images = images or [tiny_png(first_seed + n) for n in range(COUNT)]
    return _write(uri, "small", len(images), [Sample(f"k{n}", image, "png", n, 0) for n, image in enumerate(images)])


def write_spoiled(uri: Path | str) -> Manifest:
    """Two classes of ten images, of which two of the first are none."""
    images = [b"no image" if n in (0, 2) else tiny_png(n) for n in range(20)]
    return _write(uri, "spoiled", 2, [Sample(f"k{n}", image, "png", n % 2) for n, image in enumerate(images)])


def _write(uri: Path | str, name: str, num_classes: int, samples: list[Sample]) -> Manifest:
    return write_dataset(
        str(uri),
        name=name,
        classes=[f"c{n}" for n in range(num_classes)],
        attributes=["x"],
        splits={"train": samples},
        image_size=4,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        seed=0,
        shot_rule="rank",
        provenance={},
    )


def only_shard(uri: Path | str) -> Shard:
    (shard,) = read_manifest(str(uri)).split("train").shards
    return shard


def everything(store: ShardStore) -> list[bytes]:
    return store.read_rows("train", np.arange(len(store.labels("train"))))


def delivered(act: Callable[[], Any], expected: Any) -> bool:
    """Whether ``act`` gave all that was expected; otherwise it must have refused in one line."""
    try:
        found = act()
    except DataError as error:
        assert "\n" not in str(error)
        return False
    assert found == expected
    return True
