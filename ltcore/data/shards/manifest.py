"""The manifest: everything about a data set but its samples, in one JSON file beside the shards.

A folder without ``manifest.json`` is no data set: it is written last, so half-written data are never taken for whole.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ltcore import storage
from ltcore.data.config import MAX_IMAGE_SIZE
from ltcore.data.shards.exchange import put_back
from ltcore.errors import DataError, nearest
from ltcore.limits import MAX_CLASSES, MAX_COUNT, MAX_MANIFEST_BYTES, MAX_NAME_CHARS, MIN_BYTES_OF_ROW, load_json
from ltcore.shots import SHOT_GROUPS
from ltcore.text import glimpse

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ltcore.stats import ClassStats

MANIFEST = "manifest.json"
SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
VERSION = 2
REPEATS = "images_per_picture"
"""Key of the provenance: split -> how many images show each picture, where these are several."""
SKIPPED = "skipped"
"""Key of the provenance: what lay among the images and is none, in words. No part of the hash, as no sample depends on it."""
_PARSED: OrderedDict[bytes, Manifest] = OrderedDict()
"""sha256 of the file -> what it says, of those that were read last: it takes a second and 100 MB for 100,000 shards."""
_MOST_PARSED = 2


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file and its index."""

    base: str = ""
    """Folder or URI prefix of a tar that lies elsewhere; '' is the data set itself."""
    path: str
    """Of the tar, relative to its base."""
    count: int
    """Samples in it, >= 1."""
    first_index: int
    """Index of its first sample inside the split; counts from 0 in each split."""
    bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar, hexadecimal."""
    index_path: str
    """Of the parquet index (key, label, attribute, ext, offset, size, crc32), relative to the data set."""
    index_sha256: str
    """Of the index, hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """The file with label and attribute of every sample of a split; see ``ltcore.data.shards.labels``."""

    path: str
    """Relative to the data set."""
    bytes: int
    sha256: str
    """Hexadecimal."""


