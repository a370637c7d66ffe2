"""The attributes of the classes as lines for a terminal: how many images of which, most frequent first."""

from __future__ import annotations

import numpy as np

from ltcore.data.shards.manifest import Manifest
from ltcore.data.shards.reader import ShardStore

MOST_CLASSES, MOST_ATTRIBUTES = 20, 6
"""That are shown; of what there is more, the number."""
_NAME = 32


def attribute_lines(uri: str, manifest: Manifest, split: str = "train") -> list[str]:
    """Describes the attributes of the images of a split, class by class; [] where no image has one."""
    names, classes = manifest.attributes, manifest.classes
    if not names or split not in manifest.splits or not manifest.split(split).num_samples:
        return []
    store = ShardStore(uri)
    labels_N, attributes_N = store.labels(split), store.attributes(split)
    if not (attributes_N >= 0).any():
        return []
    width = min(max(map(len, classes[:MOST_CLASSES])), _NAME)
    lines = [f"attributes of {split}, most frequent first"]
    for label, name in enumerate(classes[:MOST_CLASSES]):
        own = attributes_N[labels_N == label]
        counts_A = np.bincount(own[own >= 0], minlength=len(names))
        order = [a for a in np.argsort(-counts_A, kind="stable").tolist() if counts_A[a]]
        words = [f"{names[a]} {counts_A[a]:,}" for a in order[:MOST_ATTRIBUTES]]
        if len(order) > MOST_ATTRIBUTES:
            words.append(f"{len(order) - MOST_ATTRIBUTES} more {counts_A[order[MOST_ATTRIBUTES:]].sum():,}")
        if unknown := int((own < 0).sum()):
            words.append(f"unknown {unknown:,}")
        lines.append(f"  {name[:_NAME]:<{width}} {', '.join(words) or 'none'}")
    if len(classes) > MOST_CLASSES:
        lines.append(f"  and {len(classes) - MOST_CLASSES:,} more classes")
    return lines
