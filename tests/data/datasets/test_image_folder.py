"""Folders, zips and list files of images: layouts, original bytes, splits, and one sentence for every broken input."""

import gzip
import io
import os
import zipfile
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ltcore.data.config import DataConfig
from ltcore.data.datasets.columns import Texts
from ltcore.data.datasets.folder_layout import read_folders
from ltcore.data.datasets.image_folder import image_folder, keys_of
from ltcore.data.datasets.image_root import open_root
from ltcore.data.datasets.listed import read_lists
from ltcore.data.datasets.prepare import open_dataset, prepare
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.source import safe_key
from ltcore.errors import DataError


def image(n, ext="png", size=(12, 10)):
    rng = np.random.default_rng(n)
    out = io.BytesIO()
    kind = {"png": "PNG", "jpg": "JPEG", "JPEG": "JPEG", "webp": "WEBP"}[ext]
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def flat_files(counts):
    return {
        f"{name}/{i:03d}.png": image(hash((len(name), i)) % 10_000)
        for name, count in counts.items()
        for i in range(count)
    }


def as_folder(files, root):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return open_root(str(root))


def as_zip(files, path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return open_root(str(path))


def contents(source):
    return {split: sorted((r.key, r.ext, r.label, r.image) for r in rows) for split, rows in source.splits.items()}


SPLIT_FILES = {
    **{f"train/ant/{i}.png": image(i) for i in range(6)},
    **{f"train/bee/{i}.jpg": image(50 + i, "jpg") for i in range(4)},
    "val/ant/9.png": image(9),
    "test/ant/1.png": image(100),
    "test/bee/2.JPEG": image(101, "JPEG"),
}


def test_split_folders_are_taken_as_they_are_with_their_original_bytes(tmp_path):
    root = as_folder(SPLIT_FILES | {".DS_Store": b"x", "train/ant/.hidden": b"x"}, tmp_path / "set")
    source = image_folder(root, read_folders(root), DataConfig(uri="x"))
    assert source.classes == ("ant", "bee")
    got = {(row.key, row.ext): row for rows in source.splits.values() for row in rows}
    assert len(got) == len(SPLIT_FILES)
    for path, data in SPLIT_FILES.items():
        row = got[path.rpartition(".")[0], "jpg" if path.lower().endswith(("jpg", "jpeg")) else "png"]
        assert row.image == data and row.label == (0 if "/ant/" in path else 1)
    assert [len(source.splits[s]) for s in ("train", "val", "test")] == [10, 1, 2]
    assert source.image_size == 10 and source.provenance["val"] == "as given"


def test_a_zip_and_a_folder_of_the_same_files_give_the_same_samples(tmp_path):
    wrapped = {f"set/{name}": data for name, data in SPLIT_FILES.items()}
    cfg = DataConfig(uri="x")
    roots = as_folder(SPLIT_FILES, tmp_path / "set"), as_zip(SPLIT_FILES, tmp_path / "set.zip")
    sources = [image_folder(root, read_folders(root), cfg) for root in roots]
    assert contents(sources[0]) == contents(sources[1])
    assert sources[0].provenance == sources[1].provenance and sources[0].mean == sources[1].mean
    packed = as_zip(wrapped, tmp_path / "wrapped.zip")  # one folder around everything
    layout = read_folders(packed)
    assert layout.classes == ("ant", "bee") and {s: len(e) for s, e in layout.splits.items()} == {
        "train": 10, "val": 1, "test": 2
    }  # fmt: skip


def test_a_zip_whose_names_begin_with_a_dot_gives_the_splits_of_its_folder(tmp_path):
    files = flat_files({"ant": 12, "bee": 8})
    as_folder(files, tmp_path / "set")
    as_zip({f"./{name}": data for name, data in files.items()}, tmp_path / "set.zip")
    both = [contents(open_dataset(DataConfig(uri=str(tmp_path / name))).source()) for name in ("set", "set.zip")]
    assert both[0] == both[1]


def test_keys_are_of_paths_as_pathlib_spells_them():
    """They choose who goes to val and test: copies made years apart have to agree."""
    paths = ["a//b.png", "./c/d.png", "e/./f.png", "https://host/cat/1.jpg", "g/h.i.png"]
    keys = keys_of(SimpleNamespace(by_content=False, where="t"), SimpleNamespace(outer=""), Texts.of(paths))
    assert [key for key, _ in keys] == ["a/b", "c/d", "e/f", safe_key("https:/host/cat/1"), safe_key("g/h.i")]


def test_a_flat_folder_is_split_by_hash_whatever_the_names_order(tmp_path):
    files = flat_files({"ant": 50, "bee": 20, "cow": 3})
    root = as_folder(files, tmp_path / "set")
    source = image_folder(root, read_folders(root), DataConfig(uri="x", val_per_class=5))
    counts = {split: Counter(row.label for row in rows) for split, rows in source.splits.items()}
    assert counts["test"] == {0: 10, 1: 4, 2: 1}
    assert counts["val"] == {0: 5, 1: 3, 2: 1}  # at most a fifth of the 16 that are left
    assert counts["train"] == {0: 35, 1: 13, 2: 1}
    keys = [row.key for rows in source.splits.values() for row in rows]
    assert len(keys) == len(set(keys)) == 73
    assert source.provenance["val_short"] == {"bee": 3, "cow": 1}


def test_a_long_tail_leaves_val_and_test_as_they_should_be(tmp_path):
    files = {f"train/{c}/{i}.png": image(i) for c in "abcd" for i in range(30)}
    files |= {f"test/{c}/{i}.png": image(i) for c in "abcd" for i in range(3)}
    root = as_zip(files, tmp_path / "set.zip")
    source = image_folder(root, read_folders(root), DataConfig(uri="x", imbalance_factor=10, val_per_class=4))
    counts = {split: Counter(row.label for row in rows) for split, rows in source.splits.items()}
    assert counts["train"] == {0: 30, 1: 13, 2: 6, 3: 3}
    assert counts["val"] == {1: 4, 2: 4, 3: 4} and set(counts["test"].values()) == {3}
    assert source.name == "set-if10-keyed" and source.provenance["val_short"] == {"a": 0}


def test_names_that_differ_in_their_extension_alone_or_are_no_legal_keys_stay_apart(tmp_path):
    names = ["ant/1.png", "ant/1.jpg", "ant/a b.png", "ant/a_b.png", "ant/x.y.png", "bee/ü.png"]
    root = as_folder({n: image(i, n.rpartition(".")[2]) for i, n in enumerate(names)}, tmp_path / "set")
    source = image_folder(root, read_folders(root), DataConfig(uri="x", val_per_class=0))
    keys = [row.key for rows in source.splits.values() for row in rows]
    assert len(set(keys)) == len(names) and all(safe_key(key) == key for key in keys)
    assert "ant/a_b" in keys


def test_canvas_mean_and_std_are_measured(tmp_path):
    data = io.BytesIO()
    Image.fromarray(np.full((300, 400, 3), (255, 102, 0), np.uint8)).save(data, "PNG")
    root = as_folder({"a/1.png": data.getvalue(), "b/1.png": data.getvalue()}, tmp_path / "set")
    source = image_folder(root, read_folders(root), DataConfig(uri="x"))
    assert source.image_size == 224 and source.mean == (1.0, 0.4, 0.0)
    assert min(source.std) > 0


def test_list_files_name_splits_labels_and_classes(tmp_path):
    files = {f"photos/{name}/{i}.png": image(i) for name in ("zoo", "airport") for i in range(6)}
    root = as_folder(files | {"notes.txt": b"not listed, so of no interest"}, tmp_path / "set")
    train = [f"photos/zoo/{i}.png 0" for i in range(4)] + [f"photos/airport/{i}.png 1" for i in range(4)]
    (tmp_path / "train.txt").write_text("\n".join(train) + "\n\n")
    (tmp_path / "test.txt.gz").write_bytes(gzip.compress(b"photos/zoo/5.png 0\nphotos/airport/5.png 1"))
    layout = read_lists(root, {"train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt.gz")}.items())
    assert layout.classes == ("zoo", "airport")  # by label, not by name
    source = image_folder(root, layout, DataConfig(uri="x", val_per_class=0))
    assert {row.key: row.label for row in source.splits["test"]} == {"photos/zoo/5": 0, "photos/airport/5": 1}
    assert len(source.splits["train"]) == 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a/1.png", r"train.txt, line 2: expected 'path label'"),
        ("a/1.png -1", r"line 2: expected a label that is a class name or a whole number of 0 or more, found -1"),
        ("a/7.png 0", r"line 2: there is no a/7.png in"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    root = as_folder({"a/0.png": image(0), "a/1.png": image(1)}, tmp_path / "set")
    (tmp_path / "train.txt").write_text(f"a/0.png 0\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_lists(root, {"train": str(tmp_path / "train.txt")}.items())


def test_lists_must_agree_with_each_other(tmp_path):
    root = as_folder({"a/0.png": image(0), "a/1.png": image(1)}, tmp_path / "set")
    paths = {split: str(tmp_path / f"{split}.txt") for split in ("train", "test")}
    (tmp_path / "train.txt").write_text("a/0.png 0\n")
    with pytest.raises(DataError, match="none for train"):
        read_lists(root, {"test": paths["test"]}.items())
    with pytest.raises(DataError, match=r"test.txt does not exist"):
        read_lists(root, paths.items())
    for text, message in (
        ("", "is empty"),
        ("a/1.png 4", "a/1.png has label 4, which no training image has"),
        ("a/0.png 0", "has the split 'test', but 'train' in .*train.txt, line 1; splits must be disjoint"),
    ):
        (tmp_path / "test.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            read_lists(root, paths.items())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images; expected"),
        ({"loose.png": b""}, r"loose.png does not fit .* list files .*--list"),
        ({"train/a/1.png": b"", "train/2.png": b""}, r"train/2.png does not fit train\|val\|test/<class>/<image>"),
        ({"train/a/1.png": b"", "other/a/2.png": b""}, "other/a/2.png does not fit"),
        ({"test/a/1.png": b"", "val/a/1.png": b""}, "no train folder"),
        ({"train/a/1.png": b"", "test/b/1.png": b""}, r"test/b/1.png is of class 'b' in test, which has no training"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_with_the_file(tmp_path, files, message):
    (tmp_path / "set").mkdir()
    root = as_folder(files, tmp_path / "set")
    with pytest.raises(DataError, match=message):
        read_folders(root)


def read_all(root):
    source = image_folder(root, read_folders(root), DataConfig(uri="x", val_per_class=0))
    return [row for rows in source.splits.values() for row in rows]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a/bad.png", b"no image at all", "a/bad.png: the image cannot be decoded"),
        ("a/bad.png", b"", "a/bad.png: the image has 0 bytes"),
        ("a/bad.png", image(1)[:150], "a/bad.png: the image cannot be decoded"),
    ],
)
@pytest.mark.parametrize("pack", [as_folder, as_zip])
def test_a_broken_file_is_named(tmp_path, name, data, message, pack):
    good = {f"{c}/{i}.png": image(i) for c in "ab" for i in range(3)}
    root = pack(good | {name: data}, tmp_path / "set")
    with pytest.raises(DataError, match=message):
        read_all(root)


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"])
def test_zip_names_that_point_outside_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="points outside"):
        as_zip({"a/1.png": image(0), name: image(1)}, tmp_path / "set.zip")


