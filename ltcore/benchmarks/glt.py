"""Building a GLT benchmark: against reading, decoding and writing alone, and the memory for few and for many images.

``python -m ltcore.benchmarks.glt FOLDER`` is the process whose memory is measured; it prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltcore import storage
from ltcore.benchmarks.harness import Aim, Measurement, Rung, Section, Work, in_new_process, interleave
from ltcore.benchmarks.machine import on_cpus
from ltcore.benchmarks.options import Options
from ltcore.data.config import DataConfig
from ltcore.data.datasets.workspace import Run, here
from ltcore.data.glt.build import Plan
from ltcore.data.glt.choices import Discovery, GltChoices
from ltcore.data.glt.pool import open_pool
from ltcore.data.glt.workspace import build
from ltcore.data.images.decode import decode_image
from ltcore.text import counted
from ltcore.training.hardware import allocated_cpus

SIDE_PX, SMALL_PX = 400, 16
FEWEST_CLASSES, CLASS_IMAGES, ATTRIBUTES = 10, 1_000, 3
"""A data set of more images has more classes, as ImageNet has, and no larger ones: features are held class by class."""
IMAGES = 12_000
"""Of the throughput; they are few JPEGs under many names."""
ORIGINALS = 64
SHARD_SIZE = 250
"""Small enough that every CPU has several of the shards."""
MIB = 2**20
GROWTH = 1.10
CONSTRUCTION = 3
"""Version of the generated images: increase it when the same arguments give other images."""


def glt(options: Options) -> list[Section]:
    """Measures throughput and memory of ``shards glt``."""
    return [throughput(options), memory(options)]


def throughput(options: Options) -> Section:
    """Measures images per second, through Ray and without."""
    from ltcore.runtime.cluster import connect, disconnect
    from ltcore.runtime.ray_map import on_ray

    section = Section("building a GLT benchmark", "images/s")
    with on_cpus(allocated_cpus()) as cpus, tempfile.TemporaryDirectory() as scratch:
        side, count = (64, 600) if options.quick else (SIDE_PX, IMAGES)
        folder = generated(side, count)
        plan = _planned(folder)
        section.notes.append(
            f"{counted(cpus, 'CPU')} for each side; {plan.total:,} JPEGs of {side} px out of {count:,}, shards on disk"
        )
        connect()
        try:
            with copiers(cpus, next(folder.rglob("*.jpg"))) as processes:
                sides: dict[str, Work] = {
                    "shards glt": partial(_build, folder, Path(scratch, "out"), on_ray),
                    "decode + write": partial(_limit, plan, Path(scratch, "limit"), processes),
                }
                section.measurements += interleave(sides, options.turns)
        finally:
            disconnect()
    section.rungs.append(Rung("shards glt", "decode + write", Aim(">=", 0.9)))
    return section


def memory(options: Options) -> Section:
    """Measures the peak memory of the process that builds, for few and for many images; once for the most, which take long."""
    section = Section("memory of building a GLT benchmark", "MiB")
    counts = (600, 1200) if options.quick else (1_000, 10_000, 100_000, 1_000_000)
    for turn in range(min(options.turns, 2)):
        for count in counts[:-1] if turn else counts:
            where = generated(SMALL_PX, count)
            peak = in_new_process("ltcore.benchmarks.glt", where, what=f"The memory of {count} images")["peak_bytes"]
            section.measurements.append(Measurement(f"{count:,} images", turn, peak / MIB))
    fewest, *between, most = (f"{count:,} images" for count in counts)
    section.rungs += [*(Rung(side, fewest) for side in between), Rung(most, fewest, Aim("<", GROWTH))]
    section.notes.append(
        "peak of one process that lists, plans, decodes and writes, with discovered attributes; paths and keys are kept as "
        "columns"
    )
    return section


@contextlib.contextmanager
def no_bar(_doing: str, _total: int) -> Iterator[Callable[[int], None]]:
    """Shows nothing: a terminal would be measured as well."""
    yield lambda _count: None


def _choices(**more: Any) -> GltChoices:
    return GltChoices(imbalance_factor=10.0, shard_size=SHARD_SIZE, **more)


def _planned(folder: Path) -> Plan:
    """Returns the plan of the benchmark, without writing it."""
    from ltcore.data.glt.build import make_plan
    from ltcore.data.glt.sizes import choose_sizes

    choices = _choices(attribute_level=2)
    pool, _ = open_pool(DataConfig(uri=str(folder)), choices)
    return make_plan(pool, choose_sizes(pool, choices), choices)


def _build(folder: Path, out: Path, run: Run) -> int:
    """Builds the benchmark, from the listing on, and returns its images."""
    choices = _choices(attribute_level=2)
    pool, _ = open_pool(DataConfig(uri=str(folder)), choices)
    plan, _ = build(pool, choices, str(out), run, bar=no_bar)
    shutil.rmtree(out)
    return plan.total


@contextlib.contextmanager
def copiers(count: int, image: Path) -> Iterator[ProcessPoolExecutor]:
    """Yields processes that have imported what they need and decoded an image, as those of Ray have when they are timed."""
    context = get_context("spawn")
    with ProcessPoolExecutor(count, context, _ready, (context.Barrier(count), image)) as processes:
        for started in [processes.submit(os.getpid) for _ in range(count)]:
            started.result()
        yield processes


def _ready(all_started: Barrier, image: Path) -> None:
    """Decodes an image and waits for the other processes, so that none takes the task that another is started for."""
    decode_image(image.read_bytes(), str(image))
    all_started.wait()


def _limit(plan: Plan, folder: Path, processes: ProcessPoolExecutor) -> int:
    """Reads, decodes and writes the same images and nothing else: no order, no index, no checksum."""
    folder.mkdir()
    paths = [os.path.join(plan.pool.root.where, plan.pool.items[p].path) for rows in plan.splits.values() for p in rows]  # noqa: PTH118
    parts = [(folder / str(first), paths[first : first + SHARD_SIZE]) for first in range(0, len(paths), SHARD_SIZE)]
    done = sum(processes.map(_copy, *zip(*parts, strict=True)))
    shutil.rmtree(folder)
    return done


def _copy(target: Path, paths: Sequence[str]) -> int:
    with target.open("wb") as out:
        for path in paths:
            image = Path(path).read_bytes()
            decode_image(image, path)
            out.write(image)
        out.flush()
        os.fsync(out.fileno())
    return len(paths)


def generated(side: int, count: int) -> Path:
    """Returns a folder ``class/attribute/image`` of JPEGs in the cache folder, made where it is not there.

    The images are hard links to a few files: each is listed, opened and decoded by itself, and the disk holds one copy.
    """
    folder = storage.cache_root() / "datasets" / f"bench-glt-{side}px-{count}-v{CONSTRUCTION}"
    with storage.locked(folder.with_suffix(".lock")):
        if not folder.exists():
            aside = folder.with_suffix(".partial")
            shutil.rmtree(aside, ignore_errors=True)
            originals = aside.with_suffix(".originals")
            shutil.rmtree(originals, ignore_errors=True)
            originals.mkdir(parents=True)
            for number in range(ORIGINALS):
                (originals / str(number)).write_bytes(_jpeg(side, number))
            classes = max(FEWEST_CLASSES, count // CLASS_IMAGES)
            for number in range(count):
                place = aside / f"class{number % classes}" / f"attribute{number // classes % ATTRIBUTES}"
                place.mkdir(parents=True, exist_ok=True)
                os.link(originals / str(number % ORIGINALS), place / f"{number:06d}.jpg")
            shutil.rmtree(originals)
            aside.rename(folder)
    return folder


def _jpeg(side: int, number: int) -> bytes:
    """Returns a noisy wave, about as large as a photograph of its size."""
    rng = np.random.default_rng(number)
    at = np.arange(side) / side
    wave_SS = np.sin(2 * np.pi * (rng.uniform(1, 9) * at[:, None] + rng.uniform(1, 9) * at))
    pixels_SS3 = 128 + wave_SS[:, :, None] * rng.uniform(20, 80, 3) + rng.normal(0, 12, (side, side, 3))
    out = io.BytesIO()
    Image.fromarray(pixels_SS3.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def peak_of(folder: str) -> dict[str, int]:
    """Builds from the images of a folder in this process, attributes and all, and returns its peak memory."""
    from ltcore.training.discover import discovery_of

    discovery = Discovery(features="random", image_size=8)
    choices = _choices(discovery=discovery, test=3, val=3)
    with tempfile.TemporaryDirectory() as scratch:
        pool, _ = open_pool(DataConfig(uri=folder, classes_from="depth"), choices)
        found = discovery_of(discovery, 0, here)
        build(pool, choices, str(Path(scratch, "out")), here, bar=no_bar, discover=found)
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    print(json.dumps(peak_of(sys.argv[1])))
