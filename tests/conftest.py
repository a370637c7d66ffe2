"""Generated data that several test files share."""

from __future__ import annotations

import ast
import functools
import gc
import io
import itertools
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
from tests.ray_fixtures import color_shards, end_one_ray, one_ray, shares_ray
from tests.shards import write_dataset

__all__ = ["color_shards", "command", "one_ray"]  # fixtures for every folder


FIRST = (
    "tests/training/test_s3_runs.py",
    "tests/training/test_compiled.py",
    "tests/contracts/test_every_loss_compiles.py",
    "tests/test_outages.py",
    "tests/test_recipes.py",
)
"""Files that take a minute or more, as a whole or by their slow tests: as the last ones, they would have a core to themselves."""


class OneRayAtATime(LoadFileScheduling):
    """Keeps each file in one process, and all tests that start Ray in the same one.

    Two of them would wait for each other's cores. They are one piece of work, and the first: at the end nobody waits for it.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, name = nodeid.partition("::")
        return "Ray" if _ray_marks(file) & {"pytestmark", name.partition("[")[0]} else file


@functools.cache
def _ray_marks(file: str) -> frozenset[str]:
    """Names of what a file marks as starting Ray: tests, or ``pytestmark`` for all of them."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if "mark.ray" not in text:
        return frozenset()
    found: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and "mark.ray" in ast.unparse(node.value):
            found |= {ast.unparse(target) for target in node.targets}
        if isinstance(node, ast.FunctionDef) and any("mark.ray" in ast.unparse(mark) for mark in node.decorator_list):
            found.add(node.name)
    return frozenset(found)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files without a test of the marker that is asked for, as by ``-m slow``.

    Each of the processes would import all the others, and make thousands of tests, to drop every one of them again.
    """
    asked = config.option.markexpr
    if collection_path.suffix != ".py" or not re.fullmatch(r"[a-z]\w*", asked):
        return None
    return True if f"mark.{asked}" not in collection_path.read_text(encoding="utf-8") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what takes long first: Ray, those tests last that share one, then ``FIRST``, then the others in their order."""
    files = {file: place for place, file in enumerate(FIRST)}

    def place(item: pytest.Item) -> tuple[bool, bool, int]:
        ray = item.get_closest_marker("ray") is not None
        return not ray, ray and shares_ray(item), files.get(item.nodeid.partition("::")[0], len(FIRST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Keeps thousands of collected tests out of every later search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ends the Ray that tests share before one comes that may start its own, or needs the cores."""
    if not shares_ray(item):
        end_one_ray()


def pytest_sessionfinish() -> None:
    """Ends the Ray that tests share where no other test came after them."""
    end_one_ray()


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


@pytest.fixture(scope="session", autouse=True)
def _no_power_cuts() -> Iterator[None]:
    """Leaves files to the kernel, which a killed process does not take along: a tenth of the time went into waiting for disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


_numbers = itertools.count()


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ltcore-caches")


@pytest.fixture(autouse=True)
def _own_cache(_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache. Few fill their own: ``tmp_path`` would make thousands of folders, and for each
    look through all that are there."""
    monkeypatch.setenv("LTCORE_CACHE", str(_caches / str(next(_numbers))))
