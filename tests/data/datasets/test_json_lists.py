"""Lists in json: iNaturalist's, and the GLT authors', whose two files become one data set with three protocols."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets.image_root import open_root
from ltcore.data.datasets.json_lists import rows_of_json
from ltcore.data.datasets.listed import beneath, read_lists
from ltcore.data.datasets.prepare import make
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from tests.data.folders import images, place

THEIR_ROOT = "/data4/imagenet/ILSVRC/Data/CLS-LOC/train"


def glt_file(parts, places=None):
    """Returns the authors' json: ``parts`` maps a split to (class, number, attribute) triples."""
    tree = {"cat2id": {"n02": "0", "n01": "1"}, "id2cat": {"0": "n02", "1": "n01"}}
    for split in ("train", "val", "test_lt", "test_bl", "test_bbl"):
        tree[split] = {"label": {}, "frequency": {}, "attribute": {}}
        for name, number, attribute in parts.get(split, ()):
            key = f"{THEIR_ROOT}/{name}/{number}.png"
            tree[split]["label"][key] = tree["cat2id"][name]
            tree[split]["frequency"][key] = 0
            tree[split]["attribute"][key] = attribute
    return tree


TESTS = {"test_bbl": [("n02", 0, 0), ("n01", 0, 2)], "test_bl": [("n02", 1, 1), ("n01", 1, 0)]}
LONG_TAILED = glt_file(
    {
        **TESTS,
        "train": [("n02", 2, 0), ("n02", 3, 0), ("n02", 4, 1), ("n01", 2, 0)],
        "val": [("n02", 5, 2), ("n02", 6, 0), ("n01", 3, 1)],
        "test_lt": [("n02", 7, 1), ("n01", 4, 0)],
    }
)
BALANCED = glt_file(
    {**TESTS, "train": [("n02", 2, 0), ("n02", 5, 2), ("n01", 3, 1)], "val": [("n01", 5, 2), ("n02", 4, 1)]}
)


@pytest.fixture
def root(tmp_path):
    return open_root(place(tmp_path, images("train/n01", "train/n02", count=8)))


def save(tmp_path, name, tree):
    path = tmp_path / name
    path.write_text(json.dumps(tree))
    return str(path)


def names(layout, split):
    return sorted(entry.path.removeprefix("train/") for entry in layout.splits[split])


def test_one_file_of_the_authors_brings_every_split_with_classes_and_attributes(root, tmp_path):
    layout = read_lists(root, [("train", save(tmp_path, "lt.json", LONG_TAILED))])
    assert layout.classes == ("n01", "n02") and layout.attributes == ("0", "1", "2")
    assert list(layout.splits)[:2] == ["train", "val"]
    assert set(layout.splits) == {"train", "val", "test_cbl", "test_gbl", "test_glt"}
    assert names(layout, "test_gbl") == ["n01/0.png", "n02/0.png"] and names(layout, "test_glt") == [
        "n01/4.png",
        "n02/7.png",
    ]
    (first,) = (entry for entry in layout.splits["val"] if entry.path == "train/n02/5.png")
    assert (first.label, first.attribute) == (1, 2)


def test_both_files_give_both_trainings_and_a_validation_split_that_neither_has_seen(root, tmp_path):
    files = {"train": save(tmp_path, "lt.json", LONG_TAILED), "train_cbl": save(tmp_path, "bl.json", BALANCED)}
    layout = read_lists(root, files.items())
    assert names(layout, "train") == ["n01/2.png", "n02/2.png", "n02/3.png", "n02/4.png"]
    assert names(layout, "train_cbl") == ["n01/3.png", "n02/2.png", "n02/5.png"]
    # 5 of n02 and 3 of n01 train the balanced model, 4 of n02 the long-tailed one
    assert names(layout, "val") == ["n01/5.png", "n02/6.png"]
    assert "test_glt" not in layout.splits and "neither trains on" in layout.provenance["val"]


