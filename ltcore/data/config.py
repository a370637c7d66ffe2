"""What can be chosen about the data: where it is, how it is made long-tailed, and how it reaches the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.errors import refuse_userinfo

LOADERS = ("auto", "cache", "threads", "ray")
SUBSETS = ("keyed", "legacy")
SELECTION = ("imbalance_factor", "subset")
"""Keys that say which of a source's training images are used."""
MAX_IMAGE_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The ``data`` section of a run."""

    uri: str = "digits-glt"
    """Shards with a manifest (folder, ``s3://``, ``gs://``), a folder or zip of images, or the name of a source
    that ``ltcore methods`` lists."""
    train_split: str = "train"
    """Name of the split that is trained on. ``train_cbl`` of a GLT data set, whose classes are balanced, gives the ALT
    protocol; shot groups stay those of ``train``."""
    imbalance_factor: float | None = None
    """Largest over smallest class of the training split, >= 1; the class sizes fall exponentially. None keeps the data
    as they are, and so does other data than a recipe's own, unless this key is given beside it. Refused for shards that were
    made otherwise; no effect on digits-glt, whose imbalance is its own."""
    subset: str = "keyed"
    """Which images the smaller classes keep: ``keyed`` takes those with the smallest keyed hash; ``legacy`` repeats the
    published numpy selection (cifar10 and cifar100 only). No effect without ``imbalance_factor``."""
    subset_seed: int = 0
    """Seed of that selection and of the order inside the shards."""
    val_per_class: int = 10
    """Images per class for the validation split, >= 0. With ``imbalance_factor`` they are taken from the images that the
    long-tailed set leaves out, so a class that it keeps whole has none; without, at most a fifth of each class is carved
    out of it. Of digits-glt: digits, each drawn in all colors. No effect where the data bring a validation split."""
    image_size: int | None = None
    """Side in pixels of the square to which every image, or each of its crops, is brought when it is decoded. None takes
    the manifest's."""
    loader: str = "auto"
    """How images reach the loop: ``cache`` (decoded once per node into a memory-mapped array), ``threads`` (read and
    decoded by threads of the worker, every epoch anew), ``ray`` (the same in Ray Data tasks on any node), or
    ``auto``: the cache if it fits, else threads. All give the same batches, bit for bit. Where random resized crops are
    cut out of large originals (``augment.crop_from``) their boxes are the same in all loaders, but the cache cuts them out
    of smaller copies, so ``auto`` takes threads."""
    cache_px: int | None = None
    """Short side in pixels, >= 1, to which the cache shrinks such originals; null: the canvas. Larger keeps small crops
    sharper and takes more disk. No effect unless ``loader`` is cache and crops are cut out of originals."""
    lanes: int = 64
    """The epoch plan is cut into gcd(lanes, batch size) lanes; the number of workers must divide it, and every such
    number gives the same global batches."""
    cache_bytes: int = 20 * 2**30
    """Most bytes that decoded canvases, and, apart from them, raw shards of remote data, may take on a node's disk; the
    least recently used go first."""
    stream_window_steps: int = 8
    """How many steps ahead of the loop images are read, decoded and cropped, >= 1. No effect on canvases in the cache."""
    max_bad_samples: int = 0
    """How many undecodable images a worker tolerates in the training split. 0 stops at the first. Otherwise each is
    replaced, under its own index and label, by another image of its class (chosen by a key, so every epoch, worker and
    loader takes the same one), and ``run.json`` counts them. Never applies to other splits, where a number must
    rest on every sample, nor to damaged shards."""

    def __post_init__(self) -> None:
        if not self.uri:
            raise ValueError("uri must name shards, a folder or zip of images, or a source; got an empty text")
        refuse_userinfo(uri=self.uri)
        if not self.train_split or self.train_split.startswith("test"):
            raise ValueError(f"train_split must name a split that is not a test, got {self.train_split!r}")
        if self.imbalance_factor is not None and not 1 <= self.imbalance_factor < float("inf"):
            raise ValueError(f"imbalance_factor must be a number >= 1 or null, got {self.imbalance_factor}")
        if self.subset not in SUBSETS:
            raise ValueError(f"subset must be one of {', '.join(SUBSETS)}, got {self.subset!r}")
        if self.val_per_class < 0:
            raise ValueError(f"val_per_class must be >= 0, got {self.val_per_class}")
        if self.image_size is not None and not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be between 1 and {MAX_IMAGE_SIZE} pixels or null, got {self.image_size}")
        if self.loader not in LOADERS:
            raise ValueError(f"loader must be one of {', '.join(LOADERS)}, got {self.loader!r}")
        if self.cache_px is not None and not 1 <= self.cache_px <= MAX_IMAGE_SIZE:
            raise ValueError(f"cache_px must be between 1 and {MAX_IMAGE_SIZE} pixels or null, got {self.cache_px}")
        if self.lanes < 1:
            raise ValueError(f"lanes must be >= 1, got {self.lanes}")
        if self.cache_bytes < 0:
            raise ValueError(f"cache_bytes must be >= 0, got {self.cache_bytes}")
        if self.stream_window_steps < 1:
            raise ValueError(f"stream_window_steps must be >= 1, got {self.stream_window_steps}")
        if self.max_bad_samples < 0:
            raise ValueError(f"max_bad_samples must be >= 0, got {self.max_bad_samples}")
