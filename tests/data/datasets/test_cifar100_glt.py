"""CIFAR-100-GLT: its counts, that nothing leaks, and that archive and folder give the same benchmark."""

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ltcore.data.config import DataConfig
from ltcore.data.datasets import cifar
from ltcore.data.datasets import cifar100_glt as module
from ltcore.data.datasets.glt import quota_counts
from ltcore.data.datasets.longtail import profile
from ltcore.data.datasets.prepare import make, prepare
from ltcore.data.datasets.registry import on_other_data
from ltcore.errors import ConfigError, DataError
from tests.cifar100 import FINE_TRAIN, small_cifar100, zip_of

CFG = DataConfig(uri="cifar100-glt", imbalance_factor=4, val_per_class=5)


@pytest.fixture(scope="module")
def parts():
    return small_cifar100()


@pytest.fixture(autouse=True)
def archive(parts, monkeypatch):
    monkeypatch.setattr(cifar, "load", lambda name, *, train: parts["train" if train else "test"])


@pytest.fixture(scope="module")
def images(parts, tmp_path_factory):
    return zip_of(parts, tmp_path_factory.mktemp("images") / "cifar.zip")


def table(rows):
    counts = np.zeros((20, 100), int)
    for row in rows:
        counts[row.label, row.attribute] += 1
    return counts


def pixels(row):
    return np.asarray(Image.open(io.BytesIO(row.image))).tobytes()


def test_the_hierarchy_is_that_of_cifar_100():
    assert len(module.CLASSES) == 20 and len(module.FINE) == 100 == len(set(module.FINE))
    assert {len(names) for names in module.SUPERCLASSES.values()} == {5}
    assert module.FINE[0] == "apple" and module.FINE[52] == "oak_tree" and module.FINE[99] == "worm"


def test_counts_are_long_tailed_over_classes_and_over_fine_classes():
    source = module.Cifar100Glt(CFG).source()
    tables = {split: table(rows) for split, rows in source.splits.items()}
    largest = int(0.9 * FINE_TRAIN * 2)
    assert tables["train"].sum(1).tolist() == profile(largest, 20, 4) == source.provenance["train_per_class"]
    assert len(set(tables["train_cbl"].sum(1))) == 1
    for c, names in enumerate(module.SUPERCLASSES.values()):
        fines = [module.FINE.index(name) for name in names]
        for split in tables:
            assert tables[split][c].sum() == tables[split][c, fines].sum(), "attributes are of their class alone"
        n = int(tables["train"][c].sum())
        assert tables["train"][c, fines].tolist() == quota_counts(n, range(5), module.QUOTAS).tolist()
        assert tables["test_cbl"][c, fines].tolist() == [4, 2, 1, 0, 1]
        assert (tables["test_gbl"][c, fines] == 4).all() and (tables["val"][c, fines] == 1).all()
    assert source.shot_rule == "rank" and source.name == "cifar100-glt-if4"


def test_validation_changes_no_other_split_and_shares_no_image():
    with_val, without = module.Cifar100Glt(CFG).source(), module.Cifar100Glt(replace(CFG, val_per_class=0)).source()
    assert "val" not in without.splits
    for split, rows in without.splits.items():
        assert [row.key for row in rows] == [row.key for row in with_val.splits[split]]
    keys = {split: {row.key for row in rows} for split, rows in with_val.splits.items()}
    assert not keys["val"] & (keys["train"] | keys["train_cbl"]) and keys["test_cbl"] < keys["test_gbl"]
    assert not any(key.startswith("cifar100/test") for key in keys["train"] | keys["val"])


def test_the_factor_of_the_benchmark_leaves_no_attribute_without_an_image():
    sizes = profile(900, 20, module.IMBALANCE_FACTOR)
    assert (sizes[0], sizes[-1]) == (900, 18)
    assert min(quota_counts(n, range(5), module.QUOTAS).min() for n in sizes) == 1
    assert min(quota_counts(n, range(5), module.QUOTAS).min() for n in profile(900, 20, 100)) == 0


def test_archive_and_folder_give_the_same_images(images):
    one = module.Cifar100Glt(CFG).source()
    other = module.Cifar100Glt(replace(CFG, images=images)).source()
    assert (one.classes, one.attributes, one.name, one.mean) == (
        other.classes,
        other.attributes,
        other.name,
        other.mean,
    )
    assert one.splits.keys() == other.splits.keys()
    for split in one.splits:
        found = [sorted((row.label, row.attribute, pixels(row)) for row in s.splits[split]) for s in (one, other)]
        assert found[0] == found[1]