def test_files_of_two_constructions_are_refused(root, tmp_path):
    other = glt_file({"train": [("n02", 0, 0), ("n01", 2, 0)]})
    files = {"train": save(tmp_path, "lt.json", LONG_TAILED), "train_cbl": save(tmp_path, "bl.json", other)}
    with pytest.raises(
        DataError, match=r"n02/0.png has the split 'train_cbl', but 'test_gbl' in .*; splits must be disjoint"
    ):
        read_lists(root, files.items())


CROPS = {"train": "coco_glt/images", "train_cbl": "coco_cbl/images"}


def crop_file(split, parts):
    """Returns the authors' json of MSCOCO-GLT: a key for each object, and the path of the crop that this file made."""
    tree = {"cat2id": {"dog": "0", "cat": "1"}, "id2cat": {"0": "dog", "1": "cat"}}
    for name in ("train", "val", "test_lt", "test_bl", "test_bbl"):
        tree[name] = {column: {} for column in ("label", "frequency", "attribute", "path")}
        for number, attribute in parts.get(name, ()):
            values = str(number % 2), 2 - 2 * (number % 2), attribute, f"{CROPS[split]}/{number}.png"
            for column, value in zip(("label", "frequency", "attribute", "path"), values, strict=True):
                tree[name][column][str(number)] = value
    return tree


def crop_lists(tmp_path, **files):
    """Returns the lists, and a root with every crop that they name."""
    paths = {part["path"][key] for tree in files.values() for part in list(tree.values())[2:] for key in part["path"]}
    (picture,) = images("train/cat", count=1).values()
    root = open_root(place(tmp_path / "crops", dict.fromkeys(paths, picture)))
    return root, [(split, save(tmp_path, f"{split}.json", tree)) for split, tree in files.items()]


def test_crops_of_one_object_are_one_picture_under_two_paths(tmp_path):
    parts = {"train": [(0, 0), (2, 1), (1, 0)], "val": [(4, 0), (3, 1)], "test_bbl": [(5, 0), (6, 1)]}
    long_tailed = crop_file("train", parts)
    balanced = crop_file("train_cbl", {"train": [(0, 1), (1, 0)], "val": [(2, 0), (7, 1), (3, 0)]})
    root, lists = crop_lists(tmp_path, train=long_tailed, train_cbl=balanced)
    layout = read_lists(root, lists)
    numbers = {split: sorted(Path(entry.path).stem for entry in rows) for split, rows in layout.splits.items()}
    assert numbers == {
        "train": ["0", "1", "2"],
        "train_cbl": ["0", "1"],
        "val": ["3", "4", "7"],
        "test_gbl": ["5", "6"],
    }


def test_one_path_in_training_and_test_is_refused_whatever_its_keys(tmp_path):
    tree = crop_file("train", {"train": [(0, 0), (1, 0)], "test_bbl": [(2, 0), (3, 0)]})
    tree["test_bbl"]["path"]["2"] = tree["train"]["path"]["0"]
    root, lists = crop_lists(tmp_path, train=tree)
    with pytest.raises(DataError, match=r"has the split 'test_gbl', but 'train' in .*splits must be disjoint"):
        read_lists(root, lists)
    plain = tmp_path / "test.txt"
    plain.write_text(f"{tree['train']['path']['0']} dog\n")
    root, lists = crop_lists(tmp_path, train=crop_file("train", {"train": [(0, 0), (1, 0)]}))
    with pytest.raises(DataError, match=r"has the split 'test', but 'train' in .*splits must be disjoint"):
        read_lists(root, [*lists, ("test", str(plain))])


def test_two_crops_of_one_object_have_one_class(tmp_path):
    balanced = crop_file("train_cbl", {"train": [(0, 1), (1, 0)]})
    balanced["train"]["label"]["0"] = "1"
    root, lists = crop_lists(tmp_path, train=crop_file("train", {"train": [(0, 0), (1, 0)]}), train_cbl=balanced)
    with pytest.raises(
        DataError, match=r"has the label 'cat', but 'dog' in .* as coco_glt/images/0.png, which shows the same"
    ):
        read_lists(root, lists)


