"""Generated data that several test files share."""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from xdist.scheduler import LoadFileScheduling

from ltcore.data.shards.source import Sample
from tests.commands import command
from tests.paths import ROOT
from tests.ray_fixtures import color_shards, one_ray
from tests.shards import write_dataset

__all__ = ["color_shards", "command", "one_ray"]  # fixtures for every folder


class OneRayAtATime(LoadFileScheduling):
    """Keeps each file in one process, and all files that start Ray in the same one.

    Two of them would wait for each other's cores. They are one piece of work, and the first: at the end nobody waits for it.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "Ray" if _starts_ray(file) else file


@functools.cache
def _starts_ray(file: str) -> bool:
    return "mark.ray" in (ROOT / file).read_text(encoding="utf-8")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files without a test of the marker that is asked for, as by ``-m slow``.

    Each of the processes would import all the others, and make thousands of tests, to drop every one of them again.
    """
    asked = config.option.markexpr
    if collection_path.suffix != ".py" or not re.fullmatch(r"[a-z]\w*", asked):
        return None
    return True if f"mark.{asked}" not in collection_path.read_text(encoding="utf-8") else None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneRayAtATime:
    """Replaces xdist's distribution of files."""
    return OneRayAtATime(config, log)


os.environ.setdefault("LTCORE_STORAGE_PATIENCE_S", "0")  # a disk or a store that a test disturbs stays so
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
