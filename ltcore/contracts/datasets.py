"""What every source of images promises; its samples are read into memory, so it should be small or made small."""

from __future__ import annotations

import functools
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from PIL import Image

from ltcore.contracts.expect import expect
from ltcore.data.config import DataConfig
from ltcore.data.datasets.dataset import Dataset
from ltcore.data.datasets.prepare import write_source
from ltcore.data.datasets.registry import recognize
from ltcore.data.images.decode import decode_canvas
from ltcore.data.shards.source import Sample, Source
from ltcore.data.shards.validate import check_dataset

Open = Callable[[int], Source]
"""``subset_seed`` -> the source."""
Samples = dict[str, list[Sample]]


def opened(uri: str) -> Open:
    """Returns what opens a source by its name, with the default choices."""
    return lambda seed: recognize(uri)(DataConfig(uri=uri, subset_seed=seed, imbalance_factor=None)).source()


def read(source: Source) -> Samples:
    """Reads all samples of all splits."""
    return {split: list(rows) for split, rows in source.splits.items()}


def one_seed_gives_the_same_samples(make: Open) -> None:
    """Tells whether every iteration, and every source of one seed, reads the same samples."""
    source = make(0)
    samples = read(source)
    expect(read(source) == samples, "a second iteration reads other samples")
    sizes = {split: len(rows) for split, rows in source.splits.items()}
    expect(sizes == {split: len(rows) for split, rows in samples.items()}, "len() is not the number of samples")
    again = make(0)
    expect(read(again) == samples, "the same seed gives other samples")
    expect(again.provenance == source.provenance, "the same seed gives another provenance")


def splits_share_no_sample_and_no_image(make: Open) -> None:
    """Tells whether training, validation and test are apart."""
    kinds: dict[str, list[Sample]] = {}
    for split, rows in read(make(0)).items():
        kinds.setdefault(split.split("_")[0], []).extend(rows)
        expect(len({row.key for row in rows}) == len(rows) > 0, f"{split} is empty or has a key twice")
    expect({"train", "test"} <= kinds.keys() <= {"train", "val", "test"}, f"splits are {sorted(kinds)}")
    for field in ("key", "image"):
        values = [{getattr(row, field) for row in rows} for rows in kinds.values()]
        expect(sum(map(len, values)) == len(set().union(*values)), f"two splits share an {field}")


def classes_have_names_and_images(make: Open) -> None:
    """Tells whether classes have different names, and each has images to train and to test on."""
    source = make(0)
    names = source.classes
    expect(all(names) and len(set(names)) == len(names) > 1, f"classes are {list(names)[:5]}")
    for split, rows in read(source).items():
        labels = {row.label for row in rows}
        expect(labels <= set(range(len(names))), f"{split} has labels {sorted(labels)[-3:]} of {len(names)} classes")
        drawn = split.startswith("val") or split == "test_glt"  # as chance has it
        expect(drawn or len(labels) == len(names), f"{split} has {len(labels)} of {len(names)} classes")
        attributes = {row.attribute for row in rows}
        expect(attributes <= {-1, *range(len(source.attributes))}, f"{split} has unknown attributes")


def statistics_are_finite_and_images_decode(make: Open) -> None:
    """Tells whether mean and deviation are those of pixels in 0..1, and images decode at the size."""
    source = make(0)
    expect(len(source.mean) == len(source.std) == 3, "mean and std need three channels")
    expect(all(math.isfinite(m) and 0 <= m <= 1 for m in source.mean), f"mean is {source.mean}")
    expect(all(math.isfinite(s) and 0 < s <= 1 for s in source.std), f"std is {source.std}")
    for row in read(source)["train"][:3]:
        pixels = decode_canvas(row.image, source.image_size, row.key)
        expect(pixels.shape == (3, source.image_size, source.image_size), f"{row.key} decodes to {pixels.shape}")
        expect(bool(np.ptp(pixels) > 0), f"{row.key} has one color")


