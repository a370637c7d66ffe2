"""Generated data that several test files share."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltcore.data.shards.source import Sample
from tests.commands import command
from tests.ray_fixtures import color_shards, one_ray
from tests.shards import write_dataset

__all__ = ["color_shards", "command", "one_ray"]  # fixtures for every folder


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps each file in one process, and all that start Ray in the same one: two of them would wait for each other's cores.

    They come first, so that at the end no process waits for the longest.
    """
    for item in items:
        starts_ray = item.get_closest_marker("ray") is not None
        item.add_marker(pytest.mark.xdist_group("ray" if starts_ray else item.path.as_posix()))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


torch.set_num_threads(1)  # results are bitwise repeatable for one number of threads, and tests share few cores

TINY_COUNTS = {"train": (23, 12, 7, 4), "val": (3, 3, 3, 3), "test": (5, 4, 3, 2)}


def png(rng: np.random.Generator, height: int = 16, width: int = 16) -> bytes:
    """A PNG of noise."""
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def tiny_samples(split: str) -> Iterator[Sample]:
    """Samples of the tiny data set: 4 classes, 2 attributes (every fifth sample has none), a few odd sizes."""
    rng = np.random.default_rng(sorted(TINY_COUNTS).index(split))
    for label, count in enumerate(TINY_COUNTS[split]):
        for n in range(count):
            side = (16, 16, 8, 32)[n % 4]
            attribute = -1 if n % 5 == 4 else n % 2
            yield Sample(f"{split}_{label}_{n}", png(rng, side, 16), "png", label, attribute)


def make_tiny(uri: str, seed: int = 0) -> None:
    """Writes the tiny data set: 46 training images of 4 classes in shards of about 10; ``seed`` orders them."""
    write_dataset(
        uri,
        name="tiny",
        classes=["ant", "bee", "cat", "dog"],
        attributes=["day", "night"],
        splits={split: tiny_samples(split) for split in TINY_COUNTS},
        image_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        seed=seed,
        shot_rule="rank",
        provenance={"source": "tests"},
        shard_size=10,
    )


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of the tiny data set, made once; do not change it."""
    uri = tmp_path_factory.mktemp("tiny") / "shards"
    make_tiny(str(uri))
    return str(uri)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "ltcore-cache"))
