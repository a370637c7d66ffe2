"""``digits-glt``: real handwritten digits in colors, long-tailed over classes and inside classes; no network needed.

The 1,797 digits of 8x8 pixels that scikit-learn carries (UCI "Optical Recognition of Handwritten Digits", test part) are
drawn at 16x16 in one of ten pairs of ink and paper. The pair is the attribute: 7 of 10 training images of a digit wear
the digit's own pair, 2 of 10 the next one, 1 of 10 any other; test_gbl shows every test digit in all ten. A classifier that
learns the pair in place of the shape does well on test_cbl and falls on test_gbl.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ltcore.data.datasets.dataset import Dataset
from ltcore.data.datasets.glt import QUOTAS, RENDERED, GltSizes, Picks, glt_splits
from ltcore.data.datasets.longtail import IntArray, profile
from ltcore.data.shards.manifest import REPEATS
from ltcore.data.shards.source import Sample, Source
from ltcore.errors import ConfigError

SIZE = 16  # as large as the 8x8 originals need, so that a digit fits into ResNet-8's receptive field of 25 pixels
MARGIN = 2  # around the digit, so that a shifted crop cuts no stroke
LARGEST_CLASS = 110
IMBALANCE_FACTOR = 20.0
TEST_PER_CLASS = 50
MAX_VAL_PER_CLASS = 18  # what the 178 zeros leave beside 110 for training and 50 for the tests

RGB = tuple[int, int, int]
COLORS: dict[str, tuple[RGB, RGB]] = {
    "red-on-mint": ((120, 10, 15), (226, 247, 240)),
    "brown-on-sky": ((112, 50, 5), (226, 240, 250)),
    "olive-on-lilac": ((84, 84, 5), (238, 232, 250)),
    "green-on-rose": ((10, 88, 25), (250, 230, 238)),
    "teal-on-peach": ((5, 86, 84), (250, 236, 226)),
    "blue-on-cream": ((12, 40, 125), (250, 246, 224)),
    "indigo-on-lime": ((58, 22, 125), (240, 250, 226)),
    "magenta-on-aqua": ((120, 8, 100), (226, 247, 249)),
    "black-on-white": ((15, 15, 15), (245, 245, 245)),
    "gray-on-yellow": ((75, 75, 85), (252, 246, 200)),
}
"""Attribute name -> ink and paper; the pair at place c is the majority of class c.

Ink is always dark and paper light: with inverted or fully saturated pairs a small network learns the pair alone, and every
method stays at chance on test_gbl and on val.
"""


class DigitsGlt(Dataset):
    """``digits-glt``; its imbalance is part of it."""

    has_selection = False
    is_generated = True

    def source(self) -> Source:
        return digits_glt(seed=self.cfg.subset_seed, val_per_class=self.cfg.val_per_class)


def digits_glt(*, seed: int, val_per_class: int) -> Source:
    """Returns the data set for one choice of its parameters; the same arguments give the same bytes.

    Args:
        seed: chooses which digits go where and which color a training digit has.
        val_per_class: validation digits per class, each drawn in all colors; 0..18, 0 makes no val split.
    """
    if val_per_class > MAX_VAL_PER_CLASS:
        raise ConfigError(f"data.val_per_class={val_per_class}: digits-glt has room for at most {MAX_VAL_PER_CLASS}.")
    from sklearn import __version__ as sklearn_version
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels_N: IntArray = digits.target.astype(np.int64)
    coverage_NHW = np.stack([enlarge(image) for image in digits.images / 16.0])
    keys = [f"digit{i:04d}" for i in range(len(labels_N))]
    train_C = profile(LARGEST_CLASS, 10, IMBALANCE_FACTOR)
    sizes = GltSizes(train_C=tuple(train_C), train_cbl=round(sum(train_C) / 10), val=val_per_class, test=TEST_PER_CLASS)
    picks = glt_splits(keys, labels_N, None, sizes, num_attributes=len(COLORS), seed=seed)

    def samples(chosen: Picks) -> Iterator[Sample]:
        for position, attribute in chosen.tolist():
            yield Sample(
                key=f"{keys[position]}-{list(COLORS)[attribute]}",
                image=png(paint(coverage_NHW[position], attribute)),
                ext="png",
                label=int(labels_N[position]),
                attribute=attribute,
            )

    mean, std = _statistics(paint(coverage_NHW[p], a) for p, a in picks["train"])
    return Source(
        name="digits-glt",
        classes=tuple(str(c) for c in range(10)),
        attributes=tuple(COLORS),
        splits={name: list(samples(chosen)) for name, chosen in picks.items() if len(chosen)},
        image_size=SIZE,
        mean=mean,
        std=std,
        shot_rule="rank",
        provenance={
            "source": f"scikit-learn {sklearn_version} load_digits (UCI optical recognition of handwritten digits)",
            "imbalance_factor": IMBALANCE_FACTOR,
            "attribute_quotas": list(QUOTAS),
            "train_per_class": train_C,
            "train_cbl_per_class": sizes.train_cbl,
            "val_digits_per_class": sizes.val,
            "test_digits_per_class": sizes.test,
            REPEATS: {split: len(COLORS) for split in RENDERED if len(picks[split])},
            "note": "train and train_cbl share a pool of digits; no digit of val or of the tests is in any other split, "
            "but test_cbl shows each test digit once and test_gbl in every color",
        },
    )


def _statistics(images: Iterable[NDArray[np.uint8]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel."""
    pixels_NHW3 = np.stack(list(images)) / 255.0
    mean_3, std_3 = pixels_NHW3.mean((0, 1, 2)), pixels_NHW3.std((0, 1, 2))
    return tuple(round(float(x), 4) for x in mean_3), tuple(round(float(x), 4) for x in std_3)


def enlarge(coverage_88: NDArray[np.float64]) -> NDArray[np.float32]:
    """Returns float32 [16, 16]: the digit's ink coverage, bicubically enlarged, with a margin.

    The coverage is 8x8 in 0..1; it is enlarged to 12x12.
    """
    from PIL import Image

    inner = SIZE - 2 * MARGIN
    enlarged = Image.fromarray(coverage_88.astype(np.float32)).resize((inner, inner), Image.Resampling.BICUBIC)
    return np.pad(np.clip(np.asarray(enlarged), 0.0, 1.0), MARGIN)


def paint(coverage_HW: NDArray[np.float32], attribute: int) -> NDArray[np.uint8]:
    """Returns uint8 [H, W, 3]: the attribute's ink mixed over its paper."""
    ink, paper = (np.array(rgb, np.float32) for rgb in tuple(COLORS.values())[attribute])
    return np.rint(paper + coverage_HW[:, :, None] * (ink - paper)).astype(np.uint8)


def png(pixels_HW3: NDArray[np.uint8]) -> bytes:
    """Encodes an image as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG")
    return buffer.getvalue()
