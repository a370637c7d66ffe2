"""Evaluation of one split: every row exactly once over all ranks, counted, in integers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcore.batch import Batch
from ltcore.data.loading.loader import Loader
from ltcore.errors import DataError
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.metrics import metrics, per_attribute, per_class
from ltcore.models.net import LongTailNet


@torch.no_grad()
def confusion(
    net: LongTailNet,
    loader: Loader,
    split: str,
    *,
    batch_size: int,
    device: torch.device,
    autocast: torch.dtype | None,
    normalize: Callable[[Batch], Batch],
    adjust: Callable[[Tensor], Tensor] | None = None,
    num_classes: int | None = None,
    beat: Callable[[], None] = lambda: None,
) -> Confusion:
    """Counts [A, C, C] of the whole split, equal on every rank. Raises DataError if a row was lost or doubled.

    The prediction is the largest logit [B, C] (the mean over experts), after ``adjust`` where there is one. ``num_classes`` is
    that of the network, where ``normalize`` turns the labels of other data into the network's. ``beat`` is called at every
    batch: a large split takes minutes.
    """
    manifest = loader.store.manifest
    counts = Confusion(num_classes or len(manifest.classes), len(manifest.attributes), device)
    attributes_N = torch.tensor(loader.store.attributes(split), device=device)  # a copy: the store's array is read-only
    was_training = net.training
    net.eval()
    for raw in loader.eval_batches(split, batch_size):
        beat()
        batch = normalize(raw.to(device))
        precision = torch.autocast(device.type, dtype=autocast) if autocast else contextlib.nullcontext()
        with precision:
            logits_BC = net(batch.images_VBCHW[0]).mean_logits_BC
        counts.update(adjust(logits_BC) if adjust else logits_BC, batch.labels_B, attributes_N[batch.index_B])
    net.train(was_training)
    counts.reduce()
    expected = manifest.splits[split].num_samples
    if counts.total != expected:
        raise DataError(f"Evaluation of split {split!r} saw {counts.total} rows; the manifest has {expected}.")
    return counts


def split_metrics(counts: Confusion, loader: Loader, shot_groups: Sequence[str] | None = None) -> dict[str, Any]:
    """Flat metrics of one split: those of ``evaluation.metrics``, and ``attribute/<name>`` where attributes exist.

    ``shot_groups`` [C] are those of the data that the classifier was trained on, where these are others.
    """
    manifest = loader.store.manifest
    array = counts.counts_ACC
    flat: dict[str, Any] = dict(metrics(array, shot_groups or manifest.shot_groups))
    if manifest.attributes:
        flat |= per_attribute(array, manifest.attributes)
    return flat


def class_accuracy(counts: Confusion) -> list[float | None]:
    """[C] accuracy of each class in [0, 1]; None where the split has no sample of it."""
    return per_class(counts.counts_ACC)


def check_train_split(loader: Loader, split: str) -> None:
    """Every class needs a training sample: a class without one has no centroid, no prior and no chance. Raises DataError."""
    manifest = loader.store.manifest
    labels = loader.store.labels(split)
    counts = np.bincount(labels, minlength=len(manifest.classes))
    empty = [manifest.classes[c] for c in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(counts)} classes have no training sample ({', '.join(empty[:5])}): every class needs one. "
            "Remove the classes or add images."
        )
