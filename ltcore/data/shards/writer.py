"""Writes data sets: WebDataset tars in keyed-hash order, a parquet index per shard, and the manifest last."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ltcore import storage
from ltcore.data.config import MAX_IMAGE_SIZE
from ltcore.data.shards.labels import label_array
from ltcore.data.shards.manifest import SPLIT_NAME, LabelTable, Manifest, Shard, Split, odd_names, write_manifest
from ltcore.data.shards.publish import published
from ltcore.data.shards.reencode import Reencode
from ltcore.data.shards.source import EXTENSIONS, MAX_KEY, Description, Indexed, IndexedTar, Sample, Source, is_key
from ltcore.errors import ConfigError, DataError, at_least, pick, within
from ltcore.hashing import hash64
from ltcore.limits import MAX_INDEX_BYTES, MAX_INDEX_BYTES_OF_ROW
from ltcore.retry import retrying, retrying_disk
from ltcore.shots import GIVEN, SHOT_GROUPS, shot_groups_by_count, shot_groups_by_rank, shot_groups_glt
from ltcore.text import counted

SHOT_RULES = {"count": shot_groups_by_count, "rank": shot_groups_by_rank, "glt": shot_groups_glt}
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


def most_index_bytes(shard: Shard) -> int:
    """Returns the number of bytes that the index of a shard may have."""
    return MAX_INDEX_BYTES + shard.count * MAX_INDEX_BYTES_OF_ROW


def read_index(data: bytes, shard: Shard, columns: list[str] | None = None) -> tuple[pa.Table | None, int]:
    """Reads the index of a shard, and returns it with its number of rows.

    There is no table where that number is not the shard's, as a few bytes can claim millions of rows. Raises ValueError for
    an index that is compressed otherwise than ours are, some of which unpack to thousands of times their size.
    """
    footer = pq.read_metadata(io.BytesIO(data))
    groups = (footer.row_group(group) for group in range(footer.num_row_groups))
    codecs = {group.column(column).compression for group in groups for column in range(footer.num_columns)}
    if not codecs <= {"SNAPPY", "UNCOMPRESSED"}:
        raise ValueError(f"it is compressed by {', '.join(sorted(codecs))}, expected Snappy")
    if footer.num_rows != shard.count:
        return None, footer.num_rows
    return pq.read_table(io.BytesIO(data), schema=INDEX_SCHEMA, columns=columns), footer.num_rows


def write_dataset(
    uri: str,
    source: Source,
    *,
    seed: int,
    shard_size: int = 1000,
    reencode: Reencode | None = None,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Writes shards, indexes and the manifest at ``uri``; returns the manifest.

    Samples may come in any order and are spooled to disk, so memory holds only keys. Equal samples give equal bytes for
    equal library versions. An existing data set is replaced once the new one is complete, and ``progress`` is told so;
    a folder with anything else in it is refused. ``train`` must have every class in it, unless there is none and the
    data are for evaluation only; classes that have no image in another split are noted in the provenance.
    With ``reencode`` images are written anew, else as they are. A full disk, and one that does not answer, is waited for.

    Raises ConfigError for a wrong field of the source and DataError for a bad sample or a failing disk; neither leaves
    anything behind that a reader could take for a data set.
    """
    if reencode is not None:
        source = reencode.described(source)
    check_source(source, source.splits, shard_size)
    try:
        with published(uri, progress) as folder:
            splits, counts = {}, {}
            for split, samples in source.splits.items():
                with _spool_in(folder) as spool:
                    rows = _spool(samples, spool, folder, f"{source.name}/{split}", source, seed, reencode)
                    shards = tuple(_write_shards(rows, spool, folder, split, shard_size))
                labels_N, attributes_N = _ints([row.label for row in rows]), _ints([row.attribute for row in rows])
                splits[split] = Split(shards, write_labels(folder, split, labels_N, attributes_N, source))
                counts[split] = np.bincount([row.label for row in rows], minlength=len(source.classes))
            manifest = manifest_of(source, splits, counts, seed)
            write_manifest(manifest, str(folder))
    except OSError as error:
        raise DataError(f"{uri} cannot be written: {error}. Check permissions and free space.") from error
    return manifest


def write_indexed(uri: str, indexed: Indexed, *, seed: int, progress: Callable[[str], None] | None = None) -> Manifest:
    """Writes the indexes of tars that stay where they are, and the manifest, at ``uri``; returns the manifest.

    Errors and guarantees are those of :func:`write_dataset`.
    """
    check_source(indexed, indexed.splits)
    try:
        with published(uri, progress) as folder:
            splits, counts = {}, {}
            for split, tars in indexed.splits.items():
                shards = tuple(_write_indexes(tars, folder, split))
                columns = ([tar.index[name].to_numpy() for tar in tars] for name in ("label", "attribute"))
                labels_N, attributes_N = (np.concatenate([_ints([]), *parts]) for parts in columns)
                splits[split] = Split(shards, write_labels(folder, split, labels_N, attributes_N, indexed))
                counts[split] = np.bincount(labels_N, minlength=len(indexed.classes))
            manifest = replace(manifest_of(indexed, splits, counts, seed), indexed=True)
            write_manifest(manifest, str(folder))
    except OSError as error:
        raise DataError(f"{uri} cannot be written: {error}. Check permissions and free space.") from error
    return manifest


