"""MSCOCO-GLT: crops, the even test, the splits, and what damaged files say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets import mscoco_glt as module
from ltcore.data.datasets.coco_objects import CocoObjects, read_objects
from ltcore.data.datasets.longtail import profile
from ltcore.data.datasets.prepare import make
from ltcore.data.images.decode import decode_image
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import BadImageError, ConfigError, DataError
from tests.coco import ATTRIBUTES, COUNTS, write_coco

TEST = 2


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture
def cfg(places, monkeypatch):
    monkeypatch.setattr(module, "TEST_PER_CLASS", TEST)
    return DataConfig(uri="mscoco-glt", images=places[0], annotations=places[1], imbalance_factor=4, val_per_class=1)


def read(places):
    return read_objects(sorted(Path(places[1]).glob("instances_*.json")), Path(places[1]) / "cocottributes.json")


@pytest.fixture(scope="module")
def objects(places):
    return read(places)


@pytest.mark.parametrize(
    ("start", "length", "end", "expected"),
    [
        (200, 60, 640, (150, 310)),  # 50 px at both ends of a side below 100 px
        (200, 100, 640, (180, 320)),  # a fifth of it otherwise
        (20, 60, 640, (0, 130)),
        (600, 30, 640, (550, 640)),
    ],
)
def test_a_side_of_a_box_is_enlarged_and_stays_in_the_image(start, length, end, expected):
    assert module.enlarged(start, length, end) == expected


def test_a_crop_is_padded_with_black_to_a_square_around_its_middle():
    image = np.full((3, 300, 640), 7, np.uint8)
    found = module.crop(image, (200.0, 100.0, 100.0, 200.0), "x")
    # 140 wide; from 60 to the lower edge 240 high
    assert found.shape == (3, 240, 240)
    assert (found[:, :, 50:190] == 7).all() and not found[:, :, :50].any() and not found[:, :, 190:].any()
    wide = module.crop(image, (0.0, 0.0, 640.0, 10.0), "x")
    assert (
        wide.shape == (3, 640, 640)
        and (wide[:, 290:350] == 7).all()
        and not wide[:, :290].any()
        and not wide[:, 350:].any()
    )
    with pytest.raises(BadImageError, match="outside of the image's 640 x 300 pixels"):
        module.crop(image, (900.0, 0.0, 10.0, 10.0), "x")


def test_the_even_subset_is_the_one_of_least_deviation_at_every_step():
    rng = np.random.default_rng(0)
    positive = rng.random((40, 6)) < (0.9, 0.5, 0.3, 0.2, 0.1, 0.05)
    positive[3] = False
    chosen = module.balanced_subset(positive, 12)
    assert len(set(chosen)) == 12 and 3 not in chosen
    total, left = np.zeros(6), [i for i in range(40) if i != 3]
    for best in chosen:
        deviations = [((total + positive[i]) / (total + positive[i]).sum()).std() for i in left]
        assert np.isclose(deviations[left.index(best)], min(deviations))
        total += positive[best]
        left.remove(best)
    shares = positive.sum(0) / positive.sum()
    assert (total / total.sum()).std() < 0.6 * shares.std()
    assert module.balanced_subset(np.zeros((4, 3), bool), 2) == []


def test_an_object_has_the_most_typical_of_its_attributes():
    positive = np.array([[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 1, 1], [0, 0, 1]], bool)
    labels = np.array([0, 0, 0, 0, 0, 1, 1])
    known = CocoObjects(tuple("abcdefg"), ("x", "y"), labels, ("p", "q", "r"), positive, (0,) * 7, ((0.0,) * 4,) * 7)
    # class x: p 3, q 2, r 2 of the training objects; class y: r 2, q 1
    assert module.single_attributes(known, range(7)).tolist() == [0, 0, 0, 1, -1, 2, 2]
    assert module.single_attributes(known, [3, 4]).tolist() == [2, 1, 0, 1, -1, 1, 2]


def test_splits_are_disjoint_and_as_large_as_the_construction_says(objects):
    splits, chosen = module.choose(objects, np.arange(76), DataConfig(imbalance_factor=4, val_per_class=1), test=TEST)
    sizes = {name: np.bincount(objects.labels_N[found], minlength=3) for name, found in splits.items()}
    assert objects.classes == ("cat", "dog", "fire hydrant")
    assert sizes["test_gbl"].tolist() == sizes["test_cbl"].tolist() == [TEST] * 3
    assert sizes["test_glt"].sum() == 3 * TEST and sizes["val"].sum() == 3
    selected = sizes["train"] + sizes["val"] + sizes["test_glt"]
    remaining = [n - 2 * TEST for n in (COUNTS[3], COUNTS[9], COUNTS[7])]
    assert selected.tolist() == [min(n, size) for n, size in zip(remaining, profile(remaining[0], 3, 4), strict=True)]
    assert len(set(sizes["train_cbl"])) == 1 and chosen["train_per_class"] == sizes["train"].tolist()
    held_out = [i for name in ("val", "test_cbl", "test_gbl", "test_glt") for i in splits[name]]
    assert len(held_out) == len(set(held_out)) and not set(held_out) & {*splits["train"], *splits["train_cbl"]}


def test_the_wanted_sizes_fall_from_the_largest_class_to_a_200th_of_it():
    """64,600 objects of COCO's largest class remain after its tests. Classes that have fewer than wanted give what they have."""
    assert profile(64_600, 29, 200)[::28] == [64_600, 323]


