"""Batches for the training loop, from the canvas cache or from threads that read and decode; bitwise the same."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ltcore.batch import Batch
from ltcore.data import storage
from ltcore.data.cache import CanvasCache, canvas_bytes, entry_path, open_canvases
from ltcore.data.config import DataConfig
from ltcore.data.plan import EpochPlan, Rows, eval_rows
from ltcore.data.store import BadSamples, ShardStore, decode_rows

Ints = npt.NDArray[np.int64]
T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]
MAX_THREADS = 16


class Feed(Protocol):
    """Where a training loop gets its batches from; one per rank."""

    store: ShardStore
    tier: str
    """cache, threads or stream."""
    why: str
    """Why this tier, for people."""
    copies_N: Ints | None
    """How often each training sample comes in the epochs that start from now on; None is once each. May be set."""

    @property
    def num_batches(self) -> int:
        """Steps per epoch, the same on every rank."""
        ...

    @property
    def bad_samples(self) -> dict[int, str]:
        """Undecodable training samples that were replaced so far in this process -> what is wrong."""
        ...

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The rank's share of the epoch's batches from ``start_step`` on: uint8 images [1, B / W, 3, S, S] on the CPU."""
        ...

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """The rank's share of the split in index order, at most ``batch_size`` rows each; nothing dropped or doubled.

        Ranks may differ in the number of batches.
        """
        ...

    def close(self) -> None:
        """Gives up files and locks."""
        ...


class PlanFeed:
    """What both feeds share: the plan, and turning rows into batches. Subclasses say where canvases come from."""

    tier = ""

    def __init__(
        self,
        cfg: DataConfig,
        uri: str,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        why: str = "asked for",
    ) -> None:
        self.cfg, self.uri, self.batch_size, self.seed, self.rank, self.world = cfg, uri, batch_size, seed, rank, world
        self.store = ShardStore(uri, cfg.cache_bytes)
        self.canvas = cfg.canvas or self.store.manifest.canvas
        self.why = why
        self.copies_N: Ints | None = None
        self.plan(0)  # refuses a wrong batch size or number of ranks now rather than at the first step

    @property
    def num_batches(self) -> int:
        num_rows = (
            self.store.manifest.split(self.cfg.train_split).num_samples
            if self.copies_N is None
            else int(self.copies_N.sum())
        )
        return num_rows // self.batch_size

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of one epoch for the present ``copies_N``."""
        return EpochPlan(
            self.store.manifest.split(self.cfg.train_split).rows_per_shard,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            world=self.world,
            lanes=self.cfg.lanes,
            copies_N=self.copies_N,
        )

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        rows = self.plan(epoch).rank_batches(self.rank, start_step)
        return self._batches(self.cfg.train_split, rows)

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        num_rows = self.store.manifest.split(split).num_samples
        slices = eval_rows(num_rows, self.rank, self.world, batch_size)
        return self._batches(split, (Rows(index, np.zeros_like(index)) for index in slices))

    def _batches(self, split: str, rows: Iterable[Rows]) -> Iterator[Batch]:
        raise NotImplementedError

    def _batch(self, split: str, rows: Rows, canvases_B3SS: npt.NDArray[np.uint8]) -> Batch:
        return Batch(
            images_VBCHW=torch.from_numpy(canvases_B3SS)[None],
            labels_B=torch.from_numpy(self.store.labels(split)[rows.index_B]),
            index_B=torch.from_numpy(rows.index_B),
            copy_B=torch.from_numpy(rows.copy_B),
        )


class CacheFeed(PlanFeed):
    """Gathers batches from the node's canvas cache. A split is decoded when it is first used; the training split at once."""

    tier = "cache"

    def __init__(self, cfg: DataConfig, uri: str, *, progress: Progress | None = None, **options: Any) -> None:
        super().__init__(cfg, uri, **options)
        self._progress = progress
        self._open: dict[str, CanvasCache] = {}
        self._canvases(self.cfg.train_split)

    @property
    def bad_samples(self) -> dict[int, str]:
        return dict(self._canvases(self.cfg.train_split).bad)

    def close(self) -> None:
        for opened in self._open.values():
            opened.close()
        self._open.clear()

    def _canvases(self, split: str) -> CanvasCache:
        if split not in self._open:
            self._open[split] = open_canvases(
                self.store,
                split,
                self.canvas,
                cache_bytes=self.cfg.cache_bytes,
                max_bad_samples=self.cfg.max_bad_samples if split == self.cfg.train_split else 0,
                progress=self._progress,
            )
        return self._open[split]

    def _batches(self, split: str, rows: Iterable[Rows]) -> Iterator[Batch]:
        canvases_N3SS = self._canvases(split).canvases_N3SS
        for step in rows:
            yield self._batch(split, step, np.take(canvases_N3SS, step.index_B, axis=0))


