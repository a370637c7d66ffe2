"""What every source of images promises, for each row of the registry, on a few small images."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ltcore import uris
from ltcore.contracts import datasets
from ltcore.data.config import DataConfig
from ltcore.data.datasets import cifar, mnist_glt, mscoco_glt
from ltcore.data.datasets.dataset import Dataset
from ltcore.data.datasets.prepare import make
from ltcore.data.datasets.registry import DATASETS, PATH, find, names, recognize
from ltcore.data.shards.source import Sample, Source
from ltcore.errors import ConfigError, DataError
from tests.cifar100 import small_cifar100
from tests.coco import write_coco
from tests.data.mnist import write_idx
from tests.tars import write_tars

CLASSES, PER_CLASS = 3, 40

Samples = dict[str, list[Sample]]


def fake_cifar(name: str, *, train: bool) -> Any:
    """What torchvision makes of CIFAR's archive, in small."""
    rng = np.random.default_rng(train)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS if train else 5)
    rng.shuffle(labels)
    pixels = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    return SimpleNamespace(data=pixels, targets=labels.tolist(), classes=[f"class {c}" for c in range(CLASSES)])


def write_folder(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for n in range(CLASSES * PER_CLASS):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
        path = root / f"class {n % CLASSES}" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(out.getvalue())
    return root


def listed(root: Path) -> str:
    """A table of the images."""
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    (root / "pets.csv").write_text("\n".join(["path,label", *lines]))
    return str(root / "pets.csv")


def in_parquet(root: Path) -> str:
    """The images in a file of their own."""
    paths = sorted(root.rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    pq.write_table(pa.table({"image": images, "label": [path.parent.name for path in paths]}), root / "pets.parquet")
    return str(root / "pets.parquet")


def in_store(root: Path) -> str:
    """The folder in a store, which is memory."""
    fsspec.filesystem("memory").put(str(root), "/pets", recursive=True)
    return "memory://pets"


def zip_in_store(root: Path) -> str:
    path = shutil.make_archive(str(root.with_name("pets")), "zip", root)
    fsspec.filesystem("memory").put(path, "/pets.zip")
    return "memory://pets.zip"


def in_tars(root: Path) -> str:
    """The images as WebDataset's own writer stores them."""
    target = root.with_name("tars")
    target.mkdir()
    paths = sorted(root.rglob("*.png"))
    samples = [{"__key__": p.stem, "png": p.read_bytes(), "txt": "a pet", "cls": p.parent.name.encode()} for p in paths]
    write_tars(target / "pets-%d.tar", samples, maxcount=50)
    return str(target)


PLACES = {
    PATH: str,
    "LIST|CSV|TSV": listed,
    "PARQUET": in_parquet,
    "TARS": in_tars,
    "URI": in_store,
    "URI.zip": zip_in_store,
}
"""Row -> what it reads, made out of a folder of images."""


GIVEN: dict[str, dict[str, Any]] = {}
"""Name of a benchmark -> where its files are, which the fixture makes."""


@pytest.fixture(scope="module", params=DATASETS)
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What ``data.uri`` is for the row; nothing is downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "load", fake_cifar)
        patch.setitem(uris.READ_ONLY, "memory", "fsspec")
        patch.setenv("LTCORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        if request.param == "cifar100-glt":
            small = small_cifar100()
            patch.setattr(cifar, "load", lambda name, *, train: small["train" if train else "test"])
        if request.param == "mnist-glt":
            patch.setattr(mnist_glt, "IMBALANCE_FACTOR", 2.0)
            GIVEN[request.param] = {"images": write_idx(tmp_path_factory.mktemp("mnist"))}
        if request.param == "mscoco-glt":
            patch.setattr(mscoco_glt, "TEST_PER_CLASS", 3)
            patch.setattr(mscoco_glt, "IMBALANCE_FACTOR", 2.0)
            images, annotations = write_coco(tmp_path_factory.mktemp("coco"))
            GIVEN[request.param] = {"images": images, "annotations": annotations}
        if request.param not in PLACES:
            yield request.param
        else:
            yield PLACES[request.param](write_folder(tmp_path_factory.mktemp("of") / "pets"))


def open_row(uri: str, **choices: Any) -> Dataset:
    """The row's source, with a long tail unless something else is chosen."""
    return recognize(uri)(
        DataConfig(uri=uri, **{"imbalance_factor": 4.0, "val_per_class": 2} | GIVEN.get(uri, {}) | choices)
    )


def read(source: Source) -> dict[str, list[Sample]]:
    return {split: list(rows) for split, rows in source.splits.items()}


@pytest.fixture(scope="module")
def source(uri: str) -> Source:
    return open_row(uri).source()


@pytest.fixture(scope="module")
def samples(source: Source) -> dict[str, list[Sample]]:
    return read(source)


def test_the_rows_say_what_they_are() -> None:
    for row in DATASETS.values():
        assert row.summary and row.paper and "\n" not in row.summary + row.paper
    assert names() == [name for name, row in DATASETS.items() if not row.build.by_path]


def test_one_seed_gives_the_same_samples_and_another_gives_others(uri: str, source: Source, samples: Samples) -> None:
    assert read(source) == samples  # every iteration reads the same rows
    assert {split: len(rows) for split, rows in source.splits.items()} == {s: len(rows) for s, rows in samples.items()}
    again = open_row(uri).source()
    assert read(again) == samples and again.provenance == source.provenance
    assert read(open_row(uri, subset_seed=1).source())["train"] != samples["train"]


def test_a_selection_changes_the_training_images_or_is_said_to_have_no_effect(uri: str, samples: Samples) -> None:
    whole = read(open_row(uri, imbalance_factor=None).source())
    assert (whole["train"] != samples["train"]) == find(uri).has_selection
    assert find(uri).has_selection or whole == samples


def test_training_validation_and_test_share_no_sample_and_no_image(source: Source) -> None:
    assert {split.split("_")[0] for split in source.splits} == {"train", "val", "test"}
    datasets.splits_share_no_sample_and_no_image(lambda _: source)


def test_classes_have_names_and_images_to_train_and_test_on(source: Source) -> None:
    datasets.classes_have_names_and_images(lambda _: source)


def test_statistics_are_finite_and_images_decode_at_the_size(source: Source) -> None:
    datasets.statistics_are_finite_and_images_decode(lambda _: source)


def test_the_provenance_names_the_source_and_no_place_of_this_machine(uri: str, source: Source) -> None:
    text = json.dumps(source.provenance)
    assert source.provenance["source"] and source.name.startswith(open_row(uri).name)
    assert str(Path(uri).parent) not in text or not find(uri).by_path


def test_wrong_options_are_refused_in_one_sentence(uri: str) -> None:
    with pytest.raises((ConfigError, DataError)) as refused:
        make(DataConfig(uri=uri), "nowhere", lists=[("train", "no-such-list.txt")])
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")
    if find(uri).by_path:
        with pytest.raises(ConfigError, match=r"^data\.subset='legacy' needs the original order"):
            open_row(uri, subset="legacy")


def test_shards_of_it_are_whole(source: Source) -> None:
    datasets.shards_of_it_are_whole(lambda _: source)
