"""Looks for everything that can be wrong with a data set, and describes one for a person.

Independent of the reader: it walks the tars member by member, and compares them with their indexes and the manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ltcore import storage
from ltcore.data.images.decode import MAX_PIXELS, decode_canvas
from ltcore.data.shards.manifest import MANIFEST, Manifest, Shard, read_manifest
from ltcore.data.shards.remarks import SAID, remarks
from ltcore.data.shards.source import EXTENSIONS, safe_key
from ltcore.data.shards.stream import open_hashed
from ltcore.data.shards.tar import Damage, Member, TarSample, members, walk
from ltcore.data.shards.writer import WITHOUT_IMAGES, read_index
from ltcore.errors import DataError
from ltcore.shots import SHOT_GROUPS
from ltcore.text import printable

THREADS = 8
MAX_DIGITS = 18
MAX_IMAGE_BYTES = 8 * MAX_PIXELS
KINDS = ("train", "val", "test", "other")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong."""

    where: str
    """File relative to the data set, or the split."""
    key: str
    """Sample, or '' where the whole is meant."""
    what: str
    """What was found and what was expected."""

    def __str__(self) -> str:
        return printable(f"{self.where}: {f'sample {self.key!r}: ' if self.key else ''}{self.what}")


@dataclass
class _Report:
    """What one shard holds, for the checks across shards."""

    where: str
    problems: list[Problem] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, what: str, key: str = "", where: str = "") -> None:
        self.problems.append(Problem(where or self.where, key, what))


def check_dataset(uri: str, progress: Callable[[str], None] | None = None) -> list[Problem]:
    """Reads every byte of the data set and decodes every image, in parallel.

    The problems are sorted; the list is empty where all is well. ``progress`` is called with a line of text after every
    shard.
    """
    try:
        manifest = read_manifest(uri)
    except DataError as error:
        return [Problem(MANIFEST, "", str(error))]
    work: dict[tuple[str, ...], list[tuple[str, Shard]]] = defaultdict(list)
    for split, part in manifest.splits.items():
        for shard in part.shards:  # of one tar of others there may be several: it is read once
            work[(shard.base, shard.path) if manifest.indexed else (split, shard.index_path)].append((split, shard))
    by_split: dict[str, list[_Report]] = defaultdict(list)
    reports: list[_Report] = []
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda parts: _check_tar(uri, [shard for _, shard in parts], manifest), work.values())
        for number, (parts, checked) in enumerate(zip(work.values(), found, strict=True), 1):
            reports += checked
            for (split, _), report in zip(parts, checked, strict=True):
                by_split[split].append(report)
            if progress:
                num_problems = sum(len(report.problems) for report in checked)
                progress(f"{checked[0].where}: {num_problems} problems ({number} of {len(work)} shards)")
    problems = [problem for report in reports for problem in report.problems]
    problems += [*_whole(uri, manifest), *_counts(by_split, manifest), *_repeats(by_split)]
    return sorted(problems)


def _whole(uri: str, manifest: Manifest) -> Iterator[Problem]:
    """Yields splits and classes that are missing, and files that are too many."""
    for kind in KINDS[:3]:
        if not any(_kind(name) == kind and part.shards for name, part in manifest.splits.items()):
            yield Problem(MANIFEST, "", f"there is no {kind} split; it has {', '.join(manifest.splits)}")
    for name, count in zip(manifest.classes, manifest.class_counts.get("train", ()), strict=False):
        if count == 0:
            yield Problem(MANIFEST, "", f"class {name!r} has no training sample")
    for name in storage.list_files(uri):
        if name not in manifest.own_files:
            yield Problem(name, "", "the manifest does not know this file; remove it")


def _counts(by_split: dict[str, list[_Report]], manifest: Manifest) -> Iterator[Problem]:
    """Yields class counts that differ from the manifest's, unless a damaged shard explains them."""
    for split, reports in by_split.items():
        labels = Counter(label for report in reports for label in report.labels)
        for label, expected in enumerate(manifest.class_counts[split]):
            if labels[label] != expected and not any(report.problems for report in reports):
                name = manifest.classes[label]
                what = f"class {name!r} has {labels[label]} samples, the manifest says {expected}"
                yield Problem(f"split {split}", "", what)


