"""The loader on Ray Data: each worker runs its own pipeline over its share of the epoch.

The rows of its pipeline are those of the plan (``ltcore.data.loading.plan``), and one task decodes one part of a window of
consecutive steps. Where the data are remote, the parts of a node's shards are decoded on that node (by soft affinity, so
that they move where it is lost), and every shard is downloaded once in the cluster; elsewhere a window is one part, and any
CPU decodes it. Back-pressure bounds what is decoded but not yet used. One execution covers a fixed number of rows, over
the borders of epochs unless their rows are drawn anew, because the first batch of an execution costs about 0.3 s.

Not Train's ``datasets=``: its split drops rows (``equal=True``) and re-seeds after a restart, so neither exact resume nor an
exact epoch is possible with it.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ltcore import storage
from ltcore.batch import Batch
from ltcore.config.schema import RunConfig
from ltcore.data.config import DataConfig
from ltcore.data.loading.loader import Ints, Loader, ThreadedLoader
from ltcore.data.loading.plan import ShardHomes, Window, parts, windows_from
from ltcore.data.loading.sampler import Copies
from ltcore.data.loading.window import read_part
from ltcore.runtime.data_nodes import DataNodes, dealt
from ltcore.runtime.stream_blocks import NothingCameError, Steps
from ltcore.training.context import RunContext
from ltcore.training.run import loader_options, make_local_loader

ROWS_PER_EXECUTION = 200_000
"""Rows of a worker after which a new execution starts: long enough to forget its start, short enough to replan and to hold."""
PATIENCE_S = 60.0
"""How long parts may wait for the node of their shards; after that they go to any node that has a CPU."""
ANYWHERE = ""
"""Home of the shards that every node reads equally well."""


class RayLoader(ThreadedLoader):
    """Training batches through Ray Data; evaluation, which is short, through the threads of the worker itself."""

    def __init__(self, cfg: DataConfig, uri: str, **options: Any) -> None:
        super().__init__(cfg, uri, **options)
        self.kind, self.why = "ray", "Ray Data (asked for)"
        self._nodes = DataNodes()
        self._running: Steps | None = None
        self._at = (-1, -1)
        """(epoch, step) that the running execution delivers next."""
        self._plan: tuple[Copies | None, Ints | None] = (None, None)
        """Copies and order of the running execution."""
        split = self.store.manifest.split(cfg.train_split)
        self._remote = not all(storage.is_local(shard.base or uri) for shard in split.shards)

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the rank's batches of one epoch.

        Continues the running execution where that is at the same place.
        """
        for step in range(start_step, self.num_batches):
            row = self._next(epoch, step)
            self._at = (epoch, step + 1) if step + 1 < self.num_batches else (epoch + 1, 0)
            for index, message in zip(row["index"].tolist(), row.get("bad", ()), strict=False):
                if message:
                    self._bad.add(index, message)
            yield Batch(
                torch.from_numpy(_views_first(row["image"]) if self.crops else row["image"][None]),
                torch.from_numpy(self.store.labels_of(self.cfg.train_split, row["index"])),
                torch.from_numpy(row["index"]),
                torch.from_numpy(row["copy"]),
                boxes_VB4=torch.from_numpy(_views_first(row["boxes"])) if self.crops else None,
            )

    def _next(self, epoch: int, step: int) -> dict[str, Any]:
        """Returns the rows of a step, from the running execution where that is at the same place, else from a new one."""
        row = None
        if self._running is not None and self._at == (epoch, step) and self._planned():
            row = self._try_next(self._running)
        if row is None:
            self._running = self._execute(epoch, step, at_home=self._remote)
            row = self._try_next(self._running)
        if row is None:
            self._running = self._execute(epoch, step, at_home=False)
            row = next(self._running)
        return row

    def _try_next(self, running: Steps) -> dict[str, Any] | None:
        """Returns the next rows, None at the end of the execution, or where a node does not do what is its own.

        Then other runs have taken its CPUs since the execution began.
        """
        try:
            return next(running, None)
        except NothingCameError:
            return None

    def _planned(self) -> bool:
        """Tells whether the running execution is of the present copies and order."""
        return self._plan[0] is self.copies_N and self._plan[1] is self.order_L

    def _windows(self, epoch: int, step: int) -> Iterator[Window]:
        """Yields the windows of the next execution."""
        drawn = any(part is not None for part in self._plan)  # with copies or an order, the next epoch has others
        epochs = range(epoch, epoch + 1 if drawn else self.epochs)
        window = self.cfg.prefetch_steps
        rows_per_window = window * (self.rows_per_step // self.world)
        planned = windows_from(
            epochs, self.num_batches, step, window, lambda e, first: self.sampler(e).rank_batches(self.rank, first)
        )
        return itertools.islice(planned, max(1, ROWS_PER_EXECUTION // rows_per_window))

    def _execute(self, epoch: int, step: int, *, at_home: bool) -> Steps:
        """Starts an execution at a step; ``at_home`` pins the parts of a shard to one node."""
        import ray.data  # a second, which processes of other loaders save
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._end()  # before the next takes its CPUs
        self._plan = (self.copies_N, self.order_L)
        nodes = self._nodes.now()
        share = dealt(nodes, self.rank, self.world)
        weights = {node.node_id: float(node.free) for node in nodes if node.node_id in share}
        at_home = at_home and bool(weights)
        home = ShardHomes(weights if at_home else {ANYWHERE: 1.0})
        windows, tables = list(self._windows(epoch, step)), defaultdict(list)
        for number, window in enumerate(windows):
            for name, table in parts(window, number, self.store, self.cfg.train_split, home):
                tables[name].append(table)
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        cpus = max(1, sum(share.values()))
        context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=cpus)
        read = functools.partial(read_part, job=self._task())
        with ray.data.DataContext.current(context):
            datasets = []
            for name in sorted(tables):
                options: dict[str, Any] = {}
                if name != ANYWHERE:
                    options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(name, soft=True)
                rows = ray.data.from_blocks(tables[name])  # from_arrow would start a task for each of them
                datasets.append(
                    rows.map_batches(
                        read,
                        batch_size=None,
                        batch_format="pyarrow",
                        num_cpus=1,
                        compute=ray.data.TaskPoolStrategy(size=min(share.get(name, cpus), len(tables[name]))),
                        **options,
                    )
                )
            # of several, it takes turns block by block, so the first windows come first
            dataset = datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]
            blocks = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
            return Steps(windows, iter(blocks), self.rows_per_step // self.world, PATIENCE_S if at_home else None)

    def _task(self) -> dict[str, Any]:
        """Returns what every data task needs to know; what it decodes comes with its rows."""
        return {
            "uri": self.uri,
            "indexed": self.store.manifest.indexed,
            "split": self.cfg.train_split,
            "image_size": self.image_size,
            "framing": asdict(self.prep.framing),
            "crops": [asdict(crop) for crop in self.crops],
            "epochs": self.epochs,
            "cache_bytes": self.cfg.cache_bytes,
            "max_bad_samples": self.cfg.max_bad_samples,
            "seed": self.seed,
        }

    def close(self) -> None:
        """Ends the running execution, and the threads of evaluation."""
        self._end()
        super().close()

    def _end(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


def _views_first(rows_BV: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows_BV.swapaxes(0, 1))


def make_ray_loader(cfg: RunConfig, uri: str, ctx: RunContext) -> Loader:
    """Opens the loader of one rank where Ray is available: through Ray Data for ``data.loader=ray``."""
    if cfg.data.loader != "ray":
        return make_local_loader(cfg, uri, ctx)
    return RayLoader(cfg.data, uri, **loader_options(cfg, ctx))
