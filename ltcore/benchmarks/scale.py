"""How time, memory and requests grow with shards, rows, workers, trials and runs: a simulation without images.

Every measure is taken at three sizes, and its growth is the exponent g of the power law size^g that fits them best: 0 is
none, 1 linear. Counted measures (bytes, files, requests) are the same in every run; those in seconds are not. Uploads to W&B are
no measure: they are calculated from the interval of one run, which a test counts with W&B's own client.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from ltcore import storage
from ltcore.benchmarks.harness import Aim, Measurement, Rung, Section
from ltcore.benchmarks.options import Options
from ltcore.config.records import RunRecord, TrialRecord
from ltcore.config.trained_with import Hardware, TrainedData
from ltcore.data.loading.plan import ShardHomes, parts, windows_from
from ltcore.data.loading.sampler import EpochSampler, drawn_copies
from ltcore.data.shards import manifest as manifests
from ltcore.data.shards.manifest import Manifest, Shard, Split, write_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.writer import write_table
from ltcore.shots import shot_groups_by_count

MOST_GROWTH = 1.2
WORLD, BATCH, WINDOW = 64, 4096, 8
ROWS_PER_SHARD, CLASSES = 1000, 1000
NODES = 16
MIB = 2**20
LINEAR = "linear"


@dataclass
class Line:
    """One measure at several sizes."""

    name: str
    unit: str
    counted: bool
    """Whether it is the same in every run."""
    values: dict[int, float] = field(default_factory=dict)

    @property
    def growth(self) -> float:
        """Returns the exponent of the power law that fits the values best; 0 where they are all alike."""
        sizes, values = (np.log(np.maximum(list(of), 1e-12)) for of in (self.values.keys(), self.values.values()))
        return float(np.polyfit(sizes, values, 1)[0])

    def __str__(self) -> str:
        each = ", ".join(f"{value:.3g} at {size:,}" for size, value in self.values.items())
        return f"{self.name}: {each} ({self.unit}); grows with exponent {self.growth:.2f}"


@dataclass
class Lines:
    """All measures that grow with the same thing."""

    what: str
    lines: dict[str, Line] = field(default_factory=dict)

    def add(self, name: str, unit: str, size: int, value: float) -> None:
        """Takes one value."""
        self.lines.setdefault(name, Line(name, unit, unit != "s")).values[size] = value

    def measure(self, name: str, size: int, work: Callable[[], Any]) -> Any:
        """Does the work twice, for its time and for the most memory that it holds, and returns its result."""
        began = time.perf_counter()
        work()
        self.add(f"{name}, time", "s", size, time.perf_counter() - began)
        tracemalloc.start()
        try:
            result = work()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.add(f"{name}, memory", "MiB", size, peak / MIB)
        return result

    def section(self) -> Section:
        """Returns the exponents with their aim, and the values as notes."""
        section = Section(f"growth with {self.what}", "exponent")
        section.measurements.append(Measurement(LINEAR, 0, 1.0))
        for line in self.lines.values():
            section.measurements.append(Measurement(line.name, 0, line.growth))
            section.rungs.append(Rung(line.name, LINEAR, Aim("<=", MOST_GROWTH, on="median")))
            section.notes.append(str(line))
        return section


def scale(options: Options) -> list[Section]:
    """Measures the growth with everything there may be much of."""
    quick = options.quick
    with tempfile.TemporaryDirectory(prefix="ltcore-scale-") as folder:
        found = [
            of_shards(Path(folder), (100, 300, 1000) if quick else (1000, 10_000, 100_000)),
            of_repetition((10_000, 30_000, 100_000) if quick else (100_000, 1_000_000, 10_000_000)),
            of_workers(Path(folder), (1, 8, 64), 100 if quick else 10_000),
            of_trials(Path(folder), (10, 30, 100) if quick else (100, 300, 1000)),
            of_runs((64, 250, 1000)),
        ]
    return [lines.section() for lines in found]


def of_shards(folder: Path, sizes: Sequence[int]) -> Lines:
    """Measures what a process does before its first batch, for data of so many shards."""
    lines = Lines(f"shards of {ROWS_PER_SHARD} images")
    for size in sizes:
        uri = str(folder / f"shards-{size}")
        generate(uri, size)
        file_bytes = (Path(uri) / manifests.MANIFEST).stat().st_size
        lines.add("manifest, file", "MiB", size, file_bytes / MIB)

        def read(uri: str = uri) -> Manifest:
            manifests.forget()
            return manifests.read_manifest(uri)

        manifest = lines.measure("manifest, read", size, read)
        table = manifest.split("train").labels
        lines.add("labels, file", "MiB", size, table.bytes / MIB)
        with counted_reads() as reads:
            store = ShardStore(uri)
            lines.measure("labels of a batch", size, partial(_batch_labels, uri))
        lines.add("files read before the first batch is planned", "files", size, len(set(reads)))
        for name, step in (
            ("first batch", 0),
            ("first batch of a resume", store.manifest.split("train").num_samples // 2),
        ):
            start = step // BATCH
            lines.measure(f"{name}, plan", size, partial(_first_window, store, start))
        lines.add("indexes read for the first window, in all its tasks", "files", size, _first_window_indexes(store))
    return lines


def generate(uri: str, num_shards: int) -> None:
    """Writes a manifest and labels as of so many shards, which do not exist."""
    num_rows = num_shards * ROWS_PER_SHARD
    Path(uri).mkdir(parents=True)
    labels = write_table(Path(uri), "train", np.resize(np.arange(CLASSES, dtype=np.int16), (1, num_rows)))

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    shards = tuple(
        Shard(
            path=f"train-{number:05d}.tar",
            count=ROWS_PER_SHARD,
            first_index=number * ROWS_PER_SHARD,
            bytes=100_000_000,
            sha256=digest(f"tar {number}"),
            index_path=f"train-{number:05d}.parquet",
            index_sha256=digest(f"index {number}"),
        )
        for number in range(num_shards)
    )
    counts_C = (num_rows // CLASSES,) * CLASSES
    manifest = Manifest(
        name="scale",
        classes=tuple(f"class {c}" for c in range(CLASSES)),
        attributes=(),
        splits={"train": Split(shards, labels)},
        class_counts={"train": counts_C},
        shot_groups=shot_groups_by_count(counts_C),
        shot_rule="count",
        image_size=224,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        seed=0,
    )
    write_manifest(manifest, uri)


@contextmanager
def counted_reads() -> Iterator[list[str]]:
    """Yields the names of the files that are read whole, as they are read."""
    reads, find_bytes = list[str](), storage.find_bytes

    def spy(uri: str, *rest: Any, **options: Any) -> bytes | None:
        reads.append(uri)
        return find_bytes(uri, *rest, **options)

    manifests.forget()
    with mock.patch.object(storage, "find_bytes", spy):
        yield reads


def _batch_labels(uri: str) -> Any:
    return ShardStore(uri).labels_of("train", np.arange(BATCH))


def _first_window(store: ShardStore, start_step: int) -> Any:
    return next(_plan(store, WORLD, start_step))


def _plan(store: ShardStore, world: int, start_step: int) -> Iterator[Any]:
    """Yields the windows of rank 0."""

    def sampler() -> EpochSampler:
        rows_per_shard = store.manifest.split("train").rows_per_shard
        return EpochSampler(rows_per_shard, seed=0, epoch=0, batch_size=BATCH, world=world)

    num_batches = store.manifest.split("train").num_samples // BATCH
    return windows_from(range(1), num_batches, start_step, WINDOW, lambda _, first: sampler().rank_batches(0, first))


def _first_window_indexes(store: ShardStore) -> int:
    home = ShardHomes({f"node {n}": 1.0 for n in range(NODES)})
    tables = [table for _, table in parts(next(_plan(store, 1, 0)), 0, store, "train", home)]
    return sum(len(table["shard"].combine_chunks().dictionary) for table in tables)


def of_repetition(sizes: Sequence[int]) -> Lines:
    """Measures an epoch in which images come several times or not at all (IFL, sampling by class)."""
    lines = Lines("images, where an epoch repeats some")
    for size in sizes:
        weights_N = np.resize(np.array([0.5, 1.0, 1.5]), size)
        copies_N = lines.measure("copies of an epoch", size, partial(drawn_copies, weights_N, 0, 0))
        counts = [ROWS_PER_SHARD] * (size // ROWS_PER_SHARD)

        def first(copies_N: Any = copies_N, counts: list[int] = counts) -> Any:
            sampler = EpochSampler(counts, seed=0, epoch=0, batch_size=256, copies_N=copies_N)
            return next(sampler.rank_batches(0))

        lines.measure("first batch, plan", size, first)
    return lines


def of_workers(folder: Path, worlds: Sequence[int], num_shards: int) -> Lines:
    """Measures the plan that one worker of several holds while an execution of the stream runs."""
    uri = str(folder / "workers")
    generate(uri, num_shards)
    store, lines = ShardStore(uri), Lines(f"workers, of {num_shards:,} shards")
    home = ShardHomes({f"node {n}": 1.0 for n in range(NODES)})
    for world in worlds:

        def plan(world: int = world) -> list[Any]:
            windows = itertools.islice(_plan(store, world, 0), 10)
            return [table for n, window in enumerate(windows) for _, table in parts(window, n, store, "train", home)]

        lines.measure("ten windows of a worker", world, plan)
    return lines


def of_trials(folder: Path, sizes: Sequence[int]) -> Lines:
    """Measures what a sweep computes before its first trial, what it keeps of all, and what it reads to continue."""
    from ltcore.config.space import SpaceSpec
    from ltcore.config.sweep import SweepConfig
    from ltcore.tuning.trials import folder_of, known_trials, name_of, read_records

    lines = Lines("trials")
    space = {"optim.lr": SpaceSpec("log", (1e-3, 1.0)), "lpa.weight": SpaceSpec("uniform", (0.0, 1.0))}
    for size in sizes:
        sweep = SweepConfig(name="scale", space=space, num_trials=size)
        lines.measure("points", size, partial(known_trials, sweep, 0, [size]))
        uri = str(folder / f"trials-{size}")
        names = [name_of(number) for number in range(size)]
        for name in names:
            record_of(name).write(folder_of(uri, name))
        kept = sum(file.stat().st_size for file in Path(uri).rglob("*.json"))
        lines.add("records of trials, files", "MiB", size, kept / MIB)
        trials = tuple(_summary(name) for name in names)
        lines.add("list of trials in the sweep's record", "MiB", size, len(json.dumps(list(map(asdict, trials)))) / MIB)
        with counted_reads() as reads:
            lines.measure("records of trials, read to continue", size, partial(read_records, uri, names))
        lines.add("records of trials, requests to continue", "requests", size, len(reads) / 2)  # it was measured twice
    return lines


def record_of(name: str) -> RunRecord:
    """Returns the record of a trial of a thousand classes, which are most of it."""
    classes = tuple(f"class {c}" for c in range(CLASSES))
    counts_C = (ROWS_PER_SHARD,) * CLASSES
    now = datetime.datetime.now(datetime.UTC)
    return RunRecord(
        id=name,
        name=name,
        kind="trial",
        group="scale",
        seed=0,
        config={},
        epochs_planned=100,
        last={"val/top1": 0.5},
        best={"val/top1": 0.5},
        data=TrainedData(
            name="scale",
            hash="0" * 64,
            uri="s3://bucket/scale",
            num_train=sum(counts_C),
            classes=classes,
            shot_groups=shot_groups_by_count(counts_C),
            class_counts=counts_C,
            image_size=224,
            loader="ray",
            loader_reason="asked for",
        ),
        hardware=Hardware(cpu="", cpus=1, gpus=(), memory_bytes=1, host="node"),
        precision="fp32",
        threads=1,
        world=1,
        device="cpu",
        engine="trial",
        pid=1,
        versions={},
        started_at=now,
        wandb_id=name,
    )


def _summary(name: str) -> TrialRecord:
    params = {"optim.lr": 0.1, "lpa.weight": 0.5}
    return TrialRecord(
        id=name,
        run_dir=f"trials/{name}",
        status="finished",
        reason="",
        params=params,
        epochs_done=1,
        best=0.5,
        last=0.5,
    )


def of_runs(sizes: Sequence[int]) -> Lines:
    """Calculates what runs at a time ask of W&B, by the interval of one run."""
    from ltcore.tracking.wandb_sink import UPLOAD_EVERY_S

    lines = Lines("runs at a time (arithmetic from the interval of a run's uploads, not a measurement)")
    for size in sizes:
        lines.add("uploads to W&B in a second", "requests", size, size / UPLOAD_EVERY_S)
    return lines
