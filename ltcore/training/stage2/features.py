"""The pooled features of one split in memory: what stage 2 trains on."""

from __future__ import annotations

import torch

from ltcore.errors import DataError, NumericError
from ltcore.objective.stage2.method import FeatureSet
from ltcore.training.evaluate import Evaluator


def pooled_features(evaluator: Evaluator, split: str, dtype: torch.dtype) -> FeatureSet:
    """Computes the features of the un-augmented images of a split, row i of sample i.

    They are on the device: N D values of ``dtype``. One process reads the whole split. Raises DataError if a row was
    lost or doubled, NumericError if a feature is not finite in ``dtype``.
    """
    num_rows = evaluator.loader.store.manifest.split(split).num_samples
    features_ND = torch.empty(num_rows, evaluator.net.feature_dim, dtype=dtype, device=evaluator.device)
    labels_N = torch.full((num_rows,), -1, device=evaluator.device)
    seen = 0
    for batch, out in evaluator.outputs(split):
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
