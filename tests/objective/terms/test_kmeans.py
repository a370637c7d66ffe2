"""k-means against a naive Lloyd loop and scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from torch import Tensor
from torch.nn.functional import normalize

from ltcore.objective.terms.lpa import kmeans as module
from ltcore.objective.terms.lpa.kmeans import assign, kmeans, lloyd, spread
from ltcore.rng import generator


def blobs(num: int, dim: int, clusters: int, noise: float, seed: int = 0) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    centers = 5 * torch.randn(clusters, dim, generator=gen, dtype=torch.float64)
    return centers[torch.arange(num) % clusters] + noise * torch.randn(num, dim, generator=gen, dtype=torch.float64)


def naive_lloyd(points: Tensor, centers: Tensor, iterations: int, spherical: bool) -> tuple[list[int], Tensor, float]:
    def nearest() -> list[int]:
        return [min(range(len(centers)), key=lambda k: float((p - centers[k]).square().sum())) for p in points]

    centers = centers.clone()
    for _ in range(iterations):
        owner = nearest()
        for k in range(len(centers)):
            mine = [points[r] for r in range(len(points)) if owner[r] == k]
            mean = torch.stack(mine).mean(0)
            centers[k] = mean / mean.norm() if spherical else mean
    owner = nearest()
    return owner, centers, sum(float((p - centers[k]).square().sum()) for p, k in zip(points, owner, strict=True))


@pytest.mark.parametrize("spherical", [True, False])
def test_matches_naive_lloyd_from_the_same_start(spherical: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 17)  # several chunks
    points = blobs(60, 3, 4, noise=2.0)
    points = normalize(points, dim=1) if spherical else points
    start = points[:4].clone()
    owner, centers, inertia = naive_lloyd(points, start, 6, spherical)
    fit = lloyd(points, start, iterations=6, spherical=spherical)
    assert fit.assigned_R.tolist() == owner
    torch.testing.assert_close(fit.centers_KD, centers)
    torch.testing.assert_close(fit.inertia.item(), inertia)


@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_inertia_is_that_of_scikit_learn(noise: float) -> None:
    points = blobs(600, 8, 12, noise)
    fit = kmeans(points, 12, generator(0, "test"), iterations=50, spherical=False)
    reference = SklearnKMeans(12, n_init=10, random_state=0).fit(points.numpy())
    assert fit.inertia.item() <= 1.03 * reference.inertia_


def test_is_repeatable_and_seeded() -> None:
    points = normalize(blobs(200, 4, 6, noise=3.0), dim=1).float()
    one, two, other = (kmeans(points, 6, generator(seed, "test")) for seed in (1, 1, 2))
    assert torch.equal(one.centers_KD, two.centers_KD) and torch.equal(one.assigned_R, two.assigned_R)
    assert not torch.equal(one.centers_KD, other.centers_KD)
    torch.testing.assert_close(one.centers_KD.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(one.inertia, (2 - 2 * (points * one.centers_KD[one.assigned_R]).sum(1)).sum())
    assert torch.equal(assign(points, one.centers_KD), (points @ one.centers_KD.T).argmax(1))


def test_empty_cluster_restarts_at_the_farthest_point() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    start = torch.tensor([[0.5, 0.5], [99.0, 99.0]])  # nothing is nearest to the second
    fit = lloyd(points, start, spherical=False)
    assert fit.assigned_R.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(fit.centers_KD[1], points[3])


def test_as_many_centers_as_points_and_equal_points() -> None:
    points = blobs(7, 3, 7, noise=1.0)
    fit = kmeans(points, 7, generator(0, "test"), spherical=False)
    assert sorted(fit.assigned_R.tolist()) == list(range(7)) and fit.inertia == 0
    same = torch.ones(5, 2) / 2**0.5
    equal = kmeans(same, 3, generator(0, "test"))
    assert equal.inertia < 1e-6 and torch.isfinite(equal.centers_KD).all()
    with pytest.raises(ValueError, match=r"^num_centers"):
        kmeans(same, 6, generator(0, "test"))


def test_start_spreads_over_separate_blobs() -> None:
    points = blobs(100 * module.START_POINTS, 4, 10, noise=0.01)  # more than are looked at
    for seed in range(5):
        start = spread(points, 10, generator(seed, "test"))
        nearest = (start[:, None] - points[:10]).norm(dim=2).argmin(1)
        assert sorted(nearest.tolist()) == list(range(10))
