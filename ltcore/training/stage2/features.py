"""The pooled features of one split in memory: what stage 2 trains on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from ltcore.batch import Batch
from ltcore.data.loading.loader import Loader
from ltcore.errors import DataError, NumericError
from ltcore.models.net import LongTailNet
from ltcore.objective.stage2.method import FeatureSet


@torch.no_grad()
def pooled_features(
    net: LongTailNet,
    loader: Loader,
    split: str,
    *,
    batch_size: int,
    device: torch.device,
    autocast: torch.dtype | None,
    normalize: Callable[[Batch], Batch],
    dtype: torch.dtype,
    tick: Callable[[], None],
) -> FeatureSet:
    """Features of the un-augmented images of a split, row i of sample i, on ``device``: N D values of ``dtype``.

    ``net`` is in evaluation mode; one process reads the whole split. ``tick`` is called once per batch and may raise. Raises
    DataError if a row was lost or doubled, NumericError if a feature is not finite in ``dtype``.
    """
    num_rows = loader.store.manifest.split(split).num_samples
    features_ND = torch.empty(num_rows, net.feature_dim, dtype=dtype, device=device)
    labels_N = torch.full((num_rows,), -1, device=device)
    seen = 0
    for raw in loader.eval_batches(split, batch_size):
        tick()
        batch = normalize(raw.to(device))
        with torch.autocast(device.type, dtype=autocast) if autocast else contextlib.nullcontext():
            out = net(batch.images_VBCHW[0])
        features_ND[batch.index_B] = out.features_BD.to(dtype)
        labels_N[batch.index_B] = batch.labels_B
        seen += len(batch)
    if seen != num_rows or bool((labels_N < 0).any()):
        raise DataError(f"Features of split {split!r} came from {seen} rows; the manifest has {num_rows}.")
    if not bool(features_ND.isfinite().all()):
        raise NumericError(
            f"Features of split {split!r} are not finite in {str(dtype).removeprefix('torch.')}. Set "
            "stage2.feature_dtype=float32, or start from a sound checkpoint."
        )
    return FeatureSet(features_ND, labels_N)