def _repeats(by_split: dict[str, list[_Report]]) -> Iterator[Problem]:
    """Yields keys that come twice in a split, or both in training and in validation or test."""
    keys = {split: Counter(key for r in reports for key in r.keys) for split, reports in by_split.items()}
    for split, counts in keys.items():
        for key in (key for key, times in counts.items() if times > 1):
            yield Problem(f"split {split}", key, f"comes {counts[key]} times, expected once")
        for other, held_out in keys.items():
            if (_kind(split), _kind(other)) in (("train", "val"), ("train", "test"), ("val", "test")):
                for key in counts.keys() & held_out.keys():
                    yield Problem(f"split {other}", key, f"is in {split} as well: the number would be flattered")


def _kind(split: str) -> str:
    """Returns ``train`` for train and train_cbl, and so on; data sets may have splits of other names."""
    prefix = split.split("_")[0]
    return prefix if prefix in KINDS else "other"


def _check_tar(uri: str, shards: list[Shard], manifest: Manifest) -> list[_Report]:
    """Checks all shards that are in one tar."""
    return _check_indexed(uri, shards) if manifest.indexed else [_check_shard(uri, shards[0], manifest)]


def _check_shard(uri: str, shard: Shard, manifest: Manifest) -> _Report:
    report = _Report(shard.path)
    rows = _read_index(uri, shard, report)
    try:
        data = storage.read_bytes(storage.join(uri, shard.path))
    except DataError as error:
        report.add(str(error))
        return report
    if len(data) != shard.bytes:
        report.add(f"has {len(data)} bytes, the manifest says {shard.bytes}")
    elif (sha256 := hashlib.sha256(data).hexdigest()) != shard.sha256:
        report.add(f"has sha256 {sha256[:12]}..., the manifest says {shard.sha256[:12]}...; bits were changed")
    count = 0
    for item in walk(io.BytesIO(data), len(data)):
        if isinstance(item, Damage):
            report.add(item.what, item.key)
            continue
        row = rows[count] if count < len(rows) else None
        count += 1
        _check_sample(item, row, manifest, report)
    if count != shard.count:
        report.add(f"holds {count} samples, the manifest says {shard.count}")
    return report


def _check_indexed(uri: str, shards: list[Shard]) -> list[_Report]:
    """Compares a tar of others with its indexes, each of which is about a part of it.

    Where it is the tar that was indexed, by its sha256, its labels are those of the indexes.
    """
    reports, expected, first = [_Report(shard.path) for shard in shards], {}, shards[0]
    for shard, report in zip(shards, reports, strict=True):
        for row in _read_index(uri, shard, report):
            report.keys.append(row["key"])
            report.labels.append(row["label"])
            expected[row["offset"]] = row, report
    try:
        with open_hashed(storage.join(first.base or uri, first.path)) as stream:
            for item in members(stream, first.bytes, lambda _, size: size <= MAX_IMAGE_BYTES):
                if isinstance(item, Damage):
                    if not item.is_kind:
                        reports[0].add(item.what, item.key)
                elif item[1].offset in expected:
                    _check_member(item[1], *expected.pop(item[1].offset))
            num_bytes, sha256 = stream.finish()
    except DataError as error:
        reports[0].add(str(error))
        return reports
    for row, report in expected.values():
        report.add(f"is not where its index says, at byte {row['offset']}", row["key"])
    if (num_bytes, sha256) != (first.bytes, first.sha256):
        found = f"{num_bytes} bytes with sha256 {sha256[:12]}..."
        reports[0].add(f"has {found}, the manifest says {first.bytes} with {first.sha256[:12]}...; it has changed")
    return reports


def _check_member(member: Member, row: dict[str, Any], report: _Report) -> None:
    for column, value in (("size", member.size), ("crc32", member.crc32)):
        if row[column] != value:
            report.add(f"has {column} {value!r}, its index says {row[column]!r}", row["key"])
    try:
        decode_canvas(member.data, 1, "its image")
    except DataError as error:
        report.add(str(error), row["key"])


