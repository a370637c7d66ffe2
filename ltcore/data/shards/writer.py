"""Writes data sets: WebDataset tars in keyed-hash order, a parquet index per shard, and the manifest last."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ltcore.data.config import MAX_IMAGE_SIZE
from ltcore.data.shards.manifest import SPLIT_NAME, Manifest, Shard, Split, write_manifest
from ltcore.data.shards.publish import published
from ltcore.errors import ConfigError, DataError, pick
from ltcore.hashing import hash64
from ltcore.shots import shot_groups_by_count, shot_groups_by_rank

EXTENSIONS = ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm", "avif")
SHOT_RULES = {"count": shot_groups_by_count, "rank": shot_groups_by_rank}
INDEX_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "label": pa.int64(),
        "attribute": pa.int64(),
        "ext": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "crc32": pa.uint32(),
    }
)
TAR_BLOCK = 512
WITHOUT_IMAGES = "classes_without_images"
"""Key of the provenance: split -> names of the classes that it has no image of."""
MAX_KEY = 90  # with the extension it must fit the 100 bytes that a plain tar header has for a name
_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image on its way into a shard."""

    key: str
    """Unique inside its split: letters, digits, ``_``, ``-`` and inner ``/``; at most 90. See ``safe_key``."""
    image: bytes
    """The encoded file, as it is."""
    ext: str
    """One of ``EXTENSIONS``."""
    label: int
    """Position in the class list."""
    attribute: int = -1
    """Position in the attribute list; -1 is unknown."""


def safe_key(text: str) -> str:
    """A legal key for any text, and the same text for a legal key; a hash keeps changed texts apart."""
    if _KEY.fullmatch(text) and len(text) <= MAX_KEY:
        return text
    plain = re.sub(r"[^A-Za-z0-9_/-]+", "_", text)
    plain = re.sub(r"/+", "/", plain).strip("/")
    return f"{plain[-(MAX_KEY - 17) :].lstrip('/')}-{hash64(text):016x}"


def read_index(data: bytes, shard: Shard, columns: list[str] | None = None) -> tuple[pa.Table | None, int]:
    """The index of a shard and its number of rows; no table where that is not the shard's, as a few bytes can claim
    millions of rows."""
    rows = pq.read_metadata(io.BytesIO(data)).num_rows
    return (
        pq.read_table(io.BytesIO(data), schema=INDEX_SCHEMA, columns=columns) if rows == shard.count else None
    ), rows


