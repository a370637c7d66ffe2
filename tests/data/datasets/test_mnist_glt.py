"""MNIST in colors: its counts, that nothing leaks, the same from its files and from folders, and files that are none."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltcore.data.config import DataConfig
from ltcore.data.datasets import cifar
from ltcore.data.datasets.digits_glt import COLORS
from ltcore.data.datasets.glt import quota_counts
from ltcore.data.datasets.idx import read_idx
from ltcore.data.datasets.longtail import profile
from ltcore.data.datasets.mnist_glt import MnistGlt
from ltcore.data.datasets.prepare import make
from ltcore.data.shards.source import Sample, Source
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import ConfigError, DataError
from tests.data.mnist import TEST, TRAIN, digits, idx, write_idx, write_images
from tests.data.nested import file_hashes

CFG = DataConfig(uri="mnist-glt", imbalance_factor=4, val_per_class=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_idx(tmp_path_factory.mktemp("mnist"))


def source_of(images: str, **keys: Any) -> Source:
    return MnistGlt(replace(CFG, images=images, **keys)).source()


def rows(source: Source) -> dict[str, list[Sample]]:
    return {split: list(found) for split, found in source.splits.items()}


def test_digits_and_colors_are_long_tailed_and_tests_are_of_the_test_part(files: str) -> None:
    source = source_of(files)
    found = rows(source)
    counts = {split: Counter((row.label, row.attribute) for row in some) for split, some in found.items()}
    sizes = profile(18, 10, 4)
    assert source.provenance["train_per_class"] == sizes, "nine tenths of the 20 images of a digit"
    for label in range(10):
        order = [(label + place) % 10 for place in range(10)]
        for split, size in (("train", sizes[label]), ("train_cbl", round(sum(sizes) / 10)), ("test_cbl", TEST)):
            wanted = quota_counts(size, order).tolist()
            assert [counts[split][label, attribute] for attribute in range(10)] == wanted, split
        assert all(counts["val"][label, a] == 2 and counts["test_gbl"][label, a] == TEST for a in range(10))
    own = {split: {row.key.rsplit("-", 4)[0] for row in some} for split, some in found.items()}
    assert not (own["train"] | own["train_cbl"]) & own["val"] and own["test_cbl"] == own["test_gbl"]
    assert not own["test_gbl"] & (own["train"] | own["train_cbl"] | own["val"])
    assert all(len({row.key for row in some}) == len(some) == len(source.splits[s]) for s, some in found.items())


def test_an_image_is_the_digit_in_the_ink_and_on_the_paper_of_its_color(files: str) -> None:
    images, labels = digits("train", TRAIN)
    for row in rows(source_of(files))["train"][::9]:
        pixels = np.asarray(Image.open(io.BytesIO(row.image))).astype(float)
        ink, paper = (np.array(rgb, float) for rgb in tuple(COLORS.values())[row.attribute])
        coverage = ((pixels - paper) @ (ink - paper)) / ((ink - paper) @ (ink - paper))
        assert pixels.shape == (32, 32, 3) and (pixels[0] == paper).all()
        nearest = np.abs(images / 255 - coverage[2:30, 2:30]).mean((1, 2))
        assert nearest.min() < 0.01 and labels[nearest.argmin()] == row.label


def test_statistics_are_those_of_the_training_images(files: str) -> None:
    source = source_of(files)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row.image))) for row in source.splits["train"]]) / 255
    assert source.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert source.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)


def test_files_packed_files_torchvisions_copy_and_folders_give_the_same_shards(
    files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path / "packed" / "MNIST" / "raw", packed=True)
    places = {"files": files, "packed": str(tmp_path / "packed"), "folders": write_images(tmp_path / "folders")}
    for name, where in places.items():
        make(replace(CFG, images=where), str(tmp_path / "shards" / name))
    hashes = {name: file_hashes(tmp_path / "shards" / name) for name in places}
    assert hashes["files"] == hashes["packed"] == hashes["folders"]
    assert check_dataset(str(tmp_path / "shards" / "files")) == []
    from torchvision import datasets

    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "cache"))
    write_idx(tmp_path / "cache" / "torchvision" / "MNIST" / "raw")
    found = cifar.load("mnist", train=True)
    assert isinstance(found, datasets.MNIST) and np.array_equal(np.asarray(found.data), digits("train", TRAIN)[0])
    assert rows(MnistGlt(CFG).source()) == rows(source_of(files))


def test_another_seed_chooses_others_and_other_files_are_other_data(files: str, tmp_path: Path) -> None:
    one, other = (rows(source_of(files, subset_seed=seed))["train"] for seed in (0, 1))
    assert len(one) == len(other) and {row.key for row in one} != {row.key for row in other}
    more = write_idx(tmp_path / "more", each=TRAIN + 1)
    again = write_idx(tmp_path / "again")
    identities = [MnistGlt(replace(CFG, images=where)).identity for where in (files, again, more)]
    assert identities[0] == identities[1] != identities[2]


def test_what_does_not_fit_is_one_sentence(files: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.val_per_class=9: mnist-glt has room for at most 2 here"):
        source_of(files, val_per_class=9)
    with pytest.raises(DataError, match=r"20 training images .* too few for imbalance_factor=100, which needs 112"):
        source_of(files, imbalance_factor=None)
    lacking = Path(write_idx(tmp_path / "lacking"))
    (lacking / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"lacking has no t10k-labels-idx1-ubyte \(or \.gz\): MNIST is four files"):
        source_of(str(lacking))
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"has the splits train of 2 classes; expected MNIST's four files"):
        source_of(str(tmp_path / "pets"))
    labels = Path(write_idx(tmp_path / "labels")) / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.full(10 * TRAIN, 10, np.uint8)))
    with pytest.raises(DataError, match="has 200 labels up to 10 for 200 images"):
        source_of(str(labels.parent))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no idx file of bytes in 1 dimensions"),
        (bytes((0, 0, 13, 1, 0, 0, 0, 1, 0)), "is no idx file of bytes"),
        (bytes((0, 0, 8, 3)) + bytes(12), "is no idx file of bytes in 1"),
        (bytes((0, 0, 8, 1, 255, 255, 255, 255)), "claims 4,294,967,295 values, expected 1 to"),
        (bytes((0, 0, 8, 1, 0, 0, 0, 3, 1, 2)), "has 2 values, its header says 3"),
        (bytes((0, 0, 8, 1, 0, 0, 0, 1, 1, 2)), "has more values, its header says 1"),
    ],
)
def test_a_file_that_is_no_idx_is_refused(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError, match=says):
        read_idx(tmp_path / "x", 1)
    (tmp_path / "x.gz").write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "x.gz", 1)