def test_a_damaged_zip_is_named(tmp_path):
    files = {f"{c}/{i}.png": image(i) for c in "ab" for i in range(3)}
    as_zip(files, tmp_path / "set.zip")
    whole = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.zip is no readable zip"):
        open_root(str(tmp_path / "cut.zip"))
    position = whole.index(files["a/1.png"][40:80])
    (tmp_path / "flip.zip").write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    with pytest.raises(DataError, match=r"a/1.png cannot be read \(Bad CRC"):
        read_all(open_root(str(tmp_path / "flip.zip")))
    with pytest.raises(DataError, match="does not exist"):
        open_root(str(tmp_path / "nothing"))


def test_the_fingerprint_follows_content_and_names(tmp_path):
    files = {"a/1.png": image(1), "b/1.png": image(2)}
    first = as_zip(files, tmp_path / "1.zip").fingerprint
    assert as_zip(dict(reversed(files.items())), tmp_path / "2.zip").fingerprint == first
    assert as_zip(files | {"a/1.png": image(3)}, tmp_path / "3.zip").fingerprint != first
    assert as_zip({"a/2.png": image(1), "b/1.png": image(2)}, tmp_path / "4.zip").fingerprint != first


def test_a_file_name_that_is_no_utf8_is_a_name_like_any_other(tmp_path):
    folder = tmp_path / "data"
    for name in (os.fsdecode(b"train/cat/caf\xe9.png"), "train/cat/a.png", "train/dog/b.png", "train/dog/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image(len(name)))
    uri = prepare(DataConfig(uri=str(folder), val_per_class=0))
    manifest = read_manifest(uri)
    assert sum(split.num_samples for split in manifest.splits.values()) == 4


def test_a_zip_whose_names_are_utf8_without_saying_so_reads_as_its_folder(tmp_path):
    """As Info-ZIP and the Mac's Finder write them."""
    files = {f"{name}/{n}.png": image(n) for name in ("Käfer", "Vögel") for n in range(6)}
    as_zip(files, tmp_path / "set.zip")
    packed = bytearray((tmp_path / "set.zip").read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = packed.find(mark)
        while at >= 0:
            packed[at + flags + 1] &= ~0x08
            at = packed.find(mark, at + 4)
    (tmp_path / "set.zip").write_bytes(packed)
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        assert not any("Käfer" in name for name in archive.namelist())
    assert list(open_root(str(tmp_path / "set.zip")).files) == list(as_folder(files, tmp_path / "set").files)


def test_lists_may_spell_a_path_as_find_and_windows_do(tmp_path):
    files = {f"{name}/{n}.png": image(n) for name in ("cat", "dog") for n in range(6)}
    root = as_folder(files, tmp_path / "set")
    lines = [
        f"./{path} {path[:3]}" if n % 2 else f"{path} {path[:3]}".replace("/", "\\") for n, path in enumerate(files)
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    layout = read_lists(root, [("train", str(tmp_path / "train.txt"))])
    assert sorted(layout.splits["train"].paths) == sorted(files)


def test_validation_is_held_out_of_every_training_split(tmp_path):
    files = {f"{name}/{n}.png": image(n) for name in ("cat", "dog") for n in range(20)}
    as_folder(files, tmp_path / "set")
    found = []
    for split, count in (("train", 20), ("train_cbl", 12)):
        lines = [f"{c}/{n}.png {c}" for c in ("cat", "dog") for n in range(count)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
        found.append((split, str(tmp_path / f"{split}.txt")))
    source = open_dataset(DataConfig(uri=str(tmp_path / "set")), found).source()
    items = {split: {item.path for item in rows.items} for split, rows in source.splits.items()}
    assert items["val"] and items["val"] & {f"{c}/{n}.png" for c in ("cat", "dog") for n in range(12)}
    assert not items["val"] & (items["train"] | items["train_cbl"])
    assert items["train_cbl"] == {f"{c}/{n}.png" for c in ("cat", "dog") for n in range(12)} - items["val"]