def write_dataset(
    uri: str,
    *,
    name: str,
    classes: Iterable[str],
    attributes: Iterable[str],
    splits: Mapping[str, Iterable[Sample]],
    image_size: int,
    mean: Iterable[float],
    std: Iterable[float],
    seed: int,
    shot_rule: str,
    provenance: Mapping[str, Any],
    shard_size: int = 1000,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Writes shards, indexes and the manifest at ``uri``; returns the manifest.

    Samples may come in any order and are spooled to disk, so memory holds only keys. Equal samples give equal bytes for
    equal library versions. A data set that is there already is replaced once the new one is complete, which ``progress`` is
    told; a folder that holds anything else is refused. ``train`` must have every class in it, unless there is none and the data
    are for evaluation alone; classes that have no image in another split are noted in the provenance.

    Raises ConfigError for a wrong argument and DataError for a bad sample or a failing disk; neither leaves anything
    behind that a reader could take for a data set.
    """
    classes, attributes = tuple(classes), tuple(attributes)
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    group_classes = pick(SHOT_RULES, shot_rule, "shot_rule")
    _check_arguments(splits, classes, image_size, mean, std, shard_size)
    try:
        with published(uri, progress) as folder:
            written, counts = {}, {}
            for split, samples in splits.items():
                with tempfile.TemporaryFile(dir=folder) as spool:
                    rows = _spool(samples, spool, f"{name}/{split}", len(classes), len(attributes), seed)
                    written[split] = Split(tuple(_write_shards(rows, spool, folder, split, shard_size)))
                counts[split] = np.bincount([row.label for row in rows], minlength=len(classes))
            known = counts["train"] if "train" in counts else np.sum(list(counts.values()), 0)
            absent = [classes[c] for c in np.flatnonzero(known == 0)]
            if absent:
                what = "training image" if "train" in counts else "image"
                raise DataError(
                    f"{name}: {len(absent)} classes have no {what}, the first is {absent[0]!r}. Leave them out or add images."
                )
            manifest = Manifest(
                name=name,
                classes=classes,
                attributes=attributes,
                splits=written,
                class_counts={split: tuple(row.tolist()) for split, row in counts.items()},
                shot_groups=group_classes(known.tolist()),
                shot_rule=shot_rule,
                image_size=image_size,
                mean=mean,
                std=std,
                seed=seed,
                provenance=json.loads(json.dumps({**provenance, **_without_images(classes, counts)})),
            )
            write_manifest(manifest, str(folder))
    except OSError as error:
        raise DataError(f"{uri} cannot be written: {error}. Check permissions and free space.") from error
    return manifest


def _without_images(classes: tuple[str, ...], counts: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Split -> the classes of which it has no image, for splits that have images of others."""
    absent = {split: [classes[c] for c in np.flatnonzero(row == 0)] for split, row in counts.items() if row.any()}
    return {WITHOUT_IMAGES: named} if (named := {split: names for split, names in absent.items() if names}) else {}


def _check_arguments(
    splits: Mapping[str, Any],
    classes: tuple[str, ...],
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    shard_size: int,
) -> None:
    if not splits:
        raise ConfigError("splits has nothing, expected 'train', or a test for evaluation alone.")
    for split in splits:
        if not SPLIT_NAME.fullmatch(split):
            raise ConfigError(f"split {split!r}: use only letters, digits, _ and -.")
    if not classes or len(set(classes)) != len(classes):
        raise ConfigError(
            f"classes must be distinct names, at least one; got {len(classes)}, {len(set(classes))} distinct."
        )
    if not 1 <= image_size <= MAX_IMAGE_SIZE or shard_size < 1:
        raise ConfigError(
            f"canvas must be in 1..{MAX_IMAGE_SIZE} and shard_size >= 1, got {image_size} and {shard_size}."
        )
    if len(mean) != 3 or len(std) != 3 or not all(s > 0 for s in std):
        raise ConfigError(f"mean and std must have three numbers, std positive; got {mean} and {std}.")


@dataclass(frozen=True, slots=True)
class _Row:
    """A spooled sample; sorts in the order of the shards."""

    order: int
    key: str
    ext: str
    label: int
    attribute: int
    start: int
    size: int


def _spool(
    samples: Iterable[Sample], spool: BinaryIO, where: str, num_classes: int, num_attributes: int, seed: int
) -> list[_Row]:
    """Appends the images to ``spool`` and returns the rows in keyed-hash order."""
    rows: dict[str, _Row] = {}
    start = 0
    for sample in samples:
        problem = _problem(sample, num_classes, num_attributes)
        if problem or sample.key in rows:
            raise DataError(
                f"{where}: sample {sample.key!r} {problem or 'comes twice; keys must be unique in a split'}."
            )
        order = hash64(seed, sample.key)
        rows[sample.key] = _Row(order, sample.key, sample.ext, sample.label, sample.attribute, start, len(sample.image))
        start += spool.write(sample.image)
    return sorted(rows.values(), key=lambda row: (row.order, row.key))


def _problem(sample: Sample, num_classes: int, num_attributes: int) -> str:
    """What is wrong with the sample, or ''."""
    if not _KEY.fullmatch(sample.key) or len(sample.key) > MAX_KEY:
        return f"is no legal key: letters, digits, _, - and inner /, at most {MAX_KEY}; safe_key() makes one"
    if sample.ext not in EXTENSIONS:
        return f"has the extension {sample.ext!r}, expected one of {', '.join(EXTENSIONS)}"
    if not sample.image:
        return "has an image of zero bytes; leave it out or restore the file"
    if not 0 <= sample.label < num_classes:
        return f"has label {sample.label}, expected 0..{num_classes - 1}"
    if not -1 <= sample.attribute < num_attributes:
        return f"has attribute {sample.attribute}, expected -1..{num_attributes - 1}"
    return ""


def _write_shards(rows: Sequence[_Row], spool: BinaryIO, folder: Path, split: str, shard_size: int) -> Iterator[Shard]:
    """Shards of equal size, give or take one row."""
    num_shards = -(-len(rows) // shard_size)
    for number in range(num_shards):
        first, last = (len(rows) * n // num_shards for n in (number, number + 1))
        tar, index = (folder / f"{split}-{number:05d}.{ext}" for ext in ("tar", "parquet"))
        pq.write_table(_write_tar(rows[first:last], spool, tar), index)
        yield Shard(
            path=tar.name,
            count=last - first,
            first_index=first,
            bytes=tar.stat().st_size,
            sha256=_sync_and_hash(tar),
            index_path=index.name,
            index_sha256=_sync_and_hash(index),
        )


def _write_tar(rows: Sequence[_Row], spool: BinaryIO, path: Path) -> pa.Table:
    """Writes the rows into a tar and returns its index."""
    from webdataset.writer import TarWriter  # readers of shards do without

    index: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    with path.open("wb") as stream, TarWriter(stream, encoder=False, compress=False, mtime=0, user="", group="") as tar:
        for row in rows:
            spool.seek(row.start)
            image = spool.read(row.size)
            members = {row.ext: image, "cls": str(row.label).encode()}
            if row.attribute >= 0:
                members["json"] = json.dumps({"attribute": row.attribute}).encode()
            offset = tar.tarstream.offset + TAR_BLOCK
            for ext in sorted(members):  # the order in which TarWriter writes
                if ext == row.ext:
                    break
                offset += TAR_BLOCK + -(-len(members[ext]) // TAR_BLOCK) * TAR_BLOCK
            tar.write({"__key__": row.key, **members})
            values = (row.key, row.label, row.attribute, row.ext, offset, row.size, zlib.crc32(image))
            for column, value in zip(index.values(), values, strict=True):
                column.append(value)
    return pa.table(index, schema=INDEX_SCHEMA)


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()
