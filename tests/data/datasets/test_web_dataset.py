"""Tars of others, from a URI to batches: indexed once, read where they lie, and refused in words where they are wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets import tar_files
from ltcore.data.datasets.prepare import make, prepare
from ltcore.data.loading.factory import make_loader
from ltcore.data.shards.manifest import Manifest, read_manifest, write_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.validate import check_dataset, describe
from ltcore.errors import ConfigError, DataError
from ltcore.owned_folder import LOCK
from tests.conftest import TINY_COUNTS
from tests.data.web import served
from tests.shards import same
from tests.tars import picture, pictures, write_tar, write_tars

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket

pytest_plugins = ["tests.s3"]


def indexed(uri: Path | str, **choices: Any) -> tuple[str, Manifest]:
    found = prepare(DataConfig(uri=str(uri), **choices))
    return found, read_manifest(found)


def content(uri: str) -> dict[str, dict[str, tuple[int, bytes]]]:
    """Split -> key -> label and image."""
    store = ShardStore(uri)
    found = {}
    for split in store.manifest.splits:
        labels = store.labels(split)
        images = store.read_rows(split, np.arange(len(labels)))
        found[split] = dict(zip(store.keys(split), zip(labels.tolist(), images, strict=True), strict=True))
    return found


def names_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(root)): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*")}


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two tars of ten samples each, of two classes, as WebDataset's own writer stores them."""
    (tmp_path / "pets").mkdir()
    write_tars(tmp_path / "pets" / "train-%06d.tar", pictures(20), maxcount=10)
    return tmp_path / "pets"


def test_tars_in_the_web_give_the_samples_of_local_ones(tars: Path) -> None:
    near = content(prepare(DataConfig(uri=str(tars))))
    with served(tars) as address:
        uri = prepare(DataConfig(uri=f"{address}/train-{{000000..000001}}.tar"))
        assert content(uri) == near and not list(check_dataset(uri))
        with pytest.raises(
            ConfigError, match=r"the web cannot be searched. Name the tars, as in train-\{000..099\}.tar"
        ):
            prepare(DataConfig(uri=f"{address}/train-*.tar"))
        with pytest.raises(DataError, match=r"train-000002\.tar does not exist"):
            prepare(DataConfig(uri=f"{address}/train-000002.tar"))


def test_every_sample_is_read_from_its_place_and_nothing_is_written_beside_it(tars: Path) -> None:
    before = listing(tars)
    uri, manifest = indexed(tars, val_per_class=2)
    assert Path(uri).parent == storage.cache_root() / "datasets" and manifest.name == "pets"
    assert {name.rpartition(".")[2] for name in names_in(uri)} == {"json", "npy", "parquet"}
    found = content(uri)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 14, "val": 2, "test": 4}
    whole = {key: pair for rows in found.values() for key, pair in rows.items()}
    assert whole == {sample["__key__"]: (sample["cls"], sample["png"]) for sample in pictures(20)}
    said: list[str] = []
    assert check_dataset(uri, said.append) == [] and len(said) == 2  # each tar is read once, for all its splits
    assert f"where they were, in {tars}" in describe(uri)
    assert listing(tars) == before


def test_they_are_indexed_once_and_again_only_when_they_change(tars: Path) -> None:
    said: list[str] = []
    cfg = DataConfig(uri=str(tars))
    uri = prepare(cfg, progress=said.append)
    assert said[-2:] == [
        "indexing pets: 2 of 2 tars, 20 images",
        f"indexed pets, once; the index is kept in {uri}, the tars stay where they are",
    ]
    said.clear()
    assert prepare(cfg, progress=said.append) == uri and not said
    os.utime(tars / "train-000001.tar", ns=(1, 1))
    touched = prepare(cfg, progress=said.append)
    assert touched != uri and read_manifest(touched).hash == read_manifest(uri).hash
    write_tars(tars / "train-000001-%d.tar", pictures(4, first=50))
    assert read_manifest(prepare(cfg)).hash != read_manifest(uri).hash


