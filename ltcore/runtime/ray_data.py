"""The loader on Ray Data: each worker runs its own pipeline over its share of the epoch.

One task reads and decodes the rows of a window of consecutive steps; tasks run on any CPU of the cluster, their results
come back in plan order (``preserve_order``), and back-pressure bounds what is decoded but not yet used. One execution covers
many epochs, because the first batch of an execution costs about 0.3 s; but one epoch where its rows are drawn anew in each.

Not Train's ``datasets=``: its split drops rows (``equal=True``) and re-seeds after a restart, so neither exact resume nor an
exact epoch is possible with it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from ltcore.batch import Batch
from ltcore.config.schema import RunConfig
from ltcore.data.config import DataConfig
from ltcore.data.loading.loader import Ints, Loader, ThreadedLoader
from ltcore.data.loading.window import read_window
from ltcore.training.context import RunContext
from ltcore.training.run import loader_options, make_local_loader

ROWS_PER_EXECUTION = 200_000
"""Rows after which a new execution starts (at an epoch border): long enough to forget its start, short enough to replan."""
MAX_TASKS = 4096


class RayLoader(ThreadedLoader):
    """Training batches through Ray Data; evaluation, which is short, through the threads of the worker itself."""

    def __init__(self, cfg: DataConfig, uri: str, *, epochs: int, **options: Any) -> None:
        super().__init__(cfg, uri, **options)
        self.kind, self.why = "ray", "Ray Data (asked for)"
        self._epochs = epochs
        self._rows: Iterator[dict[str, Any]] | None = None
        self._at = (-1, -1)
        """(epoch, step) that the running execution delivers next."""
        self._copies: Ints | None = None
        """Of the running execution."""

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the rank's batches of one epoch.

        Continues the running execution where that is at the same place.
        """
        for step in range(start_step, self.num_batches):
            if self._rows is None or self._at != (epoch, step) or self._copies is not self.copies_N:
                self._rows = self._execute(epoch, step)
            row = next(self._rows, None)
            if row is None:  # the execution ended at the previous epoch's border
                self._rows = self._execute(epoch, step)
                row = next(self._rows)
            self._at = (epoch, step + 1) if step + 1 < self.num_batches else (epoch + 1, 0)
            if self.cfg.max_bad_samples:
                for index, message in zip(row["index"].tolist(), row["bad"].tolist(), strict=True):
                    if message:
                        self._bad.add(index, message)
            # copies: the object store's pages are read-only and shared
            label_B, index_B, copy_B = (torch.tensor(row[name]) for name in ("label", "index", "copy"))
            if self.crops:
                images, boxes_VB4 = (torch.tensor(row[name].swapaxes(0, 1)) for name in ("image", "boxes"))
                yield Batch(images, label_B, index_B, copy_B, boxes_VB4=boxes_VB4)
            else:
                yield Batch(torch.tensor(row["image"])[None], label_B, index_B, copy_B)

    def _execute(self, epoch: int, step: int) -> Iterator[dict[str, Any]]:
        import ray.data  # a second, which processes of other loaders save

        self._rows = None  # ends an execution that others replace, before the next takes its CPUs
        self._copies = self.copies_N
        rows_per_epoch = self.num_batches * self.batch_size
        # with copies, the next epoch has others
        several = 1 if self.copies_N is not None else max(1, ROWS_PER_EXECUTION // rows_per_epoch)
        last = min(self._epochs, epoch + several)
        window = self.cfg.prefetch_steps
        windows = [
            {"epoch": e, "first": first, "last": min(first + window, self.num_batches)}
            for e in range(epoch, last)
            for first in range(step if e == epoch else 0, self.num_batches, window)
        ]
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=max(1, self._task_cpus()))
        with ray.data.DataContext.current(context):
            dataset = ray.data.from_items(windows, override_num_blocks=min(len(windows), MAX_TASKS)).map_batches(
                functools.partial(read_window, job=self._task()),
                batch_size=1,
                num_cpus=1,
            )
            return iter(
                dataset.iter_batches(
                    batch_size=self.batch_size // self.world, batch_format="numpy", prefetch_batches=2, drop_last=False
                )
            )

    def _task_cpus(self) -> int:
        """Returns how many data tasks this worker has at a time: its share of the CPUs that no worker reserved."""
        import ray

        free = ray.cluster_resources().get("CPU", 1.0) - self.world
        return int(free // self.world)

    def _task(self) -> dict[str, Any]:
        """Returns what a data task needs to know; it is small except for ``copies_N``."""
        return {
            "uri": self.uri,
            "split": self.cfg.train_split,
            "image_size": self.image_size,
            "crops": [(crop.view, crop.min_area) for crop in self.crops],
            "rank": self.rank,
            "cache_bytes": self.cfg.cache_bytes,
            "max_bad_samples": self.cfg.max_bad_samples,
            "sampler": {
                "seed": self.seed,
                "batch_size": self.batch_size,
                "world": self.world,
                "lanes": self.cfg.lanes,
                "copies_N": self.copies_N,
            },
        }

    def close(self) -> None:
        """Ends the running execution, and the threads of evaluation."""
        self._rows = None
        super().close()


def make_ray_loader(cfg: RunConfig, uri: str, ctx: RunContext) -> Loader:
    """Opens the loader of one rank where Ray is available: through Ray Data for ``data.loader=ray``."""
    if cfg.data.loader != "ray":
        return make_local_loader(cfg, uri, ctx)
    return RayLoader(cfg.data, uri, epochs=cfg.train.epochs, **loader_options(cfg, ctx))
