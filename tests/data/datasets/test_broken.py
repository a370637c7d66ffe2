"""Broken images are named all at once, and left out only as far as is allowed, as if their files were not there."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets.broken import BrokenImagesError, broken_images
from ltcore.data.datasets.prepare import make, prepare
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.remarks import BROKEN, remarks
from ltcore.data.shards.validate import describe
from ltcore.errors import BadImageError, DataError
from ltcore.storage import cache_root
from tests.data.folders import PACKS, images, place
from tests.data.small import tiny_png

ANY_PACK = pytest.mark.parametrize("pack", PACKS)
CUT = tiny_png(0)[:60]
SOUND = images("train/cat", "train/dog", "test/cat", "test/dog", count=8)
SPOILED = {"test/dog/2.png": b"", **{f"train/cat/{n}.png": CUT for n in (1, 3, 5, 7)}}


@ANY_PACK
def test_all_broken_images_of_all_splits_are_named_at_once(tmp_path: Path, pack: str) -> None:
    with pytest.raises(BrokenImagesError) as found:
        prepare(DataConfig(uri=place(tmp_path, SOUND | SPOILED, pack)))
    head, *lines = str(found.value).split("\n")
    assert head.endswith(
        ": 5 images are broken. Remove or replace them; to go on without them: data.max_bad_samples=5 (make_shards.py: "
        "--max-bad-samples)."
    )
    assert [line.split(": the image ")[0] for line in lines] == [f"  {path}" for path in sorted(SPOILED)]
    assert lines[0] == "  test/dog/2.png: the image has 0 bytes"
    assert not [path for path in (cache_root() / "datasets").iterdir() if path.suffix != ".lock"]


@ANY_PACK
@pytest.mark.parametrize("carved", [True, False])
def test_as_many_as_are_allowed_are_left_out_as_if_they_were_not_there(tmp_path: Path, pack: str, carved: bool) -> None:
    sound, spoiled = SOUND, SPOILED
    if carved:  # val and test are chosen among the sound ones
        sound, spoiled = images("cat", "dog", count=8), {f"cat/{n}.png": CUT for n in range(5)}
    told: list[str] = []
    out, without = str(tmp_path / "out"), str(tmp_path / "without")
    cfg = DataConfig(uri=place(tmp_path, sound | spoiled, pack), max_bad_samples=5)
    manifest = make(cfg, out, progress=told.append)
    left = {name: data for name, data in sound.items() if name not in spoiled}
    other = make(DataConfig(uri=place(tmp_path, left, pack, name="left")), without)
    for split in other.splits:
        assert list(ShardStore(out).keys(split)) == list(ShardStore(without).keys(split))
    assert manifest.class_counts == other.class_counts and manifest.mean == other.mean
    assert (
        manifest.provenance[BROKEN].keys() == spoiled.keys() and "photos: writing again without 5 broken images" in told
    )
    said = f"photos: 5 images that cannot be used are left out (data.max_bad_samples): {', '.join(sorted(spoiled))}."
    assert said in remarks(manifest) and describe(out).count("cannot be used") == 1


def test_the_allowance_is_asked_of_made_shards_again(tmp_path: Path) -> None:
    uri = place(tmp_path, SOUND | SPOILED)
    with pytest.raises(BrokenImagesError, match="5 images are broken"):
        prepare(DataConfig(uri=uri, max_bad_samples=4))
    made = prepare(DataConfig(uri=uri, max_bad_samples=5))
    assert prepare(DataConfig(uri=uri, max_bad_samples=9)) == made  # the same samples, so no other copy
    with pytest.raises(
        DataError, match=r"5 images cannot be used \(test/dog/2\.png, .*, expected at most data\.max_bad_samples=0\."
    ):
        prepare(DataConfig(uri=uri))
    place(tmp_path, {name: SOUND[name] for name in SPOILED})  # repaired
    assert read_manifest(prepare(DataConfig(uri=uri))).class_counts["test"] == (8, 8)


def test_files_that_cannot_be_read_are_named_with_those_that_cannot_be_decoded(tmp_path: Path) -> None:
    folder = Path(place(tmp_path, SOUND | {"train/cat/cut.png": CUT}))
    (folder / "train/dog/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(folder / "train/dog/pipe.png")  # to open it would wait for a writer for ever
    with pytest.raises(BrokenImagesError) as found:
        prepare(DataConfig(uri=str(folder)))
    assert {path: problem.split("(")[0].strip() for path, problem in found.value.found.items()} == {
        "train/cat/cut.png": "the image cannot be decoded",
        "train/dog/gone.jpg": "cannot be read",
        "train/dog/pipe.png": "is no plain file",
    }
    assert read_manifest(prepare(DataConfig(uri=str(folder), max_bad_samples=3))).class_counts["train"] == (7, 7)


def test_damaged_members_of_a_zip_are_named_together(tmp_path: Path) -> None:
    uri = place(tmp_path, SOUND, "zip")
    whole = bytearray(Path(uri).read_bytes())
    with zipfile.ZipFile(uri) as archive:
        for name in ("train/cat/1.png", "test/cat/2.png"):
            whole[archive.getinfo(name).header_offset + 60] ^= 1
    Path(uri).write_bytes(whole)
    with pytest.raises(BrokenImagesError, match=r"2 images are broken\..*\n  test/cat/2.png: cannot be read \(Bad CRC"):
        prepare(DataConfig(uri=uri))


def test_very_many_are_bounded_and_listed_in_a_file(tmp_path: Path) -> None:
    files = {f"{name}/{n:02}.png": CUT for name in ("cat", "dog") for n in range(15)}
    with pytest.raises(BrokenImagesError) as found:  # no single image from which size and mean could be measured
        prepare(DataConfig(uri=place(tmp_path, files)))
    lines = str(found.value).split("\n")
    assert len(lines) == 22 and lines[0].startswith(f"{tmp_path}/photos: 30 images are broken.")
    what, _, place_of_list = lines[-1].partition("; all are listed in ")
    assert what == "  and 10 more"
    assert [line.split(":")[0] for line in Path(place_of_list).read_text().splitlines()] == sorted(files)


def test_a_class_of_broken_images_alone_is_no_class(tmp_path: Path) -> None:
    files = images("cat", "dog") | {"emu/0.png": CUT, "emu/1.png": b""}
    with pytest.raises(DataError, match=r"no training image in 1 class, the first is 'emu'"):
        prepare(DataConfig(uri=place(tmp_path, files), max_bad_samples=2))


def test_hostile_names_and_problems_stay_in_their_lines(tmp_path: Path) -> None:
    names = ["a\n  b.png", "\x1b[2J.png"]
    error = broken_images("photos", {name: BadImageError("x", "bad\nnews") for name in names})
    assert str(error).split("\n")[1:] == [r"  \x1b[2J.png: bad\nnews", r"  a\n  b.png: bad\nnews"]


def test_the_errors_travel_between_processes() -> None:
    error = broken_images("photos", {"a.png": BadImageError("photos: a.png is bad.", "is bad")})
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.found == {"a.png": "is bad"}
    assert pickle.loads(pickle.dumps(BadImageError("x is bad.", "is bad"))).problem == "is bad"