def test_moved_tars_are_the_same_data(tars: Path, tmp_path: Path) -> None:
    _, before = indexed(tars)
    shutil.copytree(tars, tmp_path / "elsewhere" / "pets")
    _, after = indexed(tmp_path / "elsewhere" / "pets")
    assert before.hash == after.hash and before != after


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_batches_are_those_of_own_shards(tiny_shards: str, tmp_path: Path, kind: str) -> None:
    """The tars of our own shards without our indexes, so that the order agrees; two ranks, and a start in the middle."""
    for tar in Path(tiny_shards).glob("*.tar"):
        shutil.copy(tar, tmp_path / tar.name)
    uri, manifest = indexed(tmp_path)
    assert manifest.class_counts == TINY_COUNTS
    for rank in range(2):
        cfg = DataConfig(loader=kind, image_size=16)
        theirs, ours = (make_loader(cfg, at, batch_size=8, seed=0, rank=rank, world=2) for at in (uri, tiny_shards))
        for epoch, start in ((0, 0), (1, 3)):
            pairs = zip(theirs.train_batches(epoch, start), ours.train_batches(epoch, start), strict=True)
            assert [same(*pair) for pair in pairs] == [True] * (5 - start)
        assert all(
            same(*pair) for pair in zip(theirs.eval_batches("test", 3), ours.eval_batches("test", 3), strict=True)
        )


def test_two_ranks_see_every_sample_once_an_epoch(tars: Path) -> None:
    uri, _ = indexed(tars, val_per_class=2)
    seen: list[int] = []
    for rank in range(2):
        cfg = DataConfig(loader="threads", lanes=2)
        loader = make_loader(cfg, uri, batch_size=2, seed=0, rank=rank, world=2)
        seen += (index for batch in loader.train_batches(0) for index in batch.index_B.tolist())
    assert sorted(seen) == list(range(14))


def test_make_rewrites_them_into_own_shards(tars: Path, tmp_path: Path) -> None:
    uri, theirs = indexed(tars, val_per_class=2)
    made = make(DataConfig(uri=str(tars), val_per_class=2), str(tmp_path / "own"), shard_size=7)
    assert not made.indexed and made.class_counts == theirs.class_counts
    assert content(str(tmp_path / "own")) == content(uri) and check_dataset(str(tmp_path / "own")) == []


def test_given_splits_and_a_long_tail(tmp_path: Path) -> None:
    write_tars(tmp_path / "train-%d.tar", pictures(40), maxcount=16)
    write_tars(tmp_path / "validation-%d.tar", pictures(6, first=100))
    write_tars(tmp_path / "test-%d.tar", pictures(8, first=200))
    _, manifest = indexed(tmp_path)
    assert manifest.class_counts == {"train": (20, 20), "val": (3, 3), "test": (4, 4)}
    assert manifest.provenance["val"] == manifest.provenance["test"] == "as given"
    _, tail = indexed(tmp_path, imbalance_factor=4.0)
    assert tail.class_counts == {"train": (20, 5), "val": (3, 3), "test": (4, 4)}
    with pytest.raises(ConfigError, match=r"data\.subset='legacy'"):
        prepare(DataConfig(uri=str(tmp_path), imbalance_factor=4.0, subset="legacy"))


def test_tests_alone_can_be_evaluated_on(tmp_path: Path) -> None:
    write_tars(tmp_path / "test-%d.tar", pictures(8))
    with pytest.raises(DataError, match="none of train"):
        prepare(DataConfig(uri=str(tmp_path)))
    manifest = read_manifest(prepare(DataConfig(uri=str(tmp_path)), needs_train=False))
    assert manifest.class_counts == {"test": (4, 4)}