class ThreadFeed(PlanFeed):
    """Reads and decodes with threads of this process, at most ``stream_window_steps`` steps ahead of the loop."""

    tier = "threads"

    def __init__(self, cfg: DataConfig, uri: str, **options: Any) -> None:
        super().__init__(cfg, uri, **options)
        self._bad = BadSamples(cfg.max_bad_samples)

    @property
    def bad_samples(self) -> dict[int, str]:
        return dict(self._bad.messages)

    def close(self) -> None:
        """Threads belong to an iterator and end with it; there is nothing else to give up."""

    def _batches(self, split: str, rows: Iterable[Rows]) -> Iterator[Batch]:
        bad = self._bad if split == self.cfg.train_split else None

        def load(step: Rows) -> Batch:
            canvases = decode_rows(self.store, split, step.index_B, self.canvas, bad)
            return self._batch(split, step, canvases)

        threads = min(MAX_THREADS, max(2, torch.get_num_threads()))  # the CPUs that the run gave to this process
        return prefetch(load, rows, ahead=self.cfg.stream_window_steps, threads=threads)


def prefetch(load: Callable[[T], R], items: Iterable[T], *, ahead: int, threads: int) -> Iterator[R]:
    """``load(item)`` for each item, in order, computed by threads at most ``ahead`` items before they are asked for.

    An exception comes out at the place of its item. Closing the iterator early, or dropping it, ends the threads.
    """
    pool = ThreadPoolExecutor(min(threads, ahead), thread_name_prefix="ltcore-feed")
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(load, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def open_feed(
    cfg: DataConfig,
    uri: str,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> Feed:
    """The feed of one rank over the shards at ``uri``.

    Args:
        batch_size: of all ranks together.
        seed: key of the epoch order.
        progress: called with (rows done, rows) while this process fills the canvas cache.

    ``tier=auto`` takes the cache if all splits fit ``cache_bytes`` and half of the free disk, else threads.
    ``tier=stream`` gives threads here as well: the same reader and the same batches without Ray.
    """
    tier, why = cfg.tier, "asked for"
    if tier == "auto":
        fits, why = _cache_fits(cfg, uri)
        tier = "cache" if fits else "threads"
    elif tier == "stream":
        why = "stream asked for, read by threads where there is no Ray"
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "rank": rank, "world": world, "why": why}
    if tier == "cache":
        return CacheFeed(cfg, uri, progress=progress, **options)
    return ThreadFeed(cfg, uri, **options)


def _cache_fits(cfg: DataConfig, uri: str) -> tuple[bool, str]:
    """Whether the decoded data set fits this node's cache, and the arithmetic in words."""
    store = ShardStore(uri)
    canvas = cfg.canvas or store.manifest.canvas
    sizes = {name: canvas_bytes(split.num_samples, canvas) for name, split in store.manifest.splits.items()}
    missing = sum(size for name, size in sizes.items() if not entry_path(store, name, canvas).is_dir())
    root = storage.cache_root()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free // 2
    total, gib = sum(sizes.values()), 2**30
    if total > cfg.cache_bytes:
        return False, f"{total / gib:.2f} GiB decoded exceed data.cache_bytes of {cfg.cache_bytes / gib:.2f} GiB"
    if missing > free:
        return False, f"{missing / gib:.2f} GiB decoded exceed half of the free disk, {free / gib:.2f} GiB"
    return True, f"{total / gib:.2f} GiB decoded fit data.cache_bytes of {cfg.cache_bytes / gib:.2f} GiB"
