"""The pairs of classes that a test confuses most, each with a few of the images, so that a reader can look at them.

What is kept does not grow with the images or the classes: the pairs that are most frequent, and of each the first images by
a keyed hash, which are a fair sample of them and the same on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ltcore.hashing import hash64

if TYPE_CHECKING:
    from ltcore.evaluation.confusion_file import ConfusionCells  # imports torch, which readers of records do without

MAX_PAIRS = 20
MAX_EXAMPLES = 8
"""Images per pair."""
_SCANNED = 1024
"""Of a pair with more images, those hashed are spread evenly over them, so that a huge test takes no time."""


@dataclass(frozen=True)
class ConfusedPair:
    """Samples of one class that were taken for another."""

    label: int
    prediction: int
    count: int
    examples: tuple[int, ...]
    """Indexes of some of them inside their split."""


def confused_pairs(confusion: ConfusionCells, cells_N: npt.NDArray[np.int64], split: str) -> list[ConfusedPair]:
    """Returns the most frequent confusions with examples, the first by class id where equally frequent.

    ``cells_N`` is, for each sample of the split, label * num_classes + prediction.
    """
    pairs = []
    for cell in confusion.confused(MAX_PAIRS):
        members = np.flatnonzero(cells_N == cell.label * confusion.num_classes + cell.prediction).tolist()
        examples = keyed_choice(members, MAX_EXAMPLES, split)
        pairs.append(ConfusedPair(cell.label, cell.prediction, cell.count, examples))
    return pairs


def keyed_choice(indexes: Sequence[int], most: int, split: str) -> tuple[int, ...]:
    """Returns up to ``most`` of the indexes into a split, chosen by a hash of split and index, rising."""
    some = indexes[:: max(1, len(indexes) // _SCANNED)]
    return tuple(sorted(sorted(some, key=lambda index: hash64("example", split, index))[:most]))
