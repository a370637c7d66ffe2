"""What is found when images, parts and classes are compared by pseudo-attributes, as a page shows it.

Source: the analysis of Local Pseudo-Attributes for Long-Tailed Recognition (2022), figure 3. Labels are positions in the
classes of the network, indexes positions in the split that was searched. Shapes: S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ltcore.evaluation.confused import keyed_choice
from ltcore.framing import Framing
from ltcore.shots import SHOT_GROUPS

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Neighbor:
    """A training image that is similar to a query."""

    index: int
    label: int
    similarity: float
    """Cosine of the two descriptions."""


@dataclass(frozen=True)
class Query:
    """An image and what is nearest to it."""

    name: str
    """Path of a file, or key of a sample."""
    canvas_3SS: npt.NDArray[np.uint8]
    """The image as the network sees it."""
    label: int | None
    """None where its class is unknown."""
    neighbors: tuple[Neighbor, ...]
    """The nearest first; () where nothing sets the image apart from the mean class."""

    @property
    def same_class(self) -> int:
        """Returns how many neighbors are of the query's class."""
        return sum(neighbor.label == self.label for neighbor in self.neighbors)


@dataclass(frozen=True)
class Patch:
    """The place in a training image that activates a prototype most."""

    index: int
    label: int
    activation: float
    box: tuple[float, float, float, float]
    """Top, left, height and width as fractions of the image as the network sees it."""


@dataclass(frozen=True)
class Prototype:
    """A pseudo-attribute."""

    number: int
    share: float
    """Of all locations of a class, the mean over the classes."""
    classes: tuple[tuple[int, float], ...]
    """(class, share of its locations) where that is largest."""
    patches: tuple[Patch, ...]
    """From different images, the strongest first."""


@dataclass(frozen=True)
class SharedPart:
    """A prototype that two classes show more often than the mean class does."""

    prototype: int
    share: float
    """Of all that makes the two similar, which includes what both of them lack."""


@dataclass(frozen=True)
class ClassPair:
    """Two classes with similar descriptions."""

    first: int
    second: int
    similarity: float
    """Cosine of the two descriptions."""
    beyond_chance: bool
    """Whether unrelated classes would rarely be as similar."""
    parts: tuple[SharedPart, ...]


@dataclass(frozen=True)
class Retrieval:
    """All that was found with one network on one data set."""

    run: str
    data: str
    data_name: str
    split: str
    """Where neighbors and patches come from."""
    query_split: str
    """Where queries come from; '' for images that were given."""
    classes: tuple[str, ...]
    shot_groups: tuple[str, ...]
    """[C] by the data that the network was trained on."""
    num_images: int
    """Images that were searched."""
    num_prototypes: int
    origin: str
    """Where the prototypes come from, in a sentence."""
    centering: str
    """Form of the descriptions: 'centered', 'raw' or 'pmi'."""
    cosines: bool
    """Whether activations are cosines."""
    image_size: int
    framing: Framing
    queries: tuple[Query, ...]
    prototypes: tuple[Prototype, ...]
    """The most important first; all those that pairs of classes name are among them."""
    num_shown: int
    """Prototypes whose patches are of interest; of the others only the first one is."""
    pairs: tuple[ClassPair, ...]
    borrowed: tuple[ClassPair, ...]
    """Few-shot classes (``first``) with the many-shot classes most similar to them."""


def spread_queries(labels_N: Ints, shot_groups: Sequence[str], per_group: int, split: str) -> list[int]:
    """Returns indexes of images of some classes of each shot group, rising in the order many, medium, few.

    Of each group, classes are spread over its ids; of each class it is the first image by a keyed hash.
    """
    chosen: list[int] = []
    for group in SHOT_GROUPS:
        members = [c for c in np.unique(labels_N).tolist() if shot_groups[c] == group]
        at = np.linspace(0, len(members) - 1, min(per_group, len(members))).round().astype(int).tolist()
        for c in (members[place] for place in at):
            chosen += keyed_choice(np.flatnonzero(labels_N == c).tolist(), 1, split)
    return chosen
