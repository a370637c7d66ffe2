"""Small parts for tests of single losses: golden arrays, class statistics, outputs and contexts by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ltcore.batch import Batch, ModelOutput
from ltcore.objective.dims import FeatureDims
from ltcore.objective.interface import LossContext
from ltcore.objective.memory.base import Memory
from ltcore.objective.memory.centroids import ClassCentroids
from ltcore.shots import shot_groups_by_count
from ltcore.stats import ClassStats
from tests.paths import ROOT


@cache
def golden(size: str = "small") -> dict[str, Tensor]:
    """Inputs, losses and gradients (float64) computed once with the authors' published code.

    'small' has ten classes; 'cifar100' the counts of CIFAR-100-LT, without arrays that no loss here is compared with (GPaCo,
    DRO with class weights, gradients by centers), which keeps the file below 1.5 MB.
    """
    with np.load(ROOT / "tests" / "golden" / f"losses_{size}.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def assert_golden(ours: Tensor, name: str, tolerance: float = 1e-9, size: str = "small") -> None:
    """max |ours - theirs| <= tolerance * max |theirs|."""
    theirs = golden(size)[name]
    worst, scale = (ours.detach() - theirs).abs().max(), theirs.abs().max()
    assert worst <= tolerance * scale, f"{name}: off by {float(worst):.3g} of {float(scale):.3g}"


def f64(values: Sequence[object]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make_stats(counts: Sequence[int] | Tensor) -> ClassStats:
    counts_C = torch.as_tensor(counts)
    return ClassStats(counts_C, shot_groups_by_count(counts_C.tolist()))


def make_output(logits_BC: Tensor | None = None, features_BD: Tensor | None = None) -> ModelOutput:
    size = len(features_BD if logits_BC is None else logits_BC)  # type: ignore[arg-type]
    empty = torch.zeros(size, 1, dtype=torch.float64)
    return ModelOutput(empty if logits_BC is None else logits_BC, empty if features_BD is None else features_BD)


def make_batch(labels: Sequence[int] | Tensor, index: Sequence[int] | Tensor | None = None) -> Batch:
    labels_B = torch.as_tensor(labels)
    index_B = torch.arange(len(labels_B)) if index is None else torch.as_tensor(index)
    return Batch(torch.zeros(1, len(labels_B), 3, 1, 1), labels_B, index_B, torch.zeros_like(index_B))


def make_context(stats: ClassStats, progress: float = 0.9, **memories: Memory) -> LossContext:
    return LossContext(stats, stats.log_prior_C("dataset", torch.float64), progress, memories)


def make_dims(num_features: int, stats: ClassStats) -> FeatureDims:
    return FeatureDims(features=num_features, projection=4, num_samples=stats.num_samples)


def make_centroids(mean_CD: Tensor, counts: Sequence[int] | None = None, var: Sequence[float] | None = None) -> Memory:
    """Published as given; every class seen 10 times with variance 1 unless told otherwise."""
    centroids = ClassCentroids(*mean_CD.shape)
    centroids.mean_CD.copy_(mean_CD)
    centroids.count_C.copy_(f64([10] * len(mean_CD) if counts is None else counts))
    centroids.var_C.copy_(f64([1.0] * len(mean_CD) if var is None else var))
    freedom_C = (centroids.count_C - 1).clamp_min(0)
    centroids.pooled_var.copy_((centroids.var_C * freedom_C).sum() / freedom_C.sum().clamp_min(1))
    return centroids


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
