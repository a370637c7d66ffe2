"""What can be chosen about the data: where it is, how it is made long-tailed, and how it reaches the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.errors import at_least, one_of, within
from ltcore.framing import CROP_MODES, INTERPOLATIONS
from ltcore.uris import check_uris

LOADERS = ("auto", "cache", "threads", "ray")
STREAMS = ("threads", "ray")
"""Loaders that decode images in every epoch."""
RESIDENT = ("auto", "on", "off")
AUTO, ON, OFF = RESIDENT
SUBSETS = ("auto", "keyed", "legacy")
PUBLISHED = ("cifar10", "cifar100")
"""Sources of whose long-tailed images there is a published selection."""
CLASSES_FROM = ("depth", "path")
SELECTION = ("imbalance_factor", "subset")
"""Keys that say which of a source's training images are used."""
COLUMN_KEYS = ("image_column", "label_column", "split_column", "attribute_column")
"""Keys that say how a table is read."""
READING_KEYS = ("classes_from", "max_bad_samples", "label_key", *COLUMN_KEYS)
"""Keys that say how images of any place are read; they do not choose any."""
PLACE_KEYS = ("images", "annotations")
"""Keys that say where the files of a benchmark are that ``uri`` names."""
MAX_IMAGE_SIZE = 4096
SMALLEST_STD = 1e-6


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The ``data`` section of a run."""

    uri: str = "digits-glt"
    """Shards with a manifest (folder, ``s3://``, ``gs://``), a folder or zip of images, a list of ``path label`` lines, a csv
    or tsv with a header, json as iNaturalist's, parquet with images or paths, tars of others (a file, a folder, a pattern such as
    ``train-{000..099}.tar``), or the name of a source that ``ltcore methods`` lists. All but the last may lie in a store as
    well (``s3://``, ``gs://``, ``abfs://``, ``hf://datasets/...``), single files also in the web."""
    images: str | None = None
    """Folder or zip with the images of the benchmark that ``uri`` names. null: of cifar100-glt and
    mnist-glt, the original files, which are downloaded."""
    annotations: str | None = None
    """Folder with the annotation files of the benchmark that ``uri`` names: of mscoco-glt."""
    classes_from: str | None = None
    """Class of an image in nested folders: ``depth`` takes the first folder level (below ``train/``, ``val/`` and ``test/``
    where there are these), and everything below it belongs to it; ``path`` takes all levels, so ``cats/siamese/1.jpg`` is
    of class ``cats/siamese``. null: images lie directly in the folder of their class, and deeper ones are refused. Only for
    a folder or zip of images without list files."""
    image_column: str | None = None
    """Column of a table (csv, tsv, parquet) with the paths of the images, relative to the folder of the table, or, in parquet,
    with the images themselves. null takes the one with a usual name: image, path, file, filename, file_name or image_path."""
    label_column: str | None = None
    """Column of a table with the classes, as names or whole numbers. null: label, class, category or target."""
    split_column: str | None = None
    """Column of a table that says train, val or test. null: split, where there is such a column; else a test and a validation
    split are taken out of the training images, as of a folder."""
    attribute_column: str | None = None
    """Column of a table with a second property of each image, such as its background, beside the class; empty cells are
    unknown. null: attribute, where there is such a column."""
    train_split: str = "train"
    """Name of the split that is trained on. ``train_cbl`` of a GLT data set, whose classes are balanced, gives the ALT
    protocol; shot groups stay those of ``train``."""
    imbalance_factor: float | None = None
    """Largest over smallest class of the training split, >= 1; the class sizes fall exponentially. None keeps the data
    as they are, and so does other data than a recipe's own, unless this key is given beside it. Refused for shards that were
    made otherwise; no effect on digits-glt, whose imbalance is its own. Of cifar100-glt, None is 50, of
    mnist-glt 100, of mscoco-glt 200."""
    subset: str = "auto"
    """Which images the smaller classes keep: ``keyed`` takes those with the smallest keyed hash; ``legacy`` repeats the
    published numpy selection, which needs the original order of the images (cifar10 and cifar100 only); ``auto`` is legacy of
    these two and keyed of all others, of CIFAR as a folder, too. No effect without ``imbalance_factor``."""
    subset_seed: int = 0
    """Seed of that selection and of the order inside the shards."""
    val_per_class: int = 10
    """Images per class for the validation split, >= 0. With ``imbalance_factor`` they are taken from the images that the
    long-tailed set leaves out, so a class that it keeps whole has none; without, at most a fifth of each class is carved
    out of it. Images without any split give a fifth of each class to a test first. Small classes give one image
    instead of none: to the test from 2 images on, to validation from 3 on; a class of one image stays in training. Which
    images these are depends on their paths and ``subset_seed``. Of digits-glt and mnist-glt: digits, each drawn in all colors; of
    cifar100-glt: a fifth of it, rounded up, of each attribute. No effect where the data bring a validation split."""
    image_size: int | None = None
    """Side in pixels of the square to which every image, or each of its crops, is brought when it is decoded. null takes
    what pretrained weights expect (``model.weights``), else the manifest's."""
    mean: tuple[float, ...] | None = None
    """Mean of red, green and blue, each in [0, 1], that is taken from pixel values. null: what pretrained weights expect, else
    that of the data set's training images."""
    std: tuple[float, ...] | None = None
    """Standard deviations of the three, each in [1e-6, 1], by which pixel values are then divided. null: as for ``mean``."""
    interpolation: str | None = None
    """How images are resized: ``bilinear`` or ``bicubic``, with antialiasing; whole ones by PIL, as timm does, and random crops
    of originals by torch, which is faster. null: what pretrained weights expect above 64 px, else bilinear, all by torch. No
    effect on what has the right size already."""
    crop_fraction: float | None = None
    """Share of the side that evaluation sees, in (0, 2]: an image's short side is resized to floor(image_size / crop_fraction),
    then the center of image_size px is cut out; above 1 black is added around it. null: what pretrained weights expect above
    64 px, else 1. Training sees the same, but for random resized crops of the originals (``augment.crop_from``), which never
    use it."""
    crop_mode: str | None = None
    """Which side is resized to that: ``center`` (the short one), ``squash`` (both, so nothing is lost and shapes change) or
    ``border`` (the long one; the mean color is added beside the short one). null: what pretrained weights expect above 64 px,
    else center. No effect on square images, nor on random crops of originals."""
    loader: str = "auto"
    """How images reach the loop: ``cache`` (decoded once per node into a memory-mapped array), ``threads`` (read and
    decoded by threads of the worker, every epoch anew), ``ray`` (the same in Ray Data tasks on any node), or
    ``auto``: the cache if it fits, else threads. All give the same batches, bit for bit. Where random resized crops are
    cut out of large originals (``augment.crop_from``) their boxes are the same in all loaders, but the cache cuts them out
    of smaller copies, so ``auto`` takes threads."""
    resident: str = "auto"
    """Whether the decoded images of the training split and of ``val`` stay in the memory of the device, where each worker
    gathers its batches, so that no images cross in a step: ``auto`` (on a GPU, if they take at most a quarter of its memory
    that is free when data are opened, or of a worker's part of it), ``on`` (on the CPU too; an error if they exceed what is
    free) or ``off``. They take 3 image_size^2 bytes per image. The batches are the same, bit for bit. ``on`` needs the cache:
    with ``loader`` threads or ray, and where crops are cut out of originals (``augment.crop_from``), it is refused, and
    ``auto`` has no effect. Tests, which are read once or twice in a run, come from the host."""
    cache_px: int | None = None
    """Short side in pixels, >= 1, to which the cache shrinks such originals; null: image_size. Larger keeps small crops
    sharper and takes more disk. No effect unless ``loader`` is cache and crops are cut out of originals."""
    lanes: int = 64
    """An epoch is cut into gcd(lanes, batch size) lanes; the number of workers must divide it, and every such
    number gives the same global batches."""
    cache_bytes: int = 20 * 2**30
    """Most bytes that decoded canvases, and, apart from them, raw shards of remote data, may take on a node's disk; the
    least recently used go first."""
    prefetch_steps: int = 8
    """How many steps ahead of the loop images are read, decoded and cropped, >= 1. No effect on canvases in the cache."""
    max_bad_samples: int = 0
    """How many undecodable images a worker tolerates in the training split. 0 stops at the first. Otherwise each is
    replaced, under its own index and label, by another image of its class (chosen by a key, so every epoch, worker and
    loader takes the same one), and ``run.json`` counts them. Never applies to other splits of shards, where a number must
    rest on every sample, nor to damaged shards. When shards are made of a folder or zip of images, it is how many broken
    images of all splits are left out, as if their files were not there, and named in the manifest. Samples in tars of
    others without an image or label count too and are left out."""

    label_key: str | None = None
    """Where the label stands in the ``.json`` of a sample in tars of others, a path with dots; null: in its ``.cls``
    or, where it has none, under ``label`` in its ``.json``. Refused for data that are no such tars."""

    @property
    def chosen_subset(self) -> str:
        """Returns ``subset``, or what ``auto`` stands for."""
        if self.subset != "auto":
            return self.subset
        return "legacy" if self.uri in PUBLISHED else "keyed"

    def __post_init__(self) -> None:
        if not self.uri:
            raise ValueError(
                "uri must name shards, a folder, zip or table of images, tars, or a source; got an empty text"
            )
        check_uris(uri=self.uri)
        if self.uri.startswith("pipe:"):
            raise ValueError(
                "uri is a command (pipe:), and commands are not run for data. Give the place of the tars, a path or s3://, "
                "or download them first"
            )
        if not self.train_split or self.train_split.startswith("test"):
            raise ValueError(f"train_split must name a split that is not a test, got {self.train_split!r}")
        one_of(SUBSETS, subset=self.subset)
        one_of(CLASSES_FROM, classes_from=self.classes_from)
        one_of(LOADERS, loader=self.loader)
        one_of(RESIDENT, resident=self.resident)
        if self.resident == ON and self.loader in STREAMS:
            raise ValueError(
                f"resident=on does not go with data.loader={self.loader}, which keeps no decoded images. Set "
                "data.loader=cache or data.resident=off"
            )
        one_of(INTERPOLATIONS, interpolation=self.interpolation)
        one_of(CROP_MODES, crop_mode=self.crop_mode)
        within(f"[1, {MAX_IMAGE_SIZE}]", image_size=self.image_size, cache_px=self.cache_px)
        within("(0, 2]", crop_fraction=self.crop_fraction)
        self._check_normalization()
        at_least(1, imbalance_factor=self.imbalance_factor, lanes=self.lanes, prefetch_steps=self.prefetch_steps)
        at_least(
            0, val_per_class=self.val_per_class, cache_bytes=self.cache_bytes, max_bad_samples=self.max_bad_samples
        )

    def _check_normalization(self) -> None:
        for name, values, low in (("mean", self.mean, 0.0), ("std", self.std, SMALLEST_STD)):
            if values is not None and (len(values) != 3 or not all(low <= value <= 1 for value in values)):
                raise ValueError(
                    f"{name} must be three numbers in [{low:g}, 1], of red, green and blue, got {','.join(map(str, values))}"
                )