def test_an_object_that_one_file_tests_and_the_other_trains_on_is_refused(tmp_path):
    long_tailed = crop_file("train", {"train": [(0, 0), (1, 0)], "test_bbl": [(2, 0), (3, 1)]})
    balanced = crop_file("train_cbl", {"train": [(1, 0), (2, 1)]})
    root, lists = crop_lists(tmp_path, train=long_tailed, train_cbl=balanced)
    said = (
        r"coco_cbl/images/2.png has the split 'train_cbl', but 'test_gbl' in .* as coco_glt/images/2.png, which shows the "
        "same; splits must be disjoint"
    )
    with pytest.raises(DataError, match=said):
        read_lists(root, lists)


def test_shot_groups_are_those_of_the_file_unless_another_tail_is_cut(tmp_path):
    tree = crop_file("train", {"train": [(n, n % 3) for n in range(12)], "test_bbl": [(12, 0), (13, 1)]})
    root, lists = crop_lists(tmp_path, train=tree)
    assert read_lists(root, lists).shot_groups == ("many", "few")  # cat is 1, of the frequency 0
    data = DataConfig(uri=root.where, val_per_class=0)
    manifest = make(data, str(tmp_path / "shards"), lists=lists)
    assert (manifest.shot_rule, manifest.shot_groups) == ("given", ("many", "few"))
    manifest = make(replace(data, imbalance_factor=2), str(tmp_path / "shards"), lists=lists)
    assert manifest.shot_rule == "glt"


def test_frequencies_that_are_none_or_contradict_each_other_are_refused(tmp_path):
    tree = crop_file("train", {"train": [(0, 0), (1, 0), (2, 0)]})
    for value, said in (
        (3, r"train: '2' has the frequency 3, expected 0 \(many\)"),
        (0, "class with many shots, but .* of few"),
    ):
        tree["train"]["frequency"]["2"] = value
        root, lists = crop_lists(tmp_path, train=tree)
        with pytest.raises(DataError, match=said):
            read_lists(root, lists)


def test_a_listed_part_of_a_file_is_taken_alone(root, tmp_path):
    file = save(tmp_path, "lt.json", LONG_TAILED)
    (tmp_path / "train.txt").write_text("train/n01/2.png n01\ntrain/n02/2.png n02\n")
    layout = read_lists(root, [("train", str(tmp_path / "train.txt")), ("test_gbl", file)])
    assert set(layout.splits) == {"train", "test_gbl"} and names(layout, "test_gbl") == ["n01/0.png", "n02/0.png"]
    with pytest.raises(DataError, match=r"--list test_other=.*no images for it, but for train, val, test_cbl"):
        read_lists(root, [("train", file), ("test_other", file)])


def test_the_crops_of_mscoco_glt_are_found_by_their_paths(root, tmp_path):
    tree = glt_file({"train": [("n02", 2, 0), ("n01", 2, 1)]})
    tree["train"]["path"] = {key: f"/home/me/coco/{key[len(THEIR_ROOT) - 5 :]}" for key in tree["train"]["label"]}
    tree["train"]["label"] = {f"{n}": label for n, label in enumerate(tree["train"]["label"].values())}
    tree["train"]["path"] = dict(enumerate(tree["train"]["path"].values()))
    tree["train"]["attribute"] = dict(enumerate(tree["train"]["attribute"].values()))
    layout = read_lists(root, [("train", save(tmp_path, "coco.json", tree))])
    assert names(layout, "train") == ["n01/2.png", "n02/2.png"]


def coco_file(**changes):
    files = ["train/n01/0.png", "train/n02/0.png", "train/n02/1.png"]
    tree = {
        "info": {},
        "images": [{"id": 7 + i, "file_name": name, "license": 0} for i, name in enumerate(files)],
        "categories": [{"id": 4, "name": "ant", "supercategory": "Insecta"}, {"id": 2, "name": "bee"}],
        "annotations": [{"id": i, "image_id": 7 + i, "category_id": c} for i, c in enumerate((4, 2, 2))],
    }
    return {**tree, **changes}


