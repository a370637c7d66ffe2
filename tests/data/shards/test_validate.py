"""Every kind of damage is found and named; a sound data set has no problem; the description shows what is there."""

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from ltcore.data.shards.manifest import read_manifest, write_manifest
from ltcore.data.shards.tar import Damage, split_name, walk
from ltcore.data.shards.validate import check_dataset, describe


@pytest.fixture
def copy(tiny_shards, tmp_path):
    return Path(shutil.copytree(tiny_shards, tmp_path / "copy"))


def found(uri):
    return [str(problem) for problem in check_dataset(str(uri))]


def members(path):
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def rewrite(path, entries):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def has(problems, *words):
    return any(all(word in line for word in words) for line in problems)


def test_a_sound_data_set_has_no_problem_and_progress_is_told(tiny_shards):
    said = []
    assert check_dataset(tiny_shards, progress=said.append) == []
    shards = sum(len(split.shards) for split in read_manifest(tiny_shards).splits.values())
    assert len(said) == shards and f"({shards} of {shards} shards)" in said[-1]


def test_missing_empty_truncated_and_extra_files(copy):
    (copy / "val-00000.tar").unlink()
    assert has(found(copy), "val-00000.tar", "does not exist")
    (copy / "val-00000.tar").write_bytes(b"")
    assert has(found(copy), "val-00000.tar: has 0 bytes, the manifest says")
    shard = copy / "train-00001.tar"
    whole = shard.read_bytes()
    for cut in (len(whole) // 3, len(whole) // 2 // 512 * 512, len(whole) - 10_240):
        shard.write_bytes(whole[:cut])
        assert has(found(copy), "train-00001.tar", f"has {cut} bytes")
    shard.write_bytes(whole)
    (copy / "train-00099.tar").write_bytes(whole)
    assert has(found(copy), "train-00099.tar: the manifest does not know this file")
    (copy / "train-00000.parquet").unlink()
    assert has(found(copy), "train-00000.parquet: cannot be read")


def test_every_flipped_bit_is_found(copy):
    shard = copy / "val-00000.tar"
    whole = shard.read_bytes()
    for position in range(0, len(whole), len(whole) // 12):
        flipped = bytearray(whole)
        flipped[position] ^= 4
        shard.write_bytes(flipped)
        assert has(found(copy), "val-00000.tar: has sha256", "bits were changed")
    shard.write_bytes(whole)
    index = copy / "val-00000.parquet"
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 4
    index.write_bytes(data)
    assert has(found(copy), "val-00000.parquet: has sha256")


def edited(entries, key, ext, change):
    """The entries with one file changed, or left out where ``change`` gives None."""
    result = []
    for name, data in entries:
        new = change(data) if split_name(name) == (key, ext) else data
        if new is not None:
            result.append((name, new))
    return result


@pytest.mark.parametrize(
    ("ext", "change", "words"),
    [
        ("cls", lambda data: None, ("has no label",)),
        ("cls", lambda data: b"4", ("has label '4', expected 0..3",)),
        ("cls", lambda data: b"cat", ("has label 'cat'",)),
        ("cls", lambda data: b"3" if data != b"3" else b"2", ("has label", "its index says")),
        ("png", lambda data: None, ("has 0 images",)),
        ("png", lambda data: b"", ("0 bytes",)),
        ("png", lambda data: b"x" * 100, ("cannot be decoded",)),
        ("png", lambda data: data[:-30], ("has crc32", "its index says")),
        ("json", lambda data: b"{", ("no JSON object",)),
        ("json", lambda data: b'{"attribute": 2}', ("has attribute 2, expected -1..1",)),
    ],
)
def test_a_damaged_sample_is_named(copy, ext, change, words):
    shard = copy / "train-00000.tar"
    entries = members(shard)
    key = next(split_name(name)[0] for name, _ in entries if name.endswith(".json"))
    rewrite(shard, edited(entries, key, ext, change))
    assert has(found(copy), "train-00000.tar", f"sample {key!r}", *words)


def test_interleaved_duplicate_and_unsafe_samples(copy):
    shard = copy / "val-00000.tar"
    entries = members(shard)
    keys = list(dict.fromkeys(split_name(name)[0] for name, _ in entries))
    label = next(i for i, (name, _) in enumerate(entries) if split_name(name) == (keys[0], "cls"))
    rewrite(shard, [*entries[:label], *entries[label + 1 :], entries[label]])
    assert has(found(copy), f"sample {keys[0]!r}", "do not lie side by side")
    again = [(name, data) for name, data in entries if split_name(name)[0] == keys[1]]
    rewrite(shard, entries + again)
    assert has(found(copy), "split val", f"sample {keys[1]!r}", "comes 2 times")
    rewrite(shard, [(name.replace(keys[2], "../evil"), data) for name, data in entries])
    assert has(found(copy), "sample '../evil'", "is no safe name")
    with tarfile.open(shard, "w") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert has(found(copy), "sample 'link.png'", "is no plain file")


def test_counts_unlike_the_manifest_and_what_is_missing(copy):
    manifest = read_manifest(str(copy))
    counts = {**manifest.class_counts, "train": (22, 13, 7, 4)}
    write_manifest(dataclasses.replace(manifest, class_counts=counts), str(copy))
    problems = found(copy)
    assert problems[:2] == [
        "split train: class 'ant' has 23 samples, the manifest says 22",
        "split train: class 'bee' has 12 samples, the manifest says 13",
    ]
    assert len(problems) == 3 and "train-labels.npy has [23, 12, 7, 4] samples per class" in problems[2]
    empty = dataclasses.replace(manifest, class_counts={**manifest.class_counts, "train": (23, 16, 7, 0)})
    write_manifest(empty, str(copy))
    assert has(found(copy), "class 'dog' has no training sample")
    without = {name: part for name, part in manifest.splits.items() if name != "val"}
    counts = {name: row for name, row in manifest.class_counts.items() if name != "val"}
    write_manifest(dataclasses.replace(manifest, splits=without, class_counts=counts), str(copy))
    problems = found(copy)
    assert has(problems, "there is no val split") and has(problems, "val-00000.tar: the manifest does not know")


@pytest.mark.parametrize(
    ("shown", "held_out", "count"), [("train", "val", 46), ("train", "test", 46), ("val", "test", 12)]
)
def test_a_sample_of_one_split_in_one_that_is_held_out_is_a_leak(copy, shown, held_out, count):
    manifest = read_manifest(str(copy))
    splits = {**manifest.splits, held_out: manifest.splits[shown]}
    counts = {**manifest.class_counts, held_out: manifest.class_counts[shown]}
    write_manifest(dataclasses.replace(manifest, splits=splits, class_counts=counts), str(copy))
    leaks = [line for line in found(copy) if f"is in {shown} as well" in line]
    assert len(leaks) == count


def test_an_unreadable_manifest_is_the_one_problem(copy, tmp_path):
    text = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(text)[:-100])
    (only,) = found(copy)
    assert "manifest.json" in only and "no manifest" in only
    assert has(found(tmp_path / "nothing"), "does not exist")


def test_walking_names_the_byte_where_a_tar_ends_early(copy):
    data = (copy / "val-00000.tar").read_bytes()
    samples = [item for item in walk(io.BytesIO(data), len(data)) if not isinstance(item, Damage)]
    assert len(samples) == 6 and not [item for item in walk(io.BytesIO(data), len(data)) if isinstance(item, Damage)]
    for sample in samples:
        for member in sample.members.values():
            assert data[member.offset : member.offset + len(member.data)] == member.data
    end = samples[4].members["cls"].offset + 512
    damage = [item for item in walk(io.BytesIO(data[:end]), end) if isinstance(item, Damage)]
    assert len(damage) == 1 and f"no end mark after byte {end}" in damage[0].what


def test_the_description_tells_a_person_what_is_there(tiny_shards):
    text = describe(tiny_shards)
    lines = text.splitlines()
    assert lines[0].startswith("tiny ") and read_manifest(tiny_shards).hash[:12] in text
    assert "4: ant, bee, cat, dog" in text and "2: day, night" in text
    assert "2 many, 1 medium, 1 few (by rank)" in text and "source: tests" in text
    table = [line.split() for line in lines if line.split()[0] in ("train", "val", "test")]
    assert [row[:3] for row in table] == [["train", "46", "5"], ["val", "12", "2"], ["test", "14", "2"]]
    assert "23..4, imbalance 5.75" in text
