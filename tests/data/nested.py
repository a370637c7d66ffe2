"""A small folder of images with a class and an attribute each, for benchmarks that are built from images."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ltcore.data.config import DataConfig
from ltcore.data.glt.choices import GltChoices
from ltcore.data.glt.pool import Pool, open_pool
from tests.data.small import tiny_png

CLASSES, ATTRIBUTES, PER_ATTRIBUTE = ("ant", "bee", "cat"), ("day", "dusk", "night"), (40, 20, 12)
"""Of the first class the first attribute is the most frequent, of the second the second, and so on."""
TOTAL = len(CLASSES) * sum(PER_ATTRIBUTE)


def rows() -> list[tuple[str, str, int]]:
    """(class, attribute, number) of every image."""
    return [
        (name, ATTRIBUTES[(c + rank) % 3], n)
        for c, name in enumerate(CLASSES)
        for rank, count in enumerate(PER_ATTRIBUTE)
        for n in range(count)
    ]


def nested_folder(parent: Path) -> Path:
    """Writes ``class/attribute/n.png``."""
    root = parent / "animals"
    for name, attribute, number in rows():
        file = root / name / attribute / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny_png(number + 1000 * CLASSES.index(name) + 100 * ATTRIBUTES.index(attribute)))
    return root


def flat_folder(parent: Path) -> Path:
    """Writes ``class/attribute-n.png``, where folders do not say the attribute."""
    root = parent / "flat"
    for name, attribute, number in rows():
        file = root / name / f"{attribute}-{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny_png(number + 1000 * CLASSES.index(name) + 100 * ATTRIBUTES.index(attribute)))
    return root


def nested_pool(root: Path, **choices: object) -> tuple[Pool, GltChoices]:
    """Opens the nested folder."""
    chosen = GltChoices(**{"attribute_level": 2, "imbalance_factor": 4.0, "shard_size": 20, **choices})  # type: ignore[arg-type]
    return open_pool(DataConfig(uri=str(root)), chosen)[0], chosen


def file_hashes(folder: Path) -> dict[str, str]:
    """Name -> hash of every file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