def relabeled(path: Path, labels: list[bytes], ext: str = "cls") -> None:
    members = (
        (f"{n}.{kind}", data) for n, label in enumerate(labels) for kind, data in (("png", picture(0, n)), (ext, label))
    )
    write_tar(path, members)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([b"0", b"2", b"1"], ("0", "1", "2")),
        ([b"10", b"2", b"1"], ("1", "2", "10")),
        ([b"dog", b"cat", b"red fox"], ("cat", "dog", "red fox")),
        ([b"dog", b"7"], ("7", "dog")),
    ],
)
def test_classes_are_numbers_or_names(tmp_path: Path, labels: list[bytes], classes: tuple[str, ...]) -> None:
    relabeled(tmp_path / "a.tar", labels * 6)
    uri, manifest = indexed(tmp_path / "a.tar")
    assert manifest.classes == classes
    for rows in content(uri).values():
        for key, (label, _) in rows.items():
            assert classes[label] == labels[int(key) % len(labels)].decode()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "cat\n\ndog\r\n"),
        (
            "dataset_info.json",
            json.dumps({"features": {"image": {}, "y": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}),
        ),
    ],
)
@pytest.mark.parametrize("labels", [[b"0", b"1"], [b"cat", b"dog"]])
def test_a_file_beside_the_tars_names_the_classes(tmp_path: Path, name: str, text: str, labels: list[bytes]) -> None:
    (tmp_path / name).write_text(text)
    relabeled(tmp_path / "a.tar", labels * 6)
    _, manifest = indexed(tmp_path / "a.tar")
    assert manifest.classes == ("cat", "dog") and sum(manifest.class_counts["train"]) == 8
    relabeled(tmp_path / "a.tar", [*labels * 6, b"5"])
    with pytest.raises(DataError, match=rf"a.tar: 12 has the label '5', which is not in .*{name}"):
        prepare(DataConfig(uri=str(tmp_path / "a.tar")))


def test_tars_for_evaluation_may_lack_classes_of_the_file(tmp_path: Path) -> None:
    """Their numbers stay those of the file, and one class is enough."""
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    for labels, classes in (([b"0", b"2"], ("ant", "cat")), ([b"1"], ("bee",))):
        relabeled(tmp_path / "test-0.tar", labels * 6)
        said: list[str] = []
        uri = prepare(DataConfig(uri=str(tmp_path / "test-0.tar")), needs_train=False, progress=said.append)
        assert read_manifest(uri).classes == classes
        assert f"left out {3 - len(classes)} class" in " ".join(said) and "classes.txt without an image" in " ".join(
            said
        )


def test_of_several_labels_the_one_that_is_asked_for_has_the_names(tmp_path: Path) -> None:
    names = {"fine": ["ant", "bee", "cat"], "coarse": ["insect", "mammal"]}
    features = {key: {"_type": "ClassLabel", "names": words} for key, words in names.items()}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": features}))
    rows = [json.dumps({"fine": n % 3, "coarse": int(n % 3 == 2)}).encode() for n in range(12)]
    relabeled(tmp_path / "a.tar", rows, "json")
    for key, words in names.items():
        assert indexed(tmp_path / "a.tar", label_key=key)[1].classes == tuple(words)


@pytest.mark.parametrize("text", ["", "cat\ncat\n", "\udcff"])
def test_a_file_of_names_that_makes_no_sense_is_refused(tars: Path, text: str) -> None:
    (tars / "classes.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"classes\.txt .*Correct or remove it"):
        prepare(DataConfig(uri=str(tars)))


def test_labels_below_a_key_of_the_json(tmp_path: Path) -> None:
    relabeled(
        tmp_path / "a.tar", [json.dumps({"meta": {"species": word}}).encode() for word in ("cat", "dog") * 6], "json"
    )
    with pytest.raises(
        DataError, match=r"has no sample with an image and a label: .*0 \.json has no 'label'.*data\.label_key"
    ):
        prepare(DataConfig(uri=str(tmp_path / "a.tar")))
    assert indexed(tmp_path / "a.tar", label_key="meta.species")[1].classes == ("cat", "dog")


def test_bad_samples_are_all_named_or_left_out_up_to_the_limit(tars: Path) -> None:
    spoiled = [("a.png", picture(0, 1)), ("b.cls", b"1"), ("c.png", b"no image"), ("c.cls", b"0")]
    write_tar(tars / "train-2.tar", [*spoiled, ("d.png", picture(0, 900)), ("d.cls", b"0")])
    write_tar(
        tars / "val-0.tar", [("e.png", picture(0, 901)), ("e.cls", b"5"), ("f.png", picture(1, 1)), ("f.cls", b"1")]
    )
    with pytest.raises(DataError) as refused:
        prepare(DataConfig(uri=str(tars)))
    text = str(refused.value)
    assert text.startswith("pets: 4 of 26 samples cannot be used: train-2.tar: a has no label")
    assert "train-2.tar: b has no image" in text and "c the image cannot be decoded" in text
    assert "val-0.tar: e has the label '5', which no training sample has" in text
    assert text.endswith("or leave them out with data.max_bad_samples=4.")
    with pytest.raises(DataError, match="4 of 26"):
        prepare(DataConfig(uri=str(tars), max_bad_samples=3))
    said: list[str] = []
    manifest = read_manifest(prepare(DataConfig(uri=str(tars), max_bad_samples=4), progress=said.append))
    assert manifest.class_counts == {"train": (11, 10), "val": (0, 1)} and len(manifest.provenance["broken"]) == 4
    assert any(line.startswith("pets: left out 4 samples (data.max_bad_samples=4): train-2.tar: a") for line in said)
    with pytest.raises(DataError, match="4 images cannot be used"):  # what is kept was made under another limit
        prepare(DataConfig(uri=str(tars)))


def test_many_bad_samples_are_a_short_message(tmp_path: Path) -> None:
    members = [(f"{n:04d}.png", picture(0, n)) for n in range(100)]
    write_tar(tmp_path / "a.tar", [*members, ("x.png", picture(0, 0)), ("x.cls", b"0")])
    with pytest.raises(DataError, match=r"100 of 101 samples cannot be used: .*; and 90 more\. Correct") as refused:
        prepare(DataConfig(uri=str(tmp_path / "a.tar")))
    assert len(str(refused.value)) < 1200


def test_a_tar_of_class_folders_is_told_from_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"train/cat/{n}.png", picture(0, n)) for n in range(4)])
    with pytest.raises(DataError, match="A tar of class folders has to be unpacked first"):
        prepare(DataConfig(uri=str(tmp_path / "a.tar")))


