"""Whitening and scores of local vectors; how a memory uses the options of LPA beyond its defaults."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ltcore.batch import Batch, ModelOutput
from ltcore.objective.dims import FeatureDims
from ltcore.objective.terms.lpa.attributes import class_neighbors
from ltcore.objective.terms.lpa.codebook import affinities, attribute_scores, lengths, unwhitened, whitening
from ltcore.objective.terms.lpa.kmeans import affinity
from ltcore.objective.terms.lpa.prototypes import Prototypes
from tests.objective.terms.prototypes_case import CLASSES, DIM, SPEC, STATS, memory, observe, window
from tests.objective.toy import copies


def test_whitened_points_have_unit_covariance_and_flat_directions_stay_small() -> None:
    gen = torch.Generator().manual_seed(1)
    mixing = torch.randn(4, 4, generator=gen, dtype=torch.float64)
    points = torch.randn(5000, 4, generator=gen, dtype=torch.float64) @ mixing + 7
    mean, matrix = whitening(points)
    white = (points - mean) @ matrix
    torch.testing.assert_close(white.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9)
    covariance = white.T @ white / len(white)
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 1e-9
    assert (covariance.diagonal() > 0.9).all() and (covariance.diagonal() <= 1).all()
    flat = torch.cat([points, torch.full((5000, 1), 3.0, dtype=torch.float64)], 1)
    mean, matrix = whitening(flat)
    assert ((flat - mean) @ matrix).isfinite().all() and matrix.isfinite().all()
    assert whitening(torch.ones(3, 2))[1].isfinite().all(), "nothing varies at all"


def test_folded_centers_rank_as_whitened_ones() -> None:
    gen = torch.Generator().manual_seed(2)
    points = torch.randn(60, 4, generator=gen, dtype=torch.float64) * torch.tensor([9.0, 1.0, 0.1, 3.0]) + 2
    mean, matrix = whitening(points)
    centers = torch.randn(5, 4, generator=gen, dtype=torch.float64)
    directions, offsets = unwhitened(centers, mean, matrix)
    expected = affinity((points - mean) @ matrix, centers)
    torch.testing.assert_close(points @ directions.T + offsets, expected)


def test_presence_is_one_for_every_prototype_that_is_nearest_somewhere() -> None:
    vectors = torch.tensor([[[2.0, 0, 0], [1.0, 0.1, 0], [0, 3.0, 1], [0, 0.0, 0.0]]])
    affinity_BPK, size_BP = affinities(vectors, torch.eye(3), "cosine"), lengths(vectors, "cosine")
    assert attribute_scores(affinity_BPK, size_BP, score="hard", score_temperature=1.0).tolist() == [[2, 1, 0]]
    assert attribute_scores(affinity_BPK, size_BP, score="presence", score_temperature=1.0).tolist() == [[1, 1, 0]]


def test_jaccard_counts_shared_attributes_over_those_of_either() -> None:
    """Shares (.6, .3, .1), (.5, .2, .3), (.1, .2, .7) are above their mean (.4, .233, .367) in {0, 1}, {0} and {2}."""
    mass = torch.tensor([[6, 3, 1], [5, 2, 3], [1, 2, 7]])
    options = {"neighbors": 2, "shrink": 10.0, "centering": "centered", "similarity": "jaccard"}
    ids, weights = class_neighbors(mass, torch.ones(3), threshold=0.0, **options)  # type: ignore[arg-type]
    assert ids.tolist() == [[1, 0], [0, 1], [2, 2]]
    assert weights.tolist() == [[0.5, 0.0], [0.5, 0.0], [0.0, 0.0]]
    _, weights = class_neighbors(mass, torch.ones(3), threshold=0.25, **options)  # type: ignore[arg-type]
    assert weights[0].tolist() == pytest.approx([(0.5 - 0.25) / 0.75, 0.0])


def nearest(made: Prototypes, fmap_BDhw: Tensor) -> Tensor:
    """int64 [B, P] by the memory's own scores, one location at a time."""
    out = ModelOutput(torch.zeros(len(fmap_BDhw), CLASSES), torch.zeros(len(fmap_BDhw), DIM), fmap_BDhw=fmap_BDhw)
    columns = [replace(out, fmap_BDhw=fmap_BDhw[:, :, i : i + 1, j : j + 1]) for i in range(2) for j in range(3)]
    return torch.stack([made.scores(column).argmax(1) for column in columns], 1)