def _read_index(uri: str, shard: Shard, report: _Report) -> list[dict[str, Any]]:
    """Returns the rows of the index; empty where it is unusable, which is reported."""
    try:
        data = storage.read_bytes(storage.join(uri, shard.index_path))
        if (sha256 := hashlib.sha256(data).hexdigest()) != shard.index_sha256:
            what = f"has sha256 {sha256[:12]}..., the manifest says {shard.index_sha256[:12]}..."
            report.add(what, where=shard.index_path)
            return []  # to parse changed bytes can take all memory of the machine
        table, num_rows = read_index(data, shard)
    except (DataError, pa.ArrowException, OSError, ValueError) as error:
        report.add(f"cannot be read ({' '.join(str(error).split())})", where=shard.index_path)
        return []
    if table is None:
        report.add(f"lists {num_rows} samples, the manifest says {shard.count}", where=shard.index_path)
        return []
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _check_sample(sample: TarSample, row: dict[str, Any] | None, manifest: Manifest, report: _Report) -> None:
    key = sample.key
    report.keys.append(key)
    if safe_key(key) != key:
        report.add("is no safe name; expected letters, digits, _, - and inner /", key)
    images = [ext for ext in sample.members if ext in EXTENSIONS]
    found: dict[str, Any] = {"key": key}
    if len(images) != 1:
        report.add(f"has {len(images)} images ({', '.join(sample.members)}), expected one", key)
    else:
        member = sample.members[images[0]]
        found |= {"ext": images[0], "offset": member.offset, "size": len(member.data), "crc32": member.crc32}
        try:
            decode_canvas(member.data, 1, "its image")
        except DataError as error:
            report.add(str(error), key)
    if "cls" not in sample.members:
        report.add(f"has no label ({', '.join(sample.members)}), expected a .cls file", key)
    else:
        text = sample.members["cls"].data.decode(errors="replace").strip()
        if not text.isdecimal() or len(text) > MAX_DIGITS or int(text) >= len(manifest.classes):
            report.add(f"has label {text[:MAX_DIGITS]!r}, expected 0..{len(manifest.classes) - 1}", key)
        else:
            found["label"] = int(text)
            report.labels.append(int(text))
    found["attribute"] = _attribute(sample, manifest, report)
    for column, value in found.items():
        if row is not None and row[column] != value:
            report.add(f"has {column} {value!r}, its index says {row[column]!r}", key)


def _attribute(sample: TarSample, manifest: Manifest, report: _Report) -> int:
    """Returns the attribute, -1 where there is none or, which is reported, none that makes sense."""
    if "json" not in sample.members:
        return -1
    try:
        attribute = json.loads(sample.members["json"].data).get("attribute", -1)
    except (ValueError, AttributeError, RecursionError) as error:
        report.add(f"has a .json that is no JSON object ({error})", sample.key)
        return -1
    if type(attribute) is not int or not -1 <= attribute < len(manifest.attributes):
        report.add(f"has attribute {attribute!r}, expected -1..{len(manifest.attributes) - 1}", sample.key)
        return -1
    return attribute


def describe(uri: str) -> str:
    """Returns the manifest as text for a person.

    It names classes, splits, imbalance, shot groups, attributes, size, hash and provenance.
    """
    manifest = read_manifest(uri)
    lines = [f"{manifest.name}  {uri}", f"  hash        {manifest.hash[:12]}   seed {manifest.seed}"]
    lines.append(f"  classes     {len(manifest.classes)}: {_few(manifest.classes)}")
    if manifest.attributes:
        lines.append(f"  attributes  {len(manifest.attributes)}: {_few(manifest.attributes)}")
    counts = Counter(manifest.shot_groups)
    lines.append(
        f"  shot groups {', '.join(f'{counts[group]} {group}' for group in SHOT_GROUPS)} (by {manifest.shot_rule})"
    )
    lines.append(f"  image size  {manifest.image_size} px, mean {_floats(manifest.mean)}, std {_floats(manifest.std)}")
    lines.append(f"  {'split':<11} {'images':>9} {'shards':>6} {'MB':>8}  images per class")
    for name in sorted(manifest.splits, key=lambda name: (KINDS.index(_kind(name)), name)):
        part, per_class = manifest.splits[name], manifest.class_counts[name]
        low, high = min(per_class), max(per_class)
        spread = f"{low}" if low == high else f"{high}..{low}" + (f", imbalance {high / low:.4g}" if low else "")
        size_mb = sum(shard.bytes for shard in part.shards) / 1e6
        lines.append(f"  {name:<11} {part.num_samples:>9,} {len(part.shards):>6} {size_mb:>8.1f}  {spread}")
    bases = sorted({shard.base for part in manifest.splits.values() for shard in part.shards if shard.base})
    lines += [f"  tars        where they were, in {base}" for base in bases]
    lines += [f"  {remark}" for remark in remarks(manifest)]
    lines += [f"  {key}: {value}" for key, value in manifest.provenance.items() if key not in (WITHOUT_IMAGES, *SAID)]
    return "\n".join(map(printable, lines))


def _few(names: tuple[str, ...], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _floats(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
