"""Stripes of three directions."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ltcore import Dataset, plugins
from ltcore.data.shards.source import Sample, Source

CLASSES = ("rising", "level", "falling")
COUNTS = {"train": (24, 12, 6), "val": (4, 4, 4), "test": (5, 5, 5)}
SIZE = 16


@plugins.dataset("stripes", summary="three directions of stripes, long-tailed, no download", paper="made for tests")
class Stripes(Dataset):
    """``stripes``; its imbalance is its own."""

    has_selection = False
    is_generated = True

    def source(self) -> Source:
        """Draws the images."""
        seed = self.cfg.subset_seed
        return Source(
            name="stripes",
            classes=CLASSES,
            image_size=SIZE,
            mean=(0.5, 0.5, 0.5),
            std=(0.3, 0.3, 0.3),
            shot_rule="rank",
            provenance={"source": "example_parts", "imbalance_factor": 4.0},
            splits={split: list(samples(split, seed)) for split in COUNTS},
        )


def samples(split: str, seed: int) -> Iterator[Sample]:
    """Yields the samples of one split."""
    rng = np.random.default_rng((seed, sorted(COUNTS).index(split)))
    y, x = np.mgrid[:SIZE, :SIZE]
    for label, count in enumerate(COUNTS[split]):
        for n in range(count):
            wave = np.sin((y + (label - 1) * x) * 1.5)[:, :, None]
            pixels = np.clip(128 + 90 * wave + rng.normal(0, 20, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            yield Sample(f"{split}_{label}_{n}", out.getvalue(), "png", label)