def test_whitened_prototypes_are_those_of_whitened_vectors() -> None:
    """One direction with a hundred times the spread decides for 'euclid', and counts like any other for 'whitened'."""
    fmap, labels, index = window(0)
    fmap = fmap * torch.tensor([100.0, 1, 1, 1, 1])[:, None, None] + 3
    spec = replace(SPEC, metric="whitened", reservoir_per_class=200, locations_per_image=6)
    made = memory(spec)
    observe(made, fmap, labels, index)
    points = made.pending()["reservoir_vectors"][made.pending()["reservoir_keys"] > 0]
    made.merge(0.1)
    mean, matrix = whitening(points)
    white = ((points.double() - mean) @ matrix).float()
    assert white.var(0).max() < 1.5
    mine = nearest(made, fmap)
    own = affinities(fmap.flatten(2).transpose(1, 2), made.prototypes_KD, "whitened", made.offsets_K).argmax(2)
    assert torch.equal(mine, own)
    assert made.mass_CK.sum() == len(points) and len(mine.unique()) == 4
    locations = ((fmap.flatten(2).transpose(1, 2).double() - mean) @ matrix).flatten(0, 1)
    within = sum(
        ((locations[mine.flatten() == k]) - locations[mine.flatten() == k].mean(0)).square().sum() for k in range(4)
    )
    by_norm = memory(replace(spec, metric="euclid"))
    observe(by_norm, fmap, labels, index)
    by_norm.merge(0.1)
    theirs = nearest(by_norm, fmap).flatten()
    worse = sum((locations[theirs == k] - locations[theirs == k].mean(0)).square().sum() for k in theirs.unique())
    assert within < 0.95 * worse, "a better clustering of the whitened vectors than the raw ones give"


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_prototypes_move_to_what_is_nearest_to_them(metric: str, rate: float) -> None:
    made = memory(replace(SPEC, metric=metric, refresh_fraction=0.0, online_rate=rate))
    observe(made, *window(0))
    made.merge(0.1)
    before = made.prototypes_KD.clone()
    fmap, labels, index = window(1)
    observe(made, fmap, labels, index)
    assigned = nearest(made, fmap)
    counted = made.pending()["window"].clone()
    made.merge(0.2)
    vectors = fmap.flatten(2).transpose(1, 2)
    vectors = normalize(vectors, dim=2) if metric == "cosine" else vectors
    for k in range(4):
        mine = vectors[assigned == k]
        expected = before[k] if not len(mine) else (1 - rate) * before[k] + rate * mine.mean(0)
        expected = normalize(expected, dim=0) if metric == "cosine" else expected
        torch.testing.assert_close(made.prototypes_KD[k], expected)
    assert torch.equal(made.mass_CK, counted)
    assert not made.pending()["sum"].any() and not made.pending()["seen"].any()
    frozen = made.prototypes_KD.clone()
    for progress in (0.65, 0.7):  # freeze_fraction is 0.6
        observe(made, *window(2))
        made.merge(progress)
    assert torch.equal(made.prototypes_KD, frozen)


def test_prototypes_that_stay_sum_nothing() -> None:
    assert {"sum", "seen", "offsets"}.isdisjoint({**memory().pending(), **memory().published()})


def test_layers_and_scales_change_what_is_clustered() -> None:
    fmap, labels, index = window(0)
    early = torch.rand(14, 3, 4, 6, generator=torch.Generator().manual_seed(7))
    out = ModelOutput(
        torch.zeros(14, CLASSES), torch.zeros(14, DIM), fmap_BDhw=fmap, stage_fmaps_BDhw={"stage2": early}
    )
    batch = Batch(torch.zeros(1, 14, 3, 1, 1), labels, index, torch.zeros_like(index))
    dims = FeatureDims(DIM, 4, 14, {"stage2": 3})
    for layers, scales, dim, locations in [
        (("stage2",), (1,), 3, 24),
        (("stage2", "final"), (1,), 8, 6),
        (None, (1, 2), DIM, 7),
        (("final",), (1,), DIM, 6),
    ]:
        made = replace(SPEC, layers=layers, scales=scales).build(STATS, dims, 0)
        for progress in (0.1, 0.15):
            made.observe(out, batch)
            made.merge(progress)
        assert made.prototypes_KD.shape == (4, dim)
        assert made.mass_CK.sum() == 14 * locations
        assert made.scores(out).sum(1).eq(locations).all()


def test_options_survive_a_checkpoint() -> None:
    for spec in (
        replace(SPEC, metric="whitened", score="presence"),
        replace(SPEC, online_rate=0.5, refresh_fraction=0.0, similarity="jaccard"),
    ):
        straight, resumed = memory(spec), memory(spec)
        for made in (straight, resumed):
            observe(made, *window(0))
            made.merge(0.1)
            observe(made, *window(1))
        loaded = memory(spec)
        loaded.load(copies(resumed.published()), [copies(resumed.pending())])
        for made in (straight, loaded):
            observe(made, *window(2))
            made.merge(0.2)
        for name, tensor in straight.published().items():
            assert torch.equal(tensor, loaded.published()[name]), name
