"""The class sizes of a data set as lines for a terminal: what is long-tailed about it, and what measures the tail."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ltcore.data.shards.manifest import Manifest
from ltcore.shots import SHOT_GROUPS
from ltcore.text import printable

MOST_ROWS = 12
"""Classes that get a row each; more of them share rows by rank."""
TINY = 5
"""Training images below which a class is called tiny: each changes what is learned of it by a fifth or more."""
_BAR, _NAME = 40, 28
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class _Row:
    name: str
    size: float
    """Mean training images of its classes."""
    note: str


def class_histogram(manifest: Manifest, split: str = "train") -> list[str]:
    """Describes the training classes from largest to smallest, a bar each, and the splits that measure them.

    Bars are proportional to the number of images. Returns [] where the split has no image.
    """
    counts = manifest.class_counts.get(split, ())
    if not any(counts):
        return []
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    rows = _rows(manifest, counts, order)
    width = max(len(row.name) for row in rows)
    largest = max(row.size for row in rows)
    lines = [_headline(manifest, split, counts, order)]
    lines += [f"  {row.name:<{width}} {_bar(row.size / largest)} {row.note}".rstrip() for row in rows]
    groups = (
        f"{manifest.shot_groups.count(group)} {group} ({_images(counts, manifest.shot_groups, group):,} images)"
        for group in SHOT_GROUPS
    )
    lines.append(f"  shot groups by {_RULES[manifest.shot_rule]}: {', '.join(groups)}")
    lines += _small(manifest, counts, order)
    lines += [f"  {_use(manifest, name)}" for name in manifest.splits if name.startswith(("val", "test"))]
    return lines


_RULES = {
    "count": "number of images (many: above 100, few: below 20)",
    "rank": "rank (a third of the classes each)",
    "glt": "rank (as on ImageNet-GLT and MSCOCO-GLT)",
    "given": "the files' own word",
}


def _headline(manifest: Manifest, split: str, counts: Sequence[int], order: Sequence[int]) -> str:
    first, last = order[0], order[-1]
    factor = f"imbalance factor {counts[first] / counts[last]:.4g}" if counts[last] else "some classes empty"
    names = [_short(manifest.classes[c]) for c in (first, last)]
    return (
        f"{printable(manifest.name)}, {split}: {len(counts)} classes, {sum(counts):,} images; largest {names[0]} "
        f"({counts[first]:,}), smallest {names[1]} ({counts[last]:,}), {factor}"
    )


def _rows(manifest: Manifest, counts: Sequence[int], order: Sequence[int]) -> list[_Row]:
    if len(order) <= MOST_ROWS:
        return [_Row(_short(manifest.classes[c]), counts[c], f"{counts[c]:,} {manifest.shot_groups[c]}") for c in order]
    edges = [round(i * len(order) / MOST_ROWS) for i in range(MOST_ROWS + 1)]
    rows = []
    for low, high in itertools.pairwise(edges):
        part = [counts[c] for c in order[low:high]]
        note = f"{part[0]:,}" if part[0] == part[-1] else f"{part[0]:,} to {part[-1]:,}"
        rows.append(_Row(f"classes {low + 1}-{high} by size", sum(part) / len(part), note))
    return rows


def _small(manifest: Manifest, counts: Sequence[int], order: Sequence[int]) -> list[str]:
    """Names the classes without training images, and those with so few that each image counts."""
    lines = []
    for what, fits in (
        ("no training image", lambda n: n == 0),
        (f"fewer than {TINY} training images", lambda n: 0 < n < TINY),
    ):
        found = [_short(manifest.classes[c]) for c in reversed(order) if fits(counts[c])]
        if found:
            more = ", ..." if len(found) > TINY else ""
            lines.append(f"  {len(found)} of {len(counts)} with {what}: {', '.join(found[:TINY])}{more}")
    return lines


def _use(manifest: Manifest, split: str) -> str:
    """Says how many images a split measures with, of how many classes, and where they come from."""
    counts = manifest.class_counts[split]
    total, present = sum(counts), sum(1 for n in counts if n)
    if not total:
        return f"{split}: no image"
    sizes = sorted(n for n in counts if n)
    each = f"{sizes[0]} per class" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]} per class"
    which = "all" if present == len(counts) else f"{present} of"
    origin = manifest.provenance.get("val" if split.startswith("val") else "test")
    whence = f" ({printable(origin)})" if isinstance(origin, str) else ""
    return f"{split}: {total:,} images of {which} {len(counts)} classes, {each}{whence}"


def _images(counts: Sequence[int], groups: Sequence[str], group: str) -> int:
    return sum(n for n, g in zip(counts, groups, strict=True) if g == group)


def _bar(fraction: float) -> str:
    """Draws a bar of eighths of a cell; a class with any image shows at least one."""
    eighths = max(math.ceil(fraction * _BAR * 8), 0)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _NAME else f"{shown[: _NAME - 3]}..."
