"""Looks for everything that can be wrong with a data set, and describes one for a person.

Independent of the reader: it walks the tars member by member, and compares them with their indexes and the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.shards.attribute_table import attribute_lines
from ltcore.data.shards.labels import open_labels
from ltcore.data.shards.manifest import MANIFEST, Manifest, Shard, read_manifest
from ltcore.data.shards.remarks import ATTRIBUTE_COUNTS, SAID, remarks
from ltcore.data.shards.seen import ROOM, SeenImage, image_problem, seen, wanted
from ltcore.data.shards.source import safe_key
from ltcore.data.shards.stream import open_hashed
from ltcore.data.shards.tar import Damage, Member, TarSample, members, walk
from ltcore.data.shards.writer import WITHOUT_IMAGES, most_index_bytes, read_index
from ltcore.errors import DataError
from ltcore.lease import FOLDER as LEASE
from ltcore.limits import MAX_DIGITS, MAX_IMAGE_BYTES, MAX_SAMPLE_JSON_BYTES
from ltcore.shots import SHOT_GROUPS
from ltcore.text import counted, glimpse, printable

THREADS = 8
KINDS = ("train", "val", "test", "other")
UNSHOWN = (WITHOUT_IMAGES, ATTRIBUTE_COUNTS, *SAID)
"""Keys of the provenance that are put into words, or are too long to be shown."""


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
    attributes: list[int] = field(default_factory=list)

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
    reports: dict[tuple[str, str], _Report] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda parts: _check_tar(uri, [shard for _, shard in parts], manifest), work.values())
        for number, (parts, checked) in enumerate(zip(work.values(), found, strict=True), 1):
            for (split, shard), report in zip(parts, checked, strict=True):
                reports[split, shard.index_path] = report
            if progress:
                num_problems = sum(len(report.problems) for report in checked)
                progress(
                    f"{checked[0].where}: {counted(num_problems, 'problem')} ({number} of {counted(len(work), 'shard')})"
                )
    # in the order of the manifest, which is that of the tables of labels
    by_split = {
        name: [reports[name, shard.index_path] for shard in part.shards] for name, part in manifest.splits.items()
    }
    problems = [problem for report in reports.values() for problem in report.problems]
    problems += [*_whole(uri, manifest), *_counts(by_split, manifest), *_repeats(by_split)]
    problems += _tables(uri, by_split, manifest)
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
        if name not in manifest.own_files and not name.startswith(f"{LEASE}/"):
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


def _tables(uri: str, by_split: dict[str, list[_Report]], manifest: Manifest) -> Iterator[Problem]:
    """Yields tables of labels that are damaged, or say something else than the shards, unless a damaged shard explains it."""
    for split, part in manifest.splits.items():
        try:
            table = open_labels(uri, manifest, split, max(part.labels.bytes, DataConfig.cache_bytes))
        except DataError as error:
            yield Problem(part.labels.path, "", str(error))
            continue
        reports = by_split[split]
        if any(report.problems for report in reports):
            continue
        keys = [key for report in reports for key in report.keys]
        for what, stored_N in (("label", table.labels_N), ("attribute", table.attributes_N)):
            found_N = np.array([tag for report in reports for tag in getattr(report, f"{what}s")], np.int64)
            for row in np.flatnonzero(found_N != stored_N)[:1].tolist():
                yield Problem(part.labels.path, keys[row], f"has {what} {stored_N[row]}, its shard says {found_N[row]}")


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
    where = storage.join(uri, shard.path)
    count = 0
    try:
        found = storage.describe_file(where)
        with open_hashed(where) as stream:
            size = shard.bytes if found is None or found.size < 0 else found.size
            for item in walk(stream, size, seen, wanted, ROOM):
                if isinstance(item, Damage):
                    report.add(item.what, item.key)
                    continue
                row = rows[count] if count < len(rows) else None
                count += 1
                _check_sample(item, row, manifest, report)
            num_bytes, sha256 = stream.finish()
    except DataError as error:
        report.add(str(error))
        return report
    if num_bytes != shard.bytes:
        report.add(f"has {num_bytes} bytes, the manifest says {shard.bytes}")
    elif sha256 != shard.sha256:
        report.add(f"has sha256 {sha256[:12]}..., the manifest says {shard.sha256[:12]}...; bits were changed")
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
            report.attributes.append(row["attribute"])
            expected[row["offset"]] = row, report
    try:
        with open_hashed(storage.join(first.base or uri, first.path)) as stream:
            for item in members(stream, first.bytes, lambda _, size: size <= MAX_IMAGE_BYTES, ROOM):
                if isinstance(item, Damage):
                    if not item.is_kind:
                        reports[0].add(item.what, item.key)
                elif item[1].offset in expected:
                    _check_member(item[1], *expected.pop(item[1].offset))
                del item
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
    if problem := image_problem(member):
        report.add(problem, row["key"])


def _read_index(uri: str, shard: Shard, report: _Report) -> list[dict[str, Any]]:
    """Returns the rows of the index; empty where it is unusable, which is reported."""
    try:
        data = storage.read_bytes(storage.join(uri, shard.index_path), most_bytes=most_index_bytes(shard))
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
    images = {ext: member for ext, member in sample.members.items() if isinstance(member, SeenImage)}
    found: dict[str, Any] = {"key": key}
    if len(images) != 1:
        report.add(f"has {len(images)} images ({', '.join(sample.members)}), expected one", key)
    else:
        ((ext, image),) = images.items()
        found |= {"ext": ext, "offset": image.offset, "size": image.size, "crc32": image.crc}
        if image.problem:
            report.add(image.problem, key)
    if "cls" not in sample.members:
        report.add(f"has no label ({', '.join(sample.members)}), expected a .cls file", key)
    else:
        member = sample.members["cls"]
        text = member.data.decode(errors="replace").strip() if member.data else f"of {member.size} bytes"
        if not text.isdecimal() or len(text) > MAX_DIGITS or int(text) >= len(manifest.classes):
            report.add(f"has label {text[:MAX_DIGITS]!r}, expected 0..{len(manifest.classes) - 1}", key)
        else:
            found["label"] = int(text)
            report.labels.append(int(text))
    found["attribute"] = _attribute(sample, manifest, report)
    report.attributes.append(found["attribute"])
    for column, value in found.items():
        if row is not None and row[column] != value:
            report.add(f"has {column} {value!r}, its index says {row[column]!r}", key)


def _attribute(sample: TarSample, manifest: Manifest, report: _Report) -> int:
    """Returns the attribute, -1 where there is none or, which is reported, none that makes sense."""
    if "json" not in sample.members:
        return -1
    if (size := sample.members["json"].size) > MAX_SAMPLE_JSON_BYTES:
        report.add(f"has a .json of {size} bytes, expected at most {MAX_SAMPLE_JSON_BYTES}", sample.key)
        return -1
    try:
        attribute = json.loads(sample.members["json"].data).get("attribute", -1)
    except (ValueError, AttributeError, RecursionError) as error:
        report.add(f"has a .json that is no JSON object ({error})", sample.key)
        return -1
    if type(attribute) is not int or not -1 <= attribute < len(manifest.attributes):
        report.add(f"has attribute {glimpse(attribute)}, expected -1..{len(manifest.attributes) - 1}", sample.key)
        return -1
    return attribute


def describe(uri: str) -> str:
    """Returns the manifest as text for a person.

    It names classes, splits, imbalance, shot groups, attributes by class, size, hash and provenance.
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
    lines += [f"  {line}" for line in attribute_lines(uri, manifest)]
    lines += [f"  {key}: {_brief(value)}" for key, value in manifest.provenance.items() if key not in UNSHOWN]
    return "\n".join(map(printable, lines))


def _brief(value: object, most: int = 20) -> str:
    """Returns a value of the provenance as text; of a long list or mapping, its beginning and its length."""
    if not isinstance(value, dict | list) or len(value) <= most:
        return str(value)
    items = list(value.items() if isinstance(value, dict) else value)[:most]
    shown = str(dict(items) if isinstance(value, dict) else items)
    return f"{shown[:-1]}, ... ({len(value):,}){shown[-1]}"


def _few(names: tuple[str, ...], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _floats(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