def _ints(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def write_labels(
    folder: Path,
    split: str,
    labels_N: npt.NDArray[np.int64],
    attributes_N: npt.NDArray[np.int64],
    of: Description | Manifest,
) -> LabelTable:
    """Writes label and attribute of every sample of a split into a folder, in index order; equal ones give equal bytes.

    ``of`` is the data set, for the number of its classes and attributes.
    """
    return write_table(folder, split, label_array(labels_N, attributes_N, len(of.classes), len(of.attributes)))


def write_table(folder: Path, split: str, table: npt.NDArray[Any]) -> LabelTable:
    """Writes a table of labels (``ltcore.data.shards.labels``) into a folder."""
    path, out = folder / f"{split}-labels.npy", io.BytesIO()
    np.save(out, table, allow_pickle=False)  # to a file itself, NumPy would hide why that fails

    def write() -> str:
        path.write_bytes(out.getbuffer())
        return _sync_and_hash(path)

    sha256 = retrying(storage.disk_of(path), write)
    return LabelTable(path=path.name, bytes=path.stat().st_size, sha256=sha256)


def _write_indexes(tars: Sequence[IndexedTar], folder: Path, split: str) -> Iterator[Shard]:
    first = 0
    for number, tar in enumerate(tars):
        index = folder / f"{split}-{number:05d}.parquet"
        index_sha256 = retrying(storage.disk_of(index), partial(_write_index, tar.index, index))
        if tar.unpacked is not None and not (folder / tar.path).exists():  # it may be in several splits
            retrying(storage.disk_of(index), partial(shutil.move, tar.unpacked, folder / tar.path))
        yield Shard(
            base=tar.base,
            path=tar.path,
            count=tar.index.num_rows,
            first_index=first,
            bytes=tar.bytes,
            sha256=tar.sha256,
            index_path=index.name,
            index_sha256=index_sha256,
        )
        first += tar.index.num_rows


def _write_index(table: pa.Table, path: Path) -> str:
    """Writes the index of a tar, and returns its sha256."""
    out = pa.BufferOutputStream()  # a writer of the file would hold it open, and its room, where the disk is full
    pq.write_table(table, out)
    path.write_bytes(memoryview(out.getvalue()))
    return _sync_and_hash(path)


def check_source(source: Description, splits: Iterable[str], shard_size: int = 1) -> None:
    """Raises ConfigError for a field of the source that no data set can have."""
    classes = source.classes
    if not splits:
        raise ConfigError("splits has nothing, expected 'train', or a test for evaluation alone.")
    for split in splits:
        if not SPLIT_NAME.fullmatch(split):
            raise ConfigError(f"split {split!r}: use only letters, digits, _ and -.")
    if not classes or len(set(classes)) != len(classes):
        raise ConfigError(
            f"classes must be distinct names, at least one; got {len(classes)}, {len(set(classes))} distinct."
        )
    if problem := next(odd_names(classes, source.attributes), ""):
        raise ConfigError(f"{source.name}: {problem}.")
    if not source.shot_groups:
        pick(SHOT_RULES, source.shot_rule, "shot_rule")
    elif source.shot_rule != GIVEN or len(source.shot_groups) != len(classes) or {*source.shot_groups} - {*SHOT_GROUPS}:
        raise ConfigError(
            f"{source.name}: shot_groups must give one of {', '.join(SHOT_GROUPS)} for each of the {len(classes)} classes, with "
            f"shot_rule={GIVEN!r}; got {len(source.shot_groups)} with shot_rule={source.shot_rule!r}."
        )
    try:
        within(f"[1, {MAX_IMAGE_SIZE}]", image_size=source.image_size)
        at_least(1, shard_size=shard_size)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    if len(source.mean) != 3 or len(source.std) != 3 or not all(s > 0 for s in source.std):
        raise ConfigError(f"mean and std must have three numbers, std positive; got {source.mean} and {source.std}.")


def manifest_of(
    source: Description, splits: dict[str, Split], counts: Mapping[str, npt.NDArray[np.int64]], seed: int
) -> Manifest:
    """Describes what was written. Raises DataError where a class has no image to learn from."""
    known_C = counts["train"] if "train" in counts else np.sum(list(counts.values()), 0)
    absent = [source.classes[c] for c in np.flatnonzero(known_C == 0)]
    if absent:
        what = "training image" if "train" in counts else "image"
        raise DataError(
            f"{source.name}: no {what} in {counted(len(absent), 'class')}, the first is {absent[0]!r}. Leave them out or "
            "add images."
        )
    return Manifest(
        name=source.name,
        classes=source.classes,
        attributes=source.attributes,
        splits=splits,
        class_counts={split: tuple(row_C.tolist()) for split, row_C in counts.items()},
        shot_groups=source.shot_groups or SHOT_RULES[source.shot_rule](known_C.tolist()),
        shot_rule=source.shot_rule,
        image_size=source.image_size,
        mean=tuple(map(float, source.mean)),
        std=tuple(map(float, source.std)),
        seed=seed,
        provenance=json.loads(json.dumps({**source.provenance, **_without_images(source.classes, counts)})),
    )


def _without_images(classes: tuple[str, ...], counts: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Returns split -> classes of which it has no image, for splits that have images of others."""
    absent = {split: [classes[c] for c in np.flatnonzero(row == 0)] for split, row in counts.items() if row.any()}
    return {WITHOUT_IMAGES: named} if (named := {split: names for split, names in absent.items() if names}) else {}


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


def _spool_in(folder: Path) -> io.FileIO:
    """Opens a file without a name in a folder, and without a buffer, of which nobody would know what a full disk took."""
    opened: Any = retrying(storage.disk_of(folder), partial(tempfile.TemporaryFile, dir=folder, buffering=0))
    return cast(io.FileIO, opened)


def _spool(
    samples: Iterable[Sample],
    spool: io.FileIO,
    folder: Path,
    where: str,
    source: Source,
    seed: int,
    reencode: Reencode | None,
) -> list[_Row]:
    """Appends the images to ``spool`` and returns the rows in keyed-hash order."""
    rows: dict[str, _Row] = {}
    start, disk = 0, storage.disk_of(folder)
    for sample in samples:
        problem = problem_of(sample, len(source.classes), len(source.attributes))
        if problem or sample.key in rows:
            raise DataError(
                f"{where}: sample {sample.key!r} {problem or 'comes twice; keys must be unique in a split'}."
            )
        if reencode is not None:
            sample = reencode(sample, f"{where}: {sample.key}")
        order = hash64(seed, sample.key)
        rows[sample.key] = _Row(order, sample.key, sample.ext, sample.label, sample.attribute, start, len(sample.image))
        storage.append(spool, sample.image, disk)
        start += len(sample.image)
    return sorted(rows.values(), key=lambda row: (row.order, row.key))


def problem_of(sample: Sample, num_classes: int, num_attributes: int) -> str:
    """Returns what is wrong with the sample, or ''."""
    if not is_key(sample.key):
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


def _write_shards(rows: Sequence[_Row], spool: io.FileIO, folder: Path, split: str, shard_size: int) -> Iterator[Shard]:
    """Writes shards of equal size, give or take one row, and yields them."""

    def sample(row: _Row) -> Sample:
        spool.seek(row.start)
        return Sample(row.key, spool.read(row.size), row.ext, row.label, row.attribute)

    for number, span in enumerate(shard_spans(len(rows), shard_size)):
        yield write_shard(partial(map, sample, rows[span.start : span.stop]), folder, split, number, span.start)


def shard_spans(count: int, shard_size: int) -> list[range]:
    """Returns the rows of each shard: as few shards as possible, of equal size, give or take one row."""
    num_shards = -(-count // shard_size)
    return [range(count * n // num_shards, count * (n + 1) // num_shards) for n in range(num_shards)]


def write_shard(
    samples: Callable[[], Iterable[Sample]], folder: Path, split: str, number: int, first_index: int
) -> Shard:
    """Writes one shard of a split and its index into a folder; equal samples give equal bytes.

    The samples are asked for anew where the disk was full in the middle of them, and both files are gone meanwhile.
    """
    tar, index = (folder / f"{split}-{number:05d}.{ext}" for ext in ("tar", "parquet"))

    def write() -> Shard:
        try:
            table = _write_tar(samples(), tar)
            return Shard(
                path=tar.name,
                count=table.num_rows,
                first_index=first_index,
                bytes=tar.stat().st_size,
                sha256=_sync_and_hash(tar),
                index_path=index.name,
                index_sha256=_write_index(table, index),
            )
        except OSError:
            for file in (tar, index):
                file.unlink(missing_ok=True)
            raise

    return retrying_disk(storage.disk_of(tar), write)


def _write_tar(samples: Iterable[Sample], path: Path) -> pa.Table:
    """Writes the samples into a tar and returns its index."""
    from webdataset.writer import TarWriter  # readers of shards do without

    index: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    with path.open("wb") as stream, TarWriter(stream, encoder=False, compress=False, mtime=0, user="", group="") as tar:
        for each in samples:
            members = {each.ext: each.image, "cls": str(each.label).encode()}
            if each.attribute >= 0:
                members["json"] = json.dumps({"attribute": each.attribute}).encode()
            offset = tar.tarstream.offset + TAR_BLOCK
            for ext in sorted(members):  # the order in which TarWriter writes
                if ext == each.ext:
                    break
                offset += TAR_BLOCK + -(-len(members[ext]) // TAR_BLOCK) * TAR_BLOCK
            tar.write({"__key__": each.key, **members})
            values = (
                each.key,
                each.label,
                each.attribute,
                each.ext,
                offset,
                len(each.image),
                zlib.crc32(each.image),
            )
            for column, value in zip(index.values(), values, strict=True):
                column.append(value)
    return pa.table(index, schema=INDEX_SCHEMA)


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()