def the_provenance_names_the_source(make: Open) -> None:
    """Tells whether the provenance is plain JSON that names the source."""
    source = make(0)
    expect(bool(json.loads(json.dumps(dict(source.provenance))).get("source")), "provenance has no 'source'")


def shards_of_it_are_whole(make: Open) -> None:
    """Tells whether it can be written into shards that pass their validation."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_source(make(0), str(Path(folder) / "made"), seed=0, shard_size=1000)
        problems = check_dataset(str(Path(folder) / "made"))
    expect(not problems, "; ".join(map(str, problems[:3])))
    expect(manifest.split("train").num_samples > 0, "there is nothing to train on")


CONTRACTS: tuple[Callable[[Open], None], ...] = (
    one_seed_gives_the_same_samples,
    splits_share_no_sample_and_no_image,
    classes_have_names_and_images,
    statistics_are_finite_and_images_decode,
    the_provenance_names_the_source,
    shards_of_it_are_whole,
)


def leaves_other_places_alone(build: type[Dataset]) -> None:
    """Tells whether a source by path recognizes no ordinary folder or zip of images, and nothing where nothing is."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(out, "PNG")
    with tempfile.TemporaryDirectory() as folder:
        images, archive = Path(folder, "pets"), Path(folder, "pets.zip")
        with ZipFile(archive, "w") as packed:
            for name in ("cats/1.png", "dogs/2.png"):
                packed.writestr(name, out.getvalue())
            packed.extractall(images)
        for place, what in ((images, "a folder"), (archive, "a zip")):
            expect(not build.recognizes(str(place)), f"it recognizes {what} of images by class, which others read")
        expect(not build.recognizes(str(Path(folder, "nothing"))), "it recognizes a place where nothing is")


@contextmanager
def _example(build: type[Dataset]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        uri = build.example(folder)
        expect("://" not in uri, f"its example is at {uri}, expected a path")
        expect(recognize(uri) is build, f"{recognize(uri).__name__} recognizes its example, not {build.__name__}")
        yield uri


def copies_of_it_are_told_apart(build: type[Dataset]) -> None:
    """Tells whether name and identity of a source by path, by which its shards are found again, follow what lies there."""
    with _example(build) as uri:
        cfg = DataConfig(uri=uri, imbalance_factor=None)
        name, identity = build(cfg).name, build(cfg).identity
        expect(bool(name) and "/" not in name, f"name={name!r} begins the name of a folder: it needs to be one word")
        expect(build(cfg).identity == identity, "the same place has another identity the second time")
        lies = Path(uri) if Path(uri).is_dir() else Path(uri).parent
        largest = max((file for file in lies.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
        with largest.open("ab") as grown:
            grown.write(b"\0")
        try:
            after = build(cfg).identity
        except Exception:  # it has noticed, too, or what reads the file has
            return
        expect(after != identity, f"{largest.name} has grown, but the identity stays, so that earlier shards are used")


def no_place_is_told(build: type[Dataset]) -> None:
    """Tells whether the provenance of a source by path, which goes with shards, names no place of this machine."""
    with _example(build) as uri:
        told = json.dumps(dict(opened(uri)(0).provenance))
        expect(str(Path(uri).parent) not in told, "the provenance has the path of its place")


def _of_example(check: Callable[[Open], None]) -> Callable[[type[Dataset]], None]:
    @functools.wraps(check)
    def of_example(build: type[Dataset]) -> None:
        with _example(build) as uri:
            check(opened(uri))

    return of_example


def by_path_contracts(build: type[Dataset]) -> tuple[Callable[[type[Dataset]], None], ...]:
    """Returns what a source by path promises: where it writes an example, all that others do and what a place needs."""
    if build.example is Dataset.example:
        return (leaves_other_places_alone,)
    return (leaves_other_places_alone, copies_of_it_are_told_apart, no_place_is_told, *map(_of_example, CONTRACTS))