def test_inaturalist_lists_give_names_or_else_ids(root, tmp_path):
    lists = [("train", save(tmp_path, "train2018.json", coco_file()))]
    layout = read_lists(root, lists)
    assert layout.classes == ("ant", "bee") and [entry.label for entry in layout.splits["train"]] == [0, 1, 1]
    same = coco_file(categories=[{"id": 4, "name": "x"}, {"id": 2, "name": "x"}])
    layout = read_lists(root, [("train", save(tmp_path, "ids.json", same))])
    assert [entry.label for entry in layout.splits["train"]] == [1, 0, 0]


def test_a_json_file_is_data_by_itself_gzipped_or_not(tmp_path):
    folder = tmp_path / "inat"
    place(tmp_path, images("train/n01", "train/n02", count=6), name="inat")
    tree = coco_file(
        images=[{"id": i, "file_name": f"train/n0{1 + i % 2}/{i // 2}.png"} for i in range(12)],
        annotations=[{"image_id": i, "category_id": (4, 2)[i % 2]} for i in range(12)],
    )
    (folder / "train2018.json.gz").write_bytes(gzip.compress(json.dumps(tree).encode()))
    make(DataConfig(uri=str(folder / "train2018.json.gz")), str(tmp_path / "out"))
    store = ShardStore(str(tmp_path / "out"))
    assert np.bincount(store.labels("train")).tolist() == [4, 4] and store.manifest.classes == ("ant", "bee")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("{", "is no readable json"),
        ("[" * 100_000, "is no readable json"),
        ("[1]", "lists no images: expected images, annotations and categories"),
        ({"images": [], "categories": []}, "lists no images. Download"),
        (coco_file(images=[3]), "expected id and file_name in each of images, not so in number 1"),
        (
            coco_file(annotations=[{"image_id": [], "category_id": 2}]),
            "expected image_id and category_id in each of annotations",
        ),
        (
            coco_file(annotations=[{"image_id": 7, "category_id": 3}]),
            "annotation 1: category 3 is not among the categories",
        ),
        (
            coco_file(annotations=[{"image_id": 7, "category_id": 2}, {"image_id": 7, "category_id": 4}]),
            "annotation 2: image 7 is of bee and of ant; expected one class for each image",
        ),
        ({**LONG_TAILED, "id2cat": {}}, "has the label '0', which id2cat lacks"),
        ({**LONG_TAILED, "train": {"label": [1]}}, "train: expected 'label' to be a mapping"),
        ({**LONG_TAILED, "train": 3}, "train: expected 'label' to be a mapping"),
        (
            {**LONG_TAILED, "train": {"label": {"a": "0"}, "attribute": {"a": [1]}}},
            "'a' needs a number as its attribute",
        ),
        ({**LONG_TAILED, "train": {"label": {"a" * 5000: "0"}}}, "expected at most 4096"),
    ],
)
def test_damage_is_one_sentence(tree, message):
    with pytest.raises(DataError, match=r"^x.json.*" + message):
        rows_of_json(tree if isinstance(tree, str) else json.dumps(tree), "x.json")


def test_images_without_a_class_are_named(root, tmp_path):
    with pytest.raises(DataError, match=r"2 images have no label: train/n02/0.png"):
        read_lists(
            root, [("train", save(tmp_path, "x.json", coco_file(annotations=[{"image_id": 7, "category_id": 2}])))]
        )


def test_paths_of_another_machine_are_found_by_their_longest_known_end():
    known = {"n01/1.png", "train/n01/1.png", "1.png"}
    assert beneath("/data/imagenet/train/n01/1.png", known) == "train/n01/1.png"
    assert beneath("/data/n01/1.png", known) == "n01/1.png"
    assert beneath("/data/other/1.png", known) == "/data/other/1.png", "a file name alone may be another image's"
    assert beneath("data/n01/1.png", known) == "data/n01/1.png"


def test_texts_that_no_file_can_hold_are_made_storable(root, tmp_path):
    tree = glt_file({"train": [("n02", 2, "\ud800"), ("n01", 2, "b")]})
    tree["id2cat"]["0"] = "cat \ud800"
    layout = read_lists(root, [("train", save(tmp_path, "x.json", tree))])
    for name in (*layout.classes, *layout.attributes):
        name.encode()
