"""Predictions of shards through Ray Data, by a pool of actors of which each has the network.

A task is a batch of consecutive rows; an actor reads, decodes and predicts them. ``preserve_order`` and back-pressure bound
what is predicted but not yet written, and the driver proves that every row came once and in index order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from ltcore.runtime.cluster import quiet
from ltcore.training.predictions import Predictions, in_order, load_rows, predicted
from ltcore.training.predictor import Predictor

MAX_BLOCKS = 4096


def predict_split_on_ray(
    predictor: Predictor, store: ShardStore, split: str, *, top_k: int = 1, logits: bool = False
) -> Iterator[Predictions]:
    """Yields what ``training.predictions.predict_split`` yields, computed by actors on the cluster that is connected."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # which the import has set to show every step
    rows, size = store.manifest.split(split).num_samples, predictor.batch_size
    spans = [{"first": first, "last": min(first + size, rows)} for first in range(0, rows, size)]
    gpus, cpus = (ray.cluster_resources().get(name, 0.0) for name in ("GPU", "CPU"))
    # with every CPU taken by an actor, the tasks that feed them would wait for ever
    actors = max(1, min(len(spans), int(gpus or cpus - 1)))
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_items(spans, override_num_blocks=min(len(spans), MAX_BLOCKS)).map_batches(
            _Actor,
            fn_constructor_args=(ray.put(predictor.to("cpu")), store.uri, store.cache_bytes, split, top_k, logits),
            batch_size=1,
            num_cpus=1,
            num_gpus=1 if gpus else 0,
            compute=ray.data.ActorPoolStrategy(size=actors),
        )
        batches = dataset.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=2)
        yield from in_order((_predictions(split, batch) for batch in batches), split, rows)


def _predictions(split: str, batch: dict[str, Any]) -> Predictions:
    index_B, first = batch["index"], int(batch["index"][0])
    if not np.array_equal(index_B, np.arange(first, first + len(index_B))):
        raise DataError(f"Predictions of split {split!r}: rows from {first} on came in another order.")
    return Predictions(
        files=batch["key"].tolist(),
        labels=batch["label"].tolist(),
        errors=[error or None for error in batch["error"].tolist()],
        classes_Bk=batch["classes"],
        probabilities_Bk=batch["probabilities"],
        logits_BC=batch.get("logits"),
        split=split,
        first_index=first,
    )


class _Actor:
    """A process of the pool, with the network on its GPU where it has one."""

    def __init__(self, predictor: Any, uri: str, cache_bytes: int, split: str, top_k: int, logits: bool) -> None:
        import ray

        quiet()
        self._predictor: Predictor = ray.get(predictor).to("auto")
        self._store, self._split = ShardStore(uri, cache_bytes), split
        self._keys = self._store.keys(split)
        self._top_k, self._logits = top_k, logits

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        span = range(int(batch["first"][0]), int(batch["last"][0]))
        loaded = load_rows(self._store, self._split, span, self._keys[span.start : span.stop], self._predictor)
        found = predicted(self._predictor, loaded, self._top_k, self._logits)
        columns: dict[str, Any] = {
            "index": np.arange(span.start, span.stop),
            "key": list(found.files),
            "label": list(found.labels),
            "error": [error or "" for error in found.errors],
            "classes": found.classes_Bk,
            "probabilities": found.probabilities_Bk,
        }
        return columns if found.logits_BC is None else {**columns, "logits": found.logits_BC}