def test_the_shards_say_how_they_were_made_and_the_seed_chooses_others(images, tmp_path):
    cfg = replace(CFG, images=images)
    manifest = make(cfg, str(tmp_path / "shards"))
    assert (
        manifest.provenance["attribute_quotas"] == [10, 5, 3, 1, 1] and manifest.splits["test_gbl"].num_samples == 400
    )
    one, other = (module.Cifar100Glt(replace(CFG, subset_seed=seed)).source().splits["train"] for seed in (0, 1))
    assert len(one) == len(other) and {row.key for row in one} != {row.key for row in other}


def test_a_missing_class_a_strange_one_and_much_validation_are_one_sentence(parts, tmp_path):
    for change, message in (
        ({"apple": None}, "no training image of apple; expected all 100"),
        ({"apple": "car"}, "'car' is none of CIFAR-100's 100 classes"),
    ):
        where = zip_of(parts, tmp_path / f"{len(message)}.zip", change)
        with pytest.raises(DataError, match=message):
            module.Cifar100Glt(replace(CFG, images=where)).source()
    with pytest.raises(ConfigError, match=r"val_per_class=30: beaver has 1 images .* use at most 5"):
        module.Cifar100Glt(replace(CFG, val_per_class=30)).source()
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as flat:
        for name in ("apple", "bear"):
            flat.writestr(f"{name}/1.png", b"")
    with pytest.raises(DataError, match="has the splits train; expected CIFAR-100's own"):
        module.Cifar100Glt(replace(CFG, images=str(tmp_path / "flat.zip"))).source()


def test_images_of_a_benchmark_are_refused_elsewhere(tmp_path):
    with pytest.raises(ConfigError, match=r"data.images=x has no effect on digits-glt: it is for cifar100-glt"):
        prepare(DataConfig(images="x"))
    with pytest.raises(ConfigError, match=r"data.annotations=x has no effect on cifar100-glt"):
        prepare(DataConfig(uri="cifar100-glt", annotations="x"))


def test_a_broken_image_is_named_and_its_place_filled(parts, tmp_path):
    cfg = replace(CFG, images=zip_of(parts, tmp_path / "cifar.zip"))
    chosen = next(row.key for row in module.Cifar100Glt(cfg).source().splits["train"])
    with zipfile.ZipFile(cfg.images) as sound, zipfile.ZipFile(tmp_path / "broken.zip", "w") as broken:
        for name in sound.namelist():
            broken.writestr(name, b"no image" if name == f"{chosen}.png" else sound.read(name))
    dataset = module.Cifar100Glt(replace(cfg, images=str(tmp_path / "broken.zip")))
    dataset.broken = {f"{chosen}.png": "unreadable"}
    source = dataset.source()
    for split, rows in module.Cifar100Glt(cfg).source().splits.items():
        kept = {row.key for row in rows} & {row.key for row in source.splits[split]}
        assert len(rows) == len(source.splits[split]) <= len(kept) + 1, "one image makes no other benchmark"
    assert chosen not in {row.key for row in source.splits["train"]} and "broken" in source.provenance


def test_the_place_of_a_benchmark_is_not_that_of_other_data(tmp_path):
    cfg = replace(CFG, images="cifar.zip")
    assert on_other_data(cfg, "cifar100-glt").images == "cifar.zip"
    assert on_other_data(cfg, "cifar100").images is None
    assert on_other_data(cfg, str(tmp_path)).images is None


def test_a_folder_with_fewer_images_gives_a_smaller_benchmark_with_full_quotas(parts, tmp_path):
    with (
        zipfile.ZipFile(zip_of(parts, tmp_path / "all.zip")) as whole,
        zipfile.ZipFile(tmp_path / "few.zip", "w") as few,
    ):
        beavers = 0
        for name in whole.namelist():
            beavers += name.startswith("train/beaver/")
            if not name.startswith("train/beaver/") or beavers <= 4:
                few.writestr(name, whole.read(name))
    tables = {
        s: table(rows)
        for s, rows in module.Cifar100Glt(replace(CFG, images=str(tmp_path / "few.zip"), val_per_class=0))
        .source()
        .splits.items()
    }
    assert tables["train"].sum(1)[0] == 8 and tables["train"][0].max() == 4, "beavers are the majority of their class"
    assert len(set(tables["train_cbl"].sum(1))) == 1
