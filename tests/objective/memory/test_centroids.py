"""Class centroids against sums over the samples."""

from __future__ import annotations

from dataclasses import replace

import torch

from ltcore.batch import Mix
from ltcore.objective.memory.centroids import ClassCentroids
from tests.ddp import run_ranks
from tests.objective import toy

LABELS = torch.tensor([0, 2, 2, 0, 2, 3, 0, 2])


def features(epoch: int, offset: float = 0.0) -> torch.Tensor:
    return offset + torch.randn(8, 5, generator=torch.Generator().manual_seed(epoch), dtype=torch.float64)


def observed(z_BD: torch.Tensor, labels: torch.Tensor, memory: ClassCentroids, batch: int = 3) -> ClassCentroids:
    for z, y in zip(z_BD.split(batch), labels.split(batch), strict=True):
        memory.observe(toy.make_output(features_BD=z), toy.make_batch(y))
    return memory


def test_mean_variance_and_count_of_each_class() -> None:
    z = features(0, offset=1000.0)  # far from the origin: sums of squares must not cancel
    memory = observed(z, LABELS, ClassCentroids(4, 5))
    memory.merge(0.1)
    for c in (0, 2, 3):
        torch.testing.assert_close(memory.mean_CD[c], z[LABELS.eq(c)].mean(0))
        assert memory.count_C[c] == LABELS.eq(c).sum()
    for c in (0, 2):
        torch.testing.assert_close(memory.var_C[c], z[LABELS.eq(c)].var(0).sum(), rtol=1e-6, atol=0)
    assert memory.var_C[3] == 0
    assert memory.count_C[1] == 0
    within = sum(((z[LABELS.eq(c)] - z[LABELS.eq(c)].mean(0)) ** 2).sum() for c in (0, 2))
    torch.testing.assert_close(memory.pooled_var, within / 5, rtol=1e-6, atol=0)


def test_a_class_that_is_absent_keeps_its_centroid() -> None:
    memory = observed(features(0), LABELS, ClassCentroids(4, 5))
    memory.merge(0.1)
    old = {name: tensor.clone() for name, tensor in memory.published().items()}
    z = features(1)[:3]
    observed(z, torch.tensor([0, 0, 1]), memory).merge(0.2)
    for name in ("mean_CD", "var_C", "count_C"):
        assert torch.equal(memory.published()[name][2:], old[name][2:])
    torch.testing.assert_close(memory.mean_CD[0], z[:2].mean(0))
    torch.testing.assert_close(memory.mean_CD[1], z[2])


def test_only_the_last_window_counts() -> None:
    memory = ClassCentroids(4, 5)
    for epoch in range(3):
        observed(features(epoch), LABELS, memory).merge(0.1)
    fresh = observed(features(2), LABELS, ClassCentroids(4, 5))
    fresh.merge(0.1)
    assert all(torch.equal(tensor, fresh.published()[name]) for name, tensor in memory.published().items())


def test_a_mixed_image_counts_for_both_classes_by_its_shares() -> None:
    z, labels = features(0)[:4], torch.tensor([0, 2, 3, 2])
    lam = torch.tensor([0.25, 0.25, 0.5, 0.5])
    mix = Mix(labels[[1, 0, 3, 2]], lam, torch.tensor([1, 0, 3, 2]))
    memory = ClassCentroids(4, 5)
    memory.observe(toy.make_output(features_BD=z), replace(toy.make_batch(labels), mix=mix))
    memory.merge(0.1)
    assert memory.count_C.tolist() == [1, 0, 2, 1]  # an image in all for every one that came in
    torch.testing.assert_close(memory.mean_CD[0], 0.25 * z[0] + 0.75 * z[1])
    torch.testing.assert_close(memory.mean_CD[2], (0.75 * z[0] + 0.25 * z[1] + 0.5 * z[2] + 0.5 * z[3]) / 2)


def test_half_precision_features_are_summed_exactly() -> None:
    z = features(0).bfloat16()
    memory = observed(z, LABELS, ClassCentroids(4, 5))
    memory.merge(0.1)
    torch.testing.assert_close(memory.mean_CD[2], z[LABELS.eq(2)].double().mean(0))


def test_no_class_seen_twice_has_no_spread() -> None:
    memory = observed(features(0)[:2], torch.tensor([0, 1]), ClassCentroids(4, 5))
    memory.merge(0.1)
    assert memory.pooled_var == 0


def shares_of_a_rank(counts: list[int]) -> list[torch.Tensor]:
    """Ranks see different numbers of samples."""
    rank = torch.distributed.get_rank()
    memory = observed(features(0).split(counts)[rank], LABELS.split(counts)[rank], ClassCentroids(4, 5))
    memory.merge(0.1)
    return list(memory.published().values())


def test_two_uneven_ranks_publish_what_one_would() -> None:
    alone = observed(features(0), LABELS, ClassCentroids(4, 5))
    alone.merge(0.1)
    for published in run_ranks(shares_of_a_rank, 2, [5, 3]):
        for ours, expected in zip(published, alone.published().values(), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
