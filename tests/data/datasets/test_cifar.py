"""The conversion from torchvision's data sets; the archive itself is not needed."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ltcore.data.config import DataConfig
from ltcore.data.datasets import cifar as module
from ltcore.data.datasets.longtail import profile, select_legacy
from ltcore.errors import DataError


@pytest.fixture
def fake(monkeypatch):
    rng = np.random.default_rng(0)

    def load(name, *, train):
        labels = np.repeat(np.arange(5), 40 if train else 6)
        rng.shuffle(labels)
        parts[train] = SimpleNamespace(
            data=rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8),
            targets=labels.tolist(),
            classes=[f"class {c}" for c in range(5)],
        )
        return parts[train]

    parts = {}
    monkeypatch.setattr(module, "load", load)
    return parts


def test_keys_are_original_positions_and_pixels_are_unchanged(fake):
    source = module.cifar("cifar100", DataConfig(uri="cifar100", imbalance_factor=10, val_per_class=3, subset="keyed"))
    for split, train in (("train", True), ("val", True), ("test", False)):
        assert len(list(source.splits[split])) == len(source.splits[split])
        for row in source.splits[split]:
            folder, _, number = row.key.rpartition("/")
            assert folder == f"cifar100/{'train' if train else 'test'}" and len(number) == 5
            pixels = np.asarray(Image.open(io.BytesIO(row.image)))
            assert (pixels == fake[train].data[int(number)]).all() and row.label == fake[train].targets[int(number)]
    assert source.name == "cifar100-if10-keyed" and source.mean == (0.4914, 0.4822, 0.4465)
    assert len(source.splits["train"]) == sum(profile(40, 5, 10)) and len(source.splits["test"]) == 30
    assert len(source.splits["val"]) == 12 and source.provenance["val_short"] == {"class 0": 0}


@pytest.mark.parametrize("subset", ["auto", "legacy"])
def test_the_legacy_subset_is_the_published_one_and_what_is_meant_by_auto(fake, subset):
    source = module.cifar("cifar10", DataConfig(uri="cifar10", imbalance_factor=10, subset=subset))
    chosen = {int(row.key.rpartition("/")[2]) for row in source.splits["train"]}
    expected = select_legacy(np.array(fake[True].targets), np.array(profile(40, 5, 10)), 0)
    assert chosen == set(expected.tolist())
    assert source.provenance["subset"] == "legacy" and source.name == "cifar10-if10-legacy"


def test_a_missing_archive_is_one_sentence_with_what_to_do(monkeypatch):
    from torchvision import datasets

    class Missing(datasets.CIFAR100):
        def __init__(self, root, train, download):
            if download:
                raise OSError("network is unreachable")
            raise RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setattr(datasets, "CIFAR100", Missing)
    with pytest.raises(
        DataError, match=r"cannot be downloaded \(network is unreachable\). Put cifar-100-python.tar.gz"
    ):
        module.cifar("cifar100", DataConfig(uri="cifar100"))
