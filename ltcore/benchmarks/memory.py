"""Memory of the Ray loader for small and large data. Each size is read in a separate process with its own Ray.

``python -m ltcore.benchmarks.memory URI IMAGES`` is that process; it prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ltcore.benchmarks import datasets as images
from ltcore.benchmarks.harness import Aim, Measurement, Rung, Section, in_new_process
from ltcore.benchmarks.options import Options
from ltcore.data.config import DataConfig
from ltcore.data.shards.manifest import read_manifest
from ltcore.runtime.poller import Poller

GROWTH = 1.10
SMALL, LARGE = "10k rows", "200k rows"
EVERY_S = 0.2
BATCH = 128
MIB = 2**20


def memory(options: Options) -> list[Section]:
    """Measures the memory for both sizes.

    Both deliver about the same number of images, so only the size of the data differs.
    """
    source = images.shards(None, quick=options.quick)
    num_images = read_manifest(source).split("train").num_samples
    times = 4 if options.quick else -(-200_000 // num_images)
    sides = {SMALL: source, LARGE: images.repeat(source, times)}
    section = Section("memory of the Ray loader", "MiB")
    parts = Section("memory of the Ray loader, by part (no aim)", "MiB")
    for turn in range(options.turns):
        for side, uri in sides.items():
            peak = measured(uri, num_images * times)
            section.measurements.append(Measurement(side, turn, peak["together_bytes"] / MIB))
            for part in ("worker", "store", "tasks"):
                parts.measurements.append(Measurement(f"{part}, {side}", turn, peak[f"{part}_bytes"] / MIB))
    section.rungs.append(Rung(LARGE, SMALL, Aim("<", GROWTH)))
    parts.rungs += [Rung(f"{part}, {LARGE}", f"{part}, {SMALL}") for part in ("worker", "store", "tasks")]
    section.notes.append(
        f"peak of worker + object store, {num_images:,} rows against {num_images * times:,}, "
        f"about {num_images * times:,} images, in whole epochs, delivered in both"
    )
    parts.notes.append("tasks: all processes of this Ray that read and decode, together")
    return [section, parts]


def measured(uri: str, num_images: int) -> dict[str, int]:
    """Returns peaks of a new process that reads about so many images, in whole epochs."""
    peaks: dict[str, int] = in_new_process("ltcore.benchmarks.memory", uri, num_images, what=f"The memory of {uri}")
    return peaks


def read_stream(uri: str, num_images: int) -> dict[str, int]:
    """Reads through Ray Data as a training worker does, and returns peaks.

    This process is the worker.
    """
    from ltcore.runtime.cluster import connect, disconnect
    from ltcore.runtime.ray_data import RayLoader

    connect()
    try:
        size = min(BATCH, read_manifest(uri).split("train").num_samples)
        per_epoch = read_manifest(uri).split("train").num_samples // size * size
        epochs = max(1, round(num_images / per_epoch))  # whole epochs: an unfinished one continues while Ray shuts down
        loader = RayLoader(DataConfig(uri=uri, loader="ray"), uri, epochs=epochs, batch_size=size, seed=0)
        poller = _MemoryPoller()
        poller.start()
        for epoch in range(epochs):
            for _ in loader.train_batches(epoch):
                pass
        poller.end()
        poller.join()
        loader.close()
        return poller.peaks
    finally:
        disconnect()


class _MemoryPoller(Poller):
    """Looks every fifth of a second and keeps the largest values; 'together' is the peak of the sum, worker and store."""

    def __init__(self) -> None:
        super().__init__("bench-memory", EVERY_S)
        self.peaks = dict.fromkeys(("worker_bytes", "store_bytes", "tasks_bytes", "together_bytes"), 0)
        self.poll()

    def poll(self) -> bool:
        """Keeps what is larger than before."""
        worker, store = own_bytes(Path("/proc/self")), store_bytes()
        found = {"worker": worker, "store": store, "tasks": tasks_bytes(), "together": worker + store}
        for name, value in found.items():
            self.peaks[f"{name}_bytes"] = max(self.peaks[f"{name}_bytes"], value)
        return True


def own_bytes(process: Path) -> int:
    """Returns the resident memory of a process without shared memory.

    Mapped pages of the object store belong to the store.
    """
    fields = status(process)
    return sum(int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile") if key in fields)


def status(process: Path) -> dict[str, str]:
    """Returns the fields of ``/proc/<pid>/status``; {} for a process that has ended."""
    try:
        lines = (process / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def tasks_bytes() -> int:
    """Returns the memory of all Ray workers of this process.

    They are recognized by the name of the task they run, ``ray::...``.
    """
    found = {int(file.name): status(file) for file in Path("/proc").iterdir() if file.name.isdigit()}
    parents = {pid: int(fields["PPid"]) for pid, fields in found.items() if "PPid" in fields}

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    workers = (pid for pid, fields in found.items() if fields.get("Name", "").startswith("ray::") and is_ours(pid))
    return sum(own_bytes(Path("/proc") / str(pid)) for pid in workers)


def store_bytes() -> int:
    """Returns the bytes of the objects currently in the store.

    ``available_resources`` lags behind by a report interval, and the size of the store's file never shrinks.
    """
    import ray
    from ray._private.internal_api import node_stats

    used = 0
    for node in ray.nodes():
        stats: Any = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
        used += int(stats.store_stats.object_store_bytes_used)
    return used


if __name__ == "__main__":
    print(json.dumps(read_stream(sys.argv[1], int(sys.argv[2]))))
