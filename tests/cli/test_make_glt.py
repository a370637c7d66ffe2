"""``shards glt`` as a person runs it: what it prints, that training takes the result, and errors in one sentence."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.remarks import ATTRIBUTE_COUNTS
from tests.data.folders import images, place
from tests.data.nested import file_hashes, flat_folder, nested_folder
from tests.paths import ROOT

pytest_plugins = ["tests.s3"]
SMALL = ("--imbalance-factor", "4", "--shard-size", "20")


@pytest.fixture
def run(command):
    """Runs the command."""
    return lambda *words: command("shards", "glt", *words)


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    return nested_folder(tmp_path_factory.mktemp("nested"))


def test_it_prints_the_splits_and_what_they_share(run, command, nested, tmp_path):
    done = run(nested, tmp_path / "out", "--attributes-from", "2", *SMALL, "--test-glt", "12")
    assert done.code == 0, done.err
    assert "animals: 216 images of 3 classes" in done.err
    for split in ("train", "train_cbl", "val", "test_cbl", "test_gbl", "test_glt"):
        assert f"│ {split} " in done.out
    share = read_manifest(str(tmp_path / "out")).provenance["train_and_train_cbl_share"]
    assert f"share {share} images" in done.out and "7:2:1 in train" in done.out
    info = command("shards", "info", tmp_path / "out")
    assert info.code == 0 and "attributes_from: folder level 2" in info.out and "attribute_counts" not in info.out


BREEDS = {"cat": ("siamese", "persian"), "dog": ("poodle", "husky"), "bird": ("owl", "crow")}


def test_validation_can_have_the_tails_of_training(run, nested, tmp_path):
    done = run(nested, tmp_path / "out", "--attributes-from", "2", *SMALL, "--val-glt", "21")
    assert done.code == 0, done.err
    sizes = np.bincount(ShardStore(str(tmp_path / "out")).labels("val"), minlength=3)
    assert sizes.sum() == 21 and len(set(sizes.tolist())) > 1
    assert "7:2:1 in train, train_cbl, val and test_cbl; equal in test_gbl." in " ".join(done.out.split())
    both = run(nested, tmp_path / "two", "--attributes-from", "2", *SMALL, "--val-glt", "21", "--val-per-class", "9")
    assert both.code == 2 and "val=9 has no effect beside val_glt=21; give one of them" in both.err


@pytest.mark.slow
def test_classes_may_have_attributes_of_their_own(run, command, tmp_path):
    many = images(*(f"{name}/{breeds[0]}" for name, breeds in BREEDS.items()), count=30)
    photos = place(tmp_path, many | images(*(f"{name}/{breeds[1]}" for name, breeds in BREEDS.items()), count=20))
    done = run(photos, tmp_path / "out", "--attributes-from", "2", "--engine", "inline", "--imbalance-factor", "2")
    assert done.code == 0, done.err
    assert "3 classes, 6 attributes, 2 in each class" in done.out and "7:3 in train" in done.out
    assert "without images" not in done.err
    assert command("shards", "check", tmp_path / "out").code == 0
    store = ShardStore(str(tmp_path / "out"))
    manifest = store.manifest
    for split, per_class in {"test_gbl": [5, 5], "test_cbl": [7, 3], "val": [2, 2], "train_cbl": [12, 5]}.items():
        counts_CA = np.zeros((3, 6), int)
        np.add.at(counts_CA, (store.labels(split), store.attributes(split)), 1)
        named = [
            {breed: int(counts_CA[c, manifest.attributes.index(breed)]) for breed in BREEDS[name]}
            for c, name in enumerate(manifest.classes)
        ]
        assert [list(row.values()) for row in named] == [per_class] * 3 and counts_CA.sum() == 3 * sum(per_class)
        assert manifest.provenance[ATTRIBUTE_COUNTS][split] == named


@pytest.mark.slow
def test_what_most_classes_have_and_one_has_not_is_named(run, tmp_path):
    folders = [f"{name}/{time}" for name in ("ant", "bee", "cat") for time in ("day", "dusk", "night")]
    photos = place(tmp_path, images(*folders[:-1], count=20))
    done = run(photos, tmp_path / "out", "--attributes-from", "2", "--engine", "inline", "--imbalance-factor", "2")
    assert done.code == 0, done.err
    assert "1 pair of class and attribute without images" in done.err and "cat / night. The shares 7:3" in done.err
    assert "3 classes, 3 attributes, 2 to 3 in each class" in done.out


@pytest.mark.slow
def test_of_a_zip_in_a_store_all_images_are_read_from_the_copy_that_was_fetched(run, nested, bucket, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(Path(nested).rglob("*.png")):
            archive.write(file, file.relative_to(nested))
    bucket.put("set.zip", (tmp_path / "set.zip").read_bytes())
    done = run(f"{bucket.uri}/set.zip", tmp_path / "out", "--attributes-from", "2", "--engine", "inline", *SMALL)
    assert done.code == 0, done.err
    assert len(ShardStore(str(tmp_path / "out")).labels("train")) > 0


@pytest.mark.slow
def test_beside_a_store_it_says_how_pictures_are_made(run, command, nested, bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(nested, f"{bucket.uri}/out", "--attributes-from", "2", "--engine", "inline", *SMALL)
    assert done.code == 0, done.err
    (said,) = (line for line in done.out.splitlines() if line.startswith("Pictures:"))
    words = re.search(r"ltcore (shards pictures \S+) makes them here", said).group(1).split()
    assert words[-1] == f"{bucket.uri}/out" and not any("pictures" in name for name in bucket.names())
    made = command(*words)
    assert made.code == 0 and (tmp_path / "animals-glt-pictures" / "classes.png").exists()


@pytest.mark.slow
def test_another_process_with_other_hashes_writes_the_same_bytes(run, nested, tmp_path):
    words = ["--attributes-from", "2", *SMALL]
    assert run(nested, tmp_path / "here", *words).code == 0
    command = [sys.executable, "-m", "ltcore", "shards", "glt", str(nested), str(tmp_path / "there"), *words]
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert file_hashes(tmp_path / "here") == file_hashes(tmp_path / "there")


@pytest.mark.slow
def test_attributes_are_discovered_and_the_result_is_trained_on(run, command, tmp_path):
    folder = flat_folder(tmp_path)
    words = ("--discover", "random", "--clusters", "3", "--image-size", "4", "--imbalance-factor", "2")
    done = run(folder, tmp_path / "out", *words)
    assert done.code == 0, done.err
    assert "group0, group1, group2" in done.out
    trained = command(
        *("train", "folder_small", "--data", tmp_path / "out", "--storage", tmp_path / "runs", "--engine", "inline"),
        *("--name", "r", "train.epochs=1", "train.batch_size=16", "data.train_split=train", "data.image_size=8"),
    )
    assert trained.code == 0, trained.err
    tested = command("evaluate", tmp_path / "runs" / "r", "--protocol", "glt")
    assert tested.code == 0 and "test_gbl" in tested.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "has no attributes, and a tail inside classes needs two or more. Give --attributes FILE"),
        (
            ("--attributes-from", "2", "--imbalance-factor", "4", "--max-class", "900"),
            "fits, and --max-class fit finds it",
        ),
        (("--groups", "4"), "--groups is about attributes that are discovered; give --discover"),
        (("--discover", "random", "--clusters", "4"), "clusters must be a multiple of groups=3, got 4"),
        (("--discover", "nowhere"), "--discover nowhere: expected random, a run"),
        (("--attributes-from", "2", "--quotas", "1,2"), "quotas must be whole numbers >= 1 that do not rise"),
        (("--attributes-from", "2", "--discover", "random"), "attributes come from one place"),
        (("--attributes-from", "2", "--class-counts", "30,20"), "2 class counts for 3 classes"),
        (
            ("--attributes-from", "2", "--class-counts", "9,6,3", "--imbalance-factor", "9"),
            "--imbalance-factor has no effect beside --class-counts",
        ),
        (("--attributes-from", "2", "--class-counts", "9,6,3", "--profile", "step"), "--profile has no effect beside"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(run, nested, flat, tmp_path, words, said):
    source = nested if "--attributes-from" in words else flat
    done = run(source, tmp_path / "out", *words)
    assert done.code == 2 or done.code == 1
    assert said in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_benchmark_inside_the_folder_of_its_images_is_refused(run, flat):
    done = run(flat, Path(flat) / "out", "--discover", "random")
    assert done.code == 2 and "out lies in " in done.err and not (Path(flat) / "out").exists()


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return flat_folder(tmp_path_factory.mktemp("flat"))
