"""Data and a quiet environment for tests that start Ray."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from ltcore.data.shards.source import Sample
from ltcore.runtime import cluster
from tests.shards import write_dataset

COLORS = ((220, 40, 40), (40, 200, 60), (50, 70, 220))
COUNTS = {"train": (40, 16, 8), "val": (8, 8, 8), "test_cbl": (6, 6, 6), "test_gbl": (6, 6, 6)}

os.environ.setdefault("RAY_worker_niceness", "0")  # else the tests beside them, on as many cores, come first


def _samples(split: str) -> Iterator[Sample]:
    """Noisy images of one color per class: any network that learns at all is right after a few steps."""
    rng = np.random.default_rng(sorted(COUNTS).index(split))
    for label, count in enumerate(COUNTS[split]):
        for n in range(count):
            pixels = np.array(COLORS[label]) + rng.normal(0, 40, (16, 16, 3))
            out = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
            yield Sample(f"{split}_{label}_{n}", out.getvalue(), "png", label, n % 2)


_shared: list[cluster.Cluster] = []
"""The Ray of ``one_ray`` while it runs."""


@pytest.fixture(scope="module")
def one_ray() -> Iterator[cluster.Cluster]:
    """One local Ray for all that ask for it, whose processes need not be started again for each of them.

    It outlives the module, until a test comes that does not share it: see ``end_one_ray`` in ``conftest.py``.
    """
    if not _shared:
        _shared.append(cluster.connect())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "connect", lambda debug=False: _shared[0])
        patch.setattr(cluster, "disconnect", lambda: None)
        yield _shared[0]


def shares_ray(item: pytest.Item) -> bool:
    """Tells whether a test uses ``one_ray``."""
    return "one_ray" in getattr(item, "fixturenames", ())


def end_one_ray() -> None:
    """Ends the Ray of ``one_ray``, if it runs."""
    if _shared:
        _shared.clear()
        cluster.disconnect()


@pytest.fixture(scope="session")
def color_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of 64 training images of 3 long-tailed classes in several shards."""
    uri = tmp_path_factory.mktemp("colors") / "shards"
    write_dataset(
        str(uri),
        name="colors",
        classes=["red", "green", "blue"],
        attributes=["even", "odd"],
        splits={split: _samples(split) for split in COUNTS},
        image_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        seed=0,
        shot_rule="rank",
        provenance={"source": "tests"},
        shard_size=12,
    )
    return str(uri)