def test_one_class_is_refused(tmp_path: Path) -> None:
    relabeled(tmp_path / "a.tar", [b"3"] * 8)
    with pytest.raises(DataError, match="all samples have one label, '3'"):
        prepare(DataConfig(uri=str(tmp_path / "a.tar")))


def test_keys_that_each_tar_counts_anew_get_its_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tars(tmp_path / f"{name}%d.tar", pictures(10))
    uri, _ = indexed(tmp_path)
    keys = {key for rows in content(uri).values() for key in rows}
    assert len(keys) == 20 and {"a0.tar/s00000", "b0.tar/s00000"} < keys


@pytest.mark.parametrize("name", ["train-0.tar.gz", "train-0.TGZ"])
def test_compressed_tars_are_unpacked_once(tmp_path: Path, tars: Path, name: str) -> None:
    samples = pictures(10, first=100)
    members = [
        (f"{s['__key__']}.{ext}", data) for s in samples for ext, data in (("png", s["png"]), ("cls", b"%d" % s["cls"]))
    ]
    write_tar(tars / name, members, mode="w:gz")
    left = storage.cache_root() / "unpacked-by-a-killed-command"
    left.mkdir(parents=True)
    (left / LOCK).touch()
    said: list[str] = []
    uri = prepare(DataConfig(uri=str(tars)), progress=said.append)
    assert said[0] == "pets: unpacking 1 compressed tars once, as they cannot be read at offsets"
    assert len(list(Path(uri).glob("*.tar"))) == 1 and check_dataset(uri) == []
    assert sum(len(rows) for rows in content(uri).values()) == 30
    assert not list(storage.cache_root().glob("unpacked-*"))
    prepare(DataConfig(uri=str(tars)), fresh=True)  # the unpacked tar is a file of the data set, which may be replaced
    (tars / name).write_bytes((tars / name).read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be unpacked"):
        prepare(DataConfig(uri=str(tars)))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_files, "PACKED_BYTES", 2**10)
    write_tar(tmp_path / "a.tar.gz", [("0.png", bytes(2**21)), ("0.cls", b"0")], mode="w:gz")
    with pytest.raises(DataError, match="which no images have"):
        prepare(DataConfig(uri=str(tmp_path / "a.tar.gz")))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no end mark"),
        (b"PK\3\4" + bytes(2000), "a wrong checksum"),
        (bytes(10240), "has no sample with an image and a label"),
    ],
)
def test_what_is_no_tar_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=words):
        prepare(DataConfig(uri=str(tmp_path / "a.tar")))