def test_the_order_of_the_files_changes_nothing_and_the_seed_does(objects):
    turned = np.random.default_rng(0).permutation(76)
    other = CocoObjects(
        tuple(objects.keys[i] for i in turned),
        objects.classes,
        objects.labels_N[turned],
        objects.attributes,
        objects.positive_NA[turned],
        tuple(objects.image_ids[i] for i in turned),
        tuple(objects.boxes[i] for i in turned),
    )

    def named(known, seed):
        cfg = DataConfig(imbalance_factor=4, val_per_class=1, subset_seed=seed)
        splits, _ = module.choose(known, np.arange(76), cfg, test=TEST)
        return {name: {known.keys[i] for i in found} for name, found in splits.items()}

    assert named(objects, 0) == named(other, 0) != named(objects, 1)


def test_a_class_that_is_too_small_is_named(objects):
    with pytest.raises(DataError, match="class 'fire hydrant' has 12 usable objects, too few for two tests of 6"):
        module.choose(objects, np.arange(76), DataConfig(imbalance_factor=4), test=6)
    with pytest.raises(DataError, match="'fire hydrant' is left without a training image; use a smaller imbalance"):
        module.choose(objects, np.arange(76), DataConfig(imbalance_factor=36, val_per_class=8), test=TEST)


def test_shards_hold_the_crops_with_their_attributes(cfg, tmp_path):
    manifest = make(cfg, str(tmp_path / "out"))
    assert manifest.name == "mscoco-glt-if4" and manifest.attributes == ATTRIBUTES and manifest.shot_rule == "glt"
    assert set(manifest.splits) == {"train", "train_cbl", "val", "test_cbl", "test_gbl", "test_glt"}
    assert check_dataset(str(tmp_path / "out")) == []
    source = module.MscocoGlt(cfg).source()
    for row in source.splits["train"]:
        image = decode_image(row.image, row.key)
        assert image.shape == (3, 64, 64), "a box of 20 x 30 px is enlarged beyond the image of 64 px"
        assert source.classes[row.label].replace(" ", "_") == row.key.split("/")[0]


def test_a_broken_image_is_named_and_can_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TEST_PER_CLASS", TEST)
    images, notes = write_coco(tmp_path)
    (next(Path(images).rglob("*_000000000020.jpg"))).write_bytes(b"no jpeg")
    cfg = DataConfig(uri="mscoco-glt", images=images, annotations=notes, imbalance_factor=4, val_per_class=1)
    with pytest.raises(DataError, match=r"COCO_train2014_000000000020.jpg.*data.max_bad_samples=1"):
        make(cfg, str(tmp_path / "out"))
    manifest = make(replace(cfg, max_bad_samples=1), str(tmp_path / "out"))
    assert list(manifest.provenance["broken"]) == ["cat/20.jpg"]


def test_missing_files_are_one_sentence(cfg, places, tmp_path):
    with pytest.raises(ConfigError, match=r"give data.images=DIR, which holds MSCOCO's train2014"):
        module.MscocoGlt(replace(cfg, images=None))
    with pytest.raises(DataError, match=r"holds no instances_\*.json"):
        module.MscocoGlt(replace(cfg, annotations=str(tmp_path)))
    with pytest.raises(DataError, match="38 images of annotated objects are missing, the first with the number"):
        module.MscocoGlt(replace(cfg, images=f"{places[0]}/train2014")).source()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "cocottributes.json",
            lambda tree: tree["ann_vecs"].update({"3": [0.1]}),
            "number 4 of ann_vecs .*1 scores for 5",
        ),
        ("cocottributes.json", lambda tree: tree.update(attributes=[]), "lists 0 attributes, expected 1 to"),
        ("cocottributes.json", lambda tree: tree.update(ann_vecs={}), "has no object; expected attributes, ann_vecs"),
        (
            "cocottributes.json",
            lambda tree: tree["patch_id_to_ann_id"].pop("3"),
            "object '3' is in none of instances_train2014",
        ),
        (
            "instances_train2014.json",
            lambda tree: tree["annotations"][0].pop("bbox"),
            "number 1 of annotations cannot be read",
        ),
        (
            "instances_train2014.json",
            lambda tree: tree["annotations"][0].update(bbox=[1, 2, "x", 3]),
            "number 1 of annotations",
        ),
        ("instances_train2014.json", lambda tree: tree["annotations"][0].update(id="7"), "'7' is no whole number"),
        (
            "instances_train2014.json",
            lambda tree: tree["annotations"][0].update(category_id=77),
            "category 77 of an object",
        ),
    ],
)
def test_damaged_annotations_are_one_sentence(tmp_path, file, change, message):
    places = write_coco(tmp_path)
    path = Path(places[1]) / file
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message):
        read(places)


def test_a_file_that_ends_early_is_no_readable_json(tmp_path):
    places = write_coco(tmp_path)
    path = Path(places[1]) / "instances_val2014.json"
    path.write_text(path.read_text()[:-400])
    with pytest.raises(DataError, match=r"instances_val2014.json is no readable json .*Download it again"):
        read(places)
