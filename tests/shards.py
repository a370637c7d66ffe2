"""Data sets that a test writes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ltcore.batch import Batch
from ltcore.data.shards import writer
from ltcore.data.shards.manifest import Manifest
from ltcore.data.shards.source import Source


def write_dataset(
    uri: Path | str,
    *,
    name: str = "toy",
    classes: Iterable[str],
    attributes: Iterable[str] = (),
    mean: Iterable[float] = (0.5,) * 3,
    std: Iterable[float] = (0.25,) * 3,
    shot_rule: str = "count",
    provenance: dict[str, Any] | None = None,
    seed: int = 0,
    shard_size: int = 1000,
    progress: Callable[[str], None] | None = None,
    **fields: Any,
) -> Manifest:
    """Write a source with these fields, and defaults for what a test does not care about."""
    source = Source(
        name=name,
        classes=tuple(classes),
        attributes=tuple(attributes),
        mean=tuple(mean),
        std=tuple(std),
        shot_rule=shot_rule,
        provenance=provenance or {},
        **fields,
    )
    return writer.write_dataset(str(uri), source, seed=seed, shard_size=shard_size, progress=progress)


def same(first: Batch, second: Batch) -> bool:
    return all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("images_VBCHW", "labels_B", "index_B", "copy_B")
    )