def test_several_broken_tars_and_two_in_one_file(tars: Path) -> None:
    both = [path.read_bytes() for path in sorted(tars.glob("*.tar"))]
    (tars / "train-000000.tar").write_bytes(both[0] + both[1])
    with pytest.raises(DataError, match=r"train-000000\.tar goes on after its end mark.*--concatenate"):
        prepare(DataConfig(uri=str(tars)))
    (tars / "train-000001.tar").write_bytes(both[1][:3000])
    with pytest.raises(DataError, match="1 more tars are broken as well"):
        prepare(DataConfig(uri=str(tars)))


def test_a_tar_that_changes_after_it_was_indexed_is_an_error(tars: Path) -> None:
    uri, _ = indexed(tars, val_per_class=0)
    tar = tars / "train-000000.tar"
    data = tar.read_bytes()
    place = data.index(b"IDAT")
    tar.write_bytes(data[:place] + b"!" + data[place + 1 :])
    with pytest.raises(
        DataError, match=r"train-000000.tar: found sha256 .*It has changed since it was indexed.*run again"
    ):
        content(uri)
    problems = [str(problem) for problem in check_dataset(uri)]
    assert any("has crc32" in line for line in problems) and any("it has changed" in line for line in problems)
    tar.write_bytes(data[:-512])
    with pytest.raises(DataError, match=r"found \d+ bytes, expected \d+ .*It has changed since it was indexed"):
        content(uri)
    tar.unlink()
    with pytest.raises(DataError, match="cannot be opened"):
        content(uri)
    assert any("does not exist" in str(problem) for problem in check_dataset(uri))


@pytest.mark.parametrize(
    ("path", "words"), [("../x.tar", "leaves the data set"), ("/etc/passwd", "leaves the data set")]
)
def test_a_manifest_leads_to_nothing_outside_of_the_base(tars: Path, path: str, words: str) -> None:
    uri, manifest = indexed(tars)
    train = manifest.split("train")
    shards = (dataclasses.replace(train.shards[0], path=path), *train.shards[1:])
    splits = {**manifest.splits, "train": dataclasses.replace(train, shards=shards)}
    write_manifest(dataclasses.replace(manifest, splits=splits), uri)
    with pytest.raises(DataError, match=words):
        read_manifest(uri)


def test_replacing_an_index_removes_no_tar(tars: Path) -> None:
    before = listing(tars)
    uri, manifest = indexed(tars)
    assert manifest.own_files == names_in(uri)
    prepare(DataConfig(uri=str(tars)), fresh=True)
    assert listing(tars) == before


def test_tars_and_index_in_a_store(bucket: Bucket, tars: Path, tmp_path: Path) -> None:
    for tar in tars.iterdir():
        bucket.put(f"theirs/{tar.name}", tar.read_bytes())
    members = [("0.png", picture(0, 300)), ("0.cls", b"0")]
    write_tar(tmp_path / "x.tar.gz", members, mode="w:gz")
    bucket.put("theirs/train-x.tar.gz", (tmp_path / "x.tar.gz").read_bytes())
    before = bucket.names("theirs")
    cfg = DataConfig(uri=f"{bucket.uri}/theirs/*.tar*", val_per_class=2)
    uri = prepare(cfg, root=f"{bucket.uri}/runs/datasets")
    manifest = read_manifest(uri)
    assert uri.startswith(f"{bucket.uri}/runs/datasets/theirs-")
    assert {s.base for part in manifest.splits.values() for s in part.shards} == {"", f"{bucket.uri}/theirs"}
    found = content(uri)
    assert sum(map(len, found.values())) == 21 and check_dataset(uri) == []
    assert bucket.names("theirs") == before
    read = bucket.reads("train-000000.tar")
    assert content(uri) == found and bucket.reads("train-000000.tar") == read  # each is downloaded to this node once
    write_tar(tmp_path / "changed.tar", [("1.png", picture(1, 400)), ("1.cls", b"1")])
    bucket.put("theirs/train-000001.tar", (tmp_path / "changed.tar").read_bytes())
    assert prepare(cfg, root=f"{bucket.uri}/runs/datasets") != uri
    time.sleep(1)  # the store's times have whole seconds, and the first of these tars is as large
    bucket.put("theirs/train-000001.tar", (tars / "train-000000.tar").read_bytes())
    with pytest.raises(DataError, match=r"train-000000.tar and train-000001.tar have the same content"):
        prepare(cfg, root=f"{bucket.uri}/runs/datasets")