@dataclass(frozen=True)
class Split:
    """The shards of one split in index order; a split may be empty."""

    shards: tuple[Shard, ...]
    labels: LabelTable

    @cached_property
    def first_index_S(self) -> npt.NDArray[np.int64]:
        """Returns [S] the index of the first sample of each shard."""
        import numpy as np

        return np.array([shard.first_index for shard in self.shards], np.int64)

    @cached_property
    def num_samples(self) -> int:
        return sum(shard.count for shard in self.shards)

    @property
    def rows_per_shard(self) -> tuple[int, ...]:
        return tuple(shard.count for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set. Equal content gives an equal ``hash``, whatever the order in which files were listed."""

    version: int = VERSION
    name: str
    classes: tuple[str, ...]
    """Class names; a label is a position in it."""
    attributes: tuple[str, ...]
    """Names of the attribute's values; a sample's attribute is a position in it or -1. Empty where there is none."""
    splits: dict[str, Split]
    class_counts: dict[str, tuple[int, ...]]
    """Per split: samples of each class."""
    shot_groups: tuple[str, ...]
    """Per class: many, medium or few, from the counts of the training split unless they are given."""
    shot_rule: str
    """``count`` (more than 100, fewer than 20), ``rank`` (thirds), ``glt`` (ranks as its authors') or ``given``."""
    image_size: int
    """Side in pixels at which the images are meant to be decoded."""
    mean: tuple[float, ...]
    """Of the three channels of the training images, in [0, 1]."""
    std: tuple[float, ...]
    seed: int
    """Of the selection and the order of the samples."""
    indexed: bool = False
    """The tars are of others, who named their members as they liked, and were indexed as they are."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How the data were made: plain JSON, without times, so that equal data have equal hashes."""

    def repeats(self, split: str) -> int:
        """Returns how many images of a split show the same picture; 1 where nothing says that these are several."""
        said = self.provenance.get(REPEATS)
        found = said.get(split) if isinstance(said, dict) else None
        return found if isinstance(found, int) and found > 1 else 1

    @cached_property
    def hash(self) -> str:
        """Returns the sha256 of the canonical JSON, which leaves out where tars lie: moved data are the same data."""
        content = _content(self)
        content["provenance"] = {key: value for key, value in self.provenance.items() if key != SKIPPED}
        for split in content["splits"].values():
            split["shards"] = [{k: v for k, v in shard.items() if k != "base"} for shard in split["shards"]]
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def file_hashes(self) -> dict[str, str]:
        """Returns name -> sha256 of the files that lie in the data set itself, less the manifest."""
        shards = [shard for split in self.splits.values() for shard in split.shards]
        tars = {shard.path: shard.sha256 for shard in shards if not shard.base}
        tables = {split.labels.path: split.labels.sha256 for split in self.splits.values()}
        return {**tars, **tables, **{shard.index_path: shard.index_sha256 for shard in shards}}

    @cached_property
    def own_files(self) -> frozenset[str]:
        """Returns the names of all files that lie in the data set itself."""
        return frozenset({MANIFEST, *self.file_hashes})

    def split(self, name: str) -> Split:
        """Returns the split of that name. Raises DataError that lists the existing ones where there is none."""
        if name not in self.splits:
            raise DataError(
                f"{self.name}: no split {name!r}.{nearest(name, self.splits)} It has: {', '.join(self.splits)}."
            )
        return self.splits[name]

    def stats(self, split: str = "train") -> ClassStats:
        """Returns the counts of the split and the shot groups of the training split."""
        self.split(split)
        import torch  # reading a manifest alone does not wait for it

        from ltcore.stats import ClassStats

        counts_C = torch.tensor(self.class_counts[split], dtype=torch.int64)
        return ClassStats(counts_C, self.shot_groups, class_names=self.classes)


def write_manifest(manifest: Manifest, uri: str) -> None:
    """Writes ``manifest.json`` into the data set at ``uri``, whole or not at all."""
    text = json.dumps(_content(manifest), indent=1, sort_keys=True)
    storage.write_bytes_atomic(storage.join(uri, MANIFEST), text.encode())


def _content(manifest: Manifest) -> dict[str, Any]:
    """Returns the fields as plain values, those of the shards not copied: ``asdict`` takes seconds for 100,000 of them."""
    splits = {
        name: {"shards": list(map(vars, split.shards)), "labels": vars(split.labels)}
        for name, split in manifest.splits.items()
    }
    return {**{each.name: getattr(manifest, each.name) for each in fields(manifest)}, "splits": splits}


def read_manifest(uri: str) -> Manifest:
    """Reads the manifest of the data set at ``uri``; the same content is parsed once in a process.

    Raises DataError where there is none or it contradicts itself.
    """
    where = storage.join(uri, MANIFEST)
    data = storage.find_bytes(where, most_bytes=MAX_MANIFEST_BYTES)
    if data is None and put_back(uri):
        data = storage.find_bytes(where, most_bytes=MAX_MANIFEST_BYTES)
    if data is None:
        raise DataError(
            f"{where} does not exist, so {uri} is no data set of shards. Check the path; of images, ltcore shards IMAGES OUT "
            "makes one."
        )
    digest = hashlib.sha256(data).digest()
    if (known := _PARSED.get(digest)) is not None:
        return known
    try:
        raw = load_json(data)
        version = raw["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} is no manifest ({error!r}). Make the data set again.") from error
    if version != VERSION:
        raise DataError(f"{where}: version {version}, expected {VERSION}. Make the data set again with this ltcore.")
    try:
        manifest = _parse(raw)
        problem = next(itertools.chain(_mistyped(manifest), _contradiction(manifest)), "")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{where} is damaged ({error!r}). Make the data set again.") from error
    if problem:
        raise DataError(f"{where}: {problem}. Make the data set again.")
    _PARSED[digest] = manifest
    while len(_PARSED) > _MOST_PARSED:
        _PARSED.popitem(last=False)
    return manifest


def forget() -> None:
    """Lets go of all manifests that this process keeps."""
    _PARSED.clear()


def _parse(raw: dict[str, Any]) -> Manifest:
    tuples = {name: tuple(raw[name]) for name in ("classes", "attributes", "shot_groups", "mean", "std")}
    splits = {
        name: Split(tuple(Shard(**shard) for shard in split["shards"]), LabelTable(**split["labels"]))
        for name, split in raw["splits"].items()
    }
    counts = {name: tuple(int(n) for n in row) for name, row in raw["class_counts"].items()}
    return Manifest(**{**raw, **tuples, "splits": splits, "class_counts": counts})


def _mistyped(manifest: Manifest) -> Iterator[str]:
    """Yields values of the wrong type; each check relies on those before it."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    yield from (f"found {glimpse(value)} where a name or a count should be" for value in _odd_values(manifest, shards))
    if not 1 <= manifest.image_size <= MAX_IMAGE_SIZE:
        yield f"image_size is {manifest.image_size}, expected 1 to {MAX_IMAGE_SIZE} pixels"
    if len(set(manifest.classes)) != len(manifest.classes):
        yield "two classes have the same name"
    yield from odd_names(manifest.classes, manifest.attributes)
    for name, values in (("mean", manifest.mean), ("std", manifest.std)):
        if len(values) != 3 or not all(map(math.isfinite, values)):
            yield f"{name} is {list(values)}, expected three numbers"
    if min(manifest.std) <= 0:
        yield f"std is {list(manifest.std)}, expected three numbers above 0"
    odd_splits = (name for name in manifest.splits if not SPLIT_NAME.fullmatch(name))
    yield from (f"a split is named {name!r}, expected letters, digits, _ and -" for name in odd_splits)
    hashes = [text for shard in shards for text in (shard.sha256, shard.index_sha256)]  # parts of names of files
    hashes += [split.labels.sha256 for split in manifest.splits.values()]
    yield from (f"found {text!r} where a sha256 should be" for text in hashes if not _SHA256.fullmatch(text))
    if type(manifest.indexed) is not bool:
        yield f"indexed is {manifest.indexed!r}, expected true or false"
    if not isinstance(manifest.provenance, dict):
        yield "provenance is no JSON object"


def _odd_values(manifest: Manifest, shards: list[Shard]) -> Iterator[Any]:
    """Yields counts that are not counts and texts that are not texts."""
    counts = [n for shard in shards for n in (shard.count, shard.first_index, shard.bytes)]
    counts += [manifest.image_size, *itertools.chain(*manifest.class_counts.values())]
    texts = [manifest.name, *manifest.classes, *manifest.attributes]
    texts += [text for s in shards for text in (s.base, s.path, s.sha256, s.index_path, s.index_sha256)]
    tables = [split.labels for split in manifest.splits.values()]
    counts += [table.bytes for table in tables]
    texts += [text for table in tables for text in (table.path, table.sha256)]
    yield from (value for value in counts if type(value) is not int or not 0 <= value <= MAX_COUNT)
    yield from (text for text in texts if not isinstance(text, str))


def _contradiction(manifest: Manifest) -> Iterator[str]:
    """Yields what cannot be true."""
    num_classes = len(manifest.classes)
    if len(manifest.shot_groups) != num_classes or not set(manifest.shot_groups) <= set(SHOT_GROUPS):
        yield f"shot_groups must give one of {', '.join(SHOT_GROUPS)} for each of the {num_classes} classes"
    if manifest.splits.keys() != manifest.class_counts.keys():
        yield f"class_counts has the splits {sorted(manifest.class_counts)}, expected {sorted(manifest.splits)}"
    for name, split in manifest.splits.items():
        counts = manifest.class_counts[name]
        if len(counts) != num_classes or sum(counts) != split.num_samples:
            yield (
                f"class_counts of {name} sum to {sum(counts)} over {len(counts)} classes, "
                f"expected {split.num_samples} over {num_classes}"
            )
        yield from _gaps(split)
        paths = [path for shard in split.shards for path in (shard.path, shard.index_path)] + [split.labels.path]
        yield from (f"the path {path!r} leaves the data set" for path in paths if not storage.is_inner(path))


def odd_names(classes: Sequence[str], attributes: Sequence[str]) -> Iterator[str]:
    """Yields why there are too many classes or attributes, or a name is too long."""
    for what, names in (("classes", classes), ("attributes", attributes)):
        if len(names) > MAX_CLASSES:
            yield f"there are {len(names)} {what}, expected at most {MAX_CLASSES}"
        if long := next((name for name in names if len(name) > MAX_NAME_CHARS), ""):
            yield f"the name {long[:40]!r}... of one of the {what} has {len(long)} characters, expected at most {MAX_NAME_CHARS}"


def _gaps(split: Split) -> Iterator[str]:
    first = 0
    for shard in split.shards:
        if shard.count * MIN_BYTES_OF_ROW > shard.bytes:
            yield f"{shard.path}: {shard.count} samples in {shard.bytes} bytes, expected {MIN_BYTES_OF_ROW} for each at least"
        if shard.count < 1 or shard.first_index != first:
            yield f"{shard.path}: first_index {shard.first_index}, count {shard.count}, expected first_index {first}"
        first += shard.count
