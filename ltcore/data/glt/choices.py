"""What can be chosen about a generalized long-tailed benchmark that is built from images."""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.data.shards.reencode import Reencode
from ltcore.errors import at_least, one_of
from ltcore.uris import check_uris

PROFILES = ("exponential", "pareto", "step")
"""Forms of the tail over classes."""
SHORTAGES = ("refuse", "cap")
FIT = "fit"
"""In place of a size: the largest that the images allow."""
RANDOM = "random"
"""Features that need no network: a random projection of the pixels."""
MAX_GROUPS = 64
MOST_TESTS = 20
"""Images of each class and attribute in test_gbl where no number is given, as in ImageNet-GLT; fewer where there are fewer."""


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """How attributes are found where none are given: clusters of features inside each class, merged to groups."""

    features: str
    """'random', a checkpoint or run directory, or the name of a backbone (``ltcore methods``)."""
    weights: str = "default"
    """Of that backbone, as ``model.weights`` of a run; no effect on other features."""
    groups: int = 3
    """Attributes of each class, 2 to 64, from the largest to the smallest."""
    clusters: int = 6
    """k-means clusters of each class, a multiple of ``groups``."""
    image_size: int | None = None
    """Side in pixels of the square that features are computed of; None: what the features are used to."""

    def __post_init__(self) -> None:
        check_uris(features=self.features, weights=self.weights)
        if not 2 <= self.groups <= MAX_GROUPS:
            raise ValueError(f"groups must lie in 2..{MAX_GROUPS}, got {self.groups}")
        if self.clusters < self.groups or self.clusters % self.groups:
            raise ValueError(f"clusters must be a multiple of groups={self.groups}, got {self.clusters}")
        at_least(1, image_size=self.image_size)


@dataclass(frozen=True, kw_only=True)
class GltChoices:
    """Sizes and quotas of the benchmark, and where its attributes come from."""

    attributes_file: str | None = None
    """List, csv, tsv or json of paths and attributes; None: the images' own, or those that are discovered."""
    attribute_level: int | None = None
    """Folder level, from 1 below root and split, whose name is the attribute; the other levels are the class."""
    discovery: Discovery | None = None
    pool: tuple[str, ...] = ()
    """Splits of the source whose images are used; (): train where the source brings a test, else all."""
    profile: str = "exponential"
    """One of ``PROFILES``; no effect beside ``class_counts``."""
    imbalance_factor: float = 100.0
    """Largest over smallest training class; no effect beside ``class_counts``."""
    class_counts: tuple[int, ...] = ()
    """Training images by class rank, the largest first; (): ``profile`` gives them."""
    largest: int | str | None = None
    """Training images of the largest class, or 'fit'; None: the given counts as they are, else 'fit'."""
    quotas: tuple[int, ...] = ()
    """Shares of the attributes of a class, most frequent first; (): usual ones of their number."""
    train_cbl: int | None = None
    """Images per class of train_cbl; None: the mean class of train, or fewer where a class has fewer."""
    val: int | None = None
    """Images per class, balanced over attributes; None: half of a test."""
    val_glt: int = 0
    """Images of a validation that is distributed as train instead, as in ImageNet-GLT; 0 for none."""
    test: int | None = None
    """Images per class of test_cbl and of test_gbl; None: ``MOST_TESTS`` per attribute, or what leaves half to training."""
    shortage: str = "refuse"
    """What becomes of classes that have fewer images of an attribute than their sizes and quotas want: 'refuse' them, or 'cap'
    the quota at what is there, as in ImageNet-GLT."""
    test_glt: int = 0
    """Images of a third test that is distributed as train; 0 for none."""
    seed: int = 0
    """Of the selection, the clusters and the order in the shards."""
    shard_size: int = 1000
    """Most images in one tar."""
    reencode: Reencode | None = None
    """How images are encoded anew; None: the files go into the shards as they are."""

    def __post_init__(self) -> None:
        one_of(PROFILES, profile=self.profile)
        one_of(SHORTAGES, shortage=self.shortage)
        at_least(1, imbalance_factor=self.imbalance_factor, train_cbl=self.train_cbl, val=self.val, test=self.test)
        at_least(0, test_glt=self.test_glt, val_glt=self.val_glt, seed=self.seed)
        at_least(1, shard_size=self.shard_size, attribute_level=self.attribute_level)
        if self.largest not in (None, FIT) and (not isinstance(self.largest, int) or self.largest < 1):
            raise ValueError(f"largest must be a number of images >= 1 or {FIT!r}, got {self.largest!r}")
        if any(quota < 1 for quota in self.quotas) or list(self.quotas) != sorted(self.quotas, reverse=True):
            raise ValueError(f"quotas must be whole numbers >= 1 that do not rise, as 7,2,1; got {list(self.quotas)}")
        if list(self.class_counts) != sorted(self.class_counts, reverse=True) or min(self.class_counts, default=1) < 1:
            raise ValueError("class_counts must be whole numbers >= 1 that do not rise")
        if self.shortage == "cap" and self.fits:
            raise ValueError(
                "shortage=cap needs sizes that are given, as no quota is short of images where these are to fit"
            )
        for name in ("test_glt", "val_glt"):
            if self.shortage == "cap" and getattr(self, name):
                raise ValueError(
                    f"shortage=cap does not go with {name}, which is to be distributed as train was meant to be"
                )
        if self.val_glt and self.val is not None:
            raise ValueError(f"val={self.val} has no effect beside val_glt={self.val_glt}; give one of them")
        given = [self.attributes_file is not None, self.attribute_level is not None, self.discovery is not None]
        if sum(given) > 1:
            raise ValueError("attributes come from one place: a file, a folder level, or discovery")

    @property
    def fits(self) -> bool:
        """Tells whether the size of the largest class follows from the images."""
        return self.largest == FIT or (self.largest is None and not self.class_counts)
