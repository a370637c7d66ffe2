"""From local features to neighbors of classes: scores of images, descriptions of classes, similarities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ltcore.objective.terms.lpa.attributes import chance_deviations, chance_level, class_neighbors, describe_classes
from ltcore.objective.terms.lpa.codebook import affinities, attribute_scores, lengths


def scores(
    vectors: Tensor, prototypes: Tensor, score: str = "hard", temperature: float = 0.1, metric: str = "cosine"
) -> Tensor:
    affinity = affinities(vectors, prototypes, metric)
    return attribute_scores(affinity, lengths(vectors, metric), score=score, score_temperature=temperature)


def test_histogram_counts_locations() -> None:
    vectors = torch.tensor([[[2.0, 0, 0], [1.0, 0.1, 0], [0, 3.0, 1], [0, 0.1, 1.0]]])
    assert scores(vectors, torch.eye(3)).tolist() == [[2, 1, 1]]
    assert scores(1e-3 * vectors, torch.eye(3)).tolist() == [[2, 1, 1]]
    vectors[0, 1] = 0  # points nowhere
    assert scores(vectors, torch.eye(3)).tolist() == [[1, 1, 1]]


def test_euclidean_histogram_counts_by_distance() -> None:
    vectors = 3 * torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(0))
    prototypes = 3 * torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    nearest = torch.cdist(vectors, prototypes).argmin(2)
    expected = [torch.bincount(row, minlength=4).tolist() for row in nearest]
    assert scores(vectors, prototypes, metric="euclid").tolist() == expected


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
def test_soft_score_is_the_mean_softmax_and_tends_to_the_histogram(metric: str) -> None:
    vectors = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(0))
    prototypes = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    points = vectors
    if metric == "cosine":
        points, prototypes = normalize(vectors, dim=2), normalize(prototypes, dim=1)
    soft = scores(vectors, prototypes, "soft", 0.3, metric).double()
    expected = (-torch.cdist(points, prototypes).square() / (2 * 0.3)).softmax(2).mean(1).double()
    torch.testing.assert_close(soft / soft.sum(1, keepdim=True), expected, atol=1e-5, rtol=0)
    sharp = scores(vectors, prototypes, "soft", 1e-6, metric).double()
    hard = scores(vectors, prototypes, "hard", 0.3, metric).double()
    torch.testing.assert_close(sharp / sharp.sum(1, keepdim=True), hard / 6, atol=1e-5, rtol=0)


SHARES = torch.tensor([[6, 3, 1], [5, 2, 3], [1, 2, 7]])


@pytest.mark.parametrize(
    ("centering", "expected"),
    [
        ("raw", [0.932812, 0.381222, 0.662266]),
        ("centered", [0.838628, -0.988522, -0.911293]),
        ("pmi", [0.669145, -0.677174, -0.800736]),
    ],
)
def test_class_similarities(centering: str, expected: list[float]) -> None:
    units = describe_classes(SHARES, torch.ones(3), shrink=0.0, centering=centering)
    cosine = units @ units.T
    found = [cosine[0, 1].item(), cosine[0, 2].item(), cosine[1, 2].item()]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_shrinkage_moves_small_classes_to_the_mean() -> None:
    images = torch.tensor([1000, 10, 1])
    units = describe_classes(SHARES, images, shrink=10.0, centering="raw")
    share = SHARES / 10.0
    expected = (images[:, None] * share + 10.0 * share.mean(0)) / (images[:, None] + 10.0)
    torch.testing.assert_close(units, normalize(expected.double(), dim=1), atol=1e-6, rtol=1e-6)


def test_neighbors_are_above_the_threshold_and_padded_with_the_class() -> None:
    ids, weights = class_neighbors(SHARES, torch.ones(3), neighbors=2, threshold=0.2, shrink=0.0, centering="centered")
    assert ids.tolist() == [[1, 0], [0, 1], [2, 2]]
    scaled = (0.838628 - 0.2) / 0.8
    torch.testing.assert_close(weights.tolist(), [[scaled, 0.0], [scaled, 0.0], [0.0, 0.0]], atol=1e-6, rtol=0)
    ids, weights = class_neighbors(SHARES, torch.ones(3), neighbors=9, threshold=0.9, shrink=0.0, centering="centered")
    assert ids.tolist() == [[0, 0], [1, 1], [2, 2]] and not weights.any()


@pytest.mark.parametrize("centering", ["centered", "pmi"])
def test_equal_descriptions_have_no_neighbors(centering: str) -> None:
    mass = torch.tensor([[1, 1, 3], [2, 2, 6], [7, 7, 21], [0, 0, 0]])
    _, weights = class_neighbors(mass, torch.ones(4), neighbors=2, threshold=-0.5, shrink=10.0, centering=centering)
    assert weights.shape == (4, 2)
    assert not describe_classes(mass, torch.ones(4), shrink=10.0, centering=centering).any()


def test_unseen_class_is_nobodys_neighbor() -> None:
    mass = torch.cat([SHARES, torch.zeros(1, 3, dtype=torch.int64)])
    for centering in ("raw", "centered", "pmi"):
        ids, weights = class_neighbors(
            mass, torch.ones(4), neighbors=3, threshold=-0.999, shrink=10.0, centering=centering
        )
        assert ids[3].tolist() == [3, 3, 3] and not weights[3].any()
        assert not (ids[:3] == 3).any()


def test_neighbors_follow_relabeled_classes_and_ignore_the_order_of_attributes() -> None:
    gen = torch.Generator().manual_seed(0)
    mass, images = torch.randint(0, 50, (12, 7), generator=gen), torch.randint(1, 90, (12,), generator=gen)
    options = {"neighbors": 3, "threshold": 0.0, "shrink": 10.0, "centering": "centered"}
    ids, weights = class_neighbors(mass, images, **options)  # type: ignore[arg-type]
    new_name = torch.randperm(12, generator=gen)
    old_name = new_name.argsort()
    attributes = torch.randperm(7, generator=gen)
    moved_ids, moved_weights = class_neighbors(mass[old_name][:, attributes], images[old_name], **options)  # type: ignore[arg-type]
    assert torch.equal(moved_ids[new_name], new_name[ids])
    torch.testing.assert_close(moved_weights[new_name], weights)
    assert (ids != torch.arange(12)[:, None]).eq(weights > 0).all()


# --- what is left of similarities by chance


def test_chance_level_by_hand() -> None:
    """z of 0, +-0.1, +-0.2: median 0, median deviation 0.1; of five, each stays below with 0.95^(1/5).

    That is 5.3067 deviations of a t distribution with 2.5 degrees of freedom, by a table of an incomplete beta function.
    """
    z = torch.tensor([[-0.2, -0.1, 0.0, 0.1, 0.2, 5.0]], dtype=torch.float64)
    known = torch.tensor([[True] * 5 + [False]])
    expected = torch.tensor([5.3067 * 0.1 / 0.67449]).tanh().item()
    assert chance_level(z.tanh(), known, chance_deviations(6)).item() == pytest.approx(expected, abs=1e-4)
    assert chance_level((z + 0.3).tanh(), known, chance_deviations(6)).item() == pytest.approx(
        torch.tensor([0.3 + 5.3067 * 0.1 / 0.67449]).tanh().item(), abs=1e-4
    )
    alone = torch.zeros(1, 6, dtype=torch.bool)
    assert chance_level(torch.ones(1, 6, dtype=torch.float64), alone, chance_deviations(6)).tolist() == [-1.0]


@pytest.mark.parametrize("classes", [5, 9, 19, 99])
def test_five_in_a_hundred_classes_without_relatives_exceed_the_chance_level(classes: int) -> None:
    z = 0.1 * torch.randn(8000, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(classes))
    level = chance_level(z.tanh(), torch.ones_like(z, dtype=torch.bool), chance_deviations(classes))
    share = (z.tanh().amax(1) > level).double().mean().item()
    assert 0.045 < share < 0.065, share


CLASSES, PARTS, IMAGES, PLACES = 60, 24, 80, 16


def planted(kind: str, seed: int, images: int = IMAGES) -> Tensor:
    """Counts [C, K] of classes whose images mix parts; every part is two prototypes, always seen together.

    'alike': one mixture for all; 'own': each class its own; 'families': three classes each share one, to nine tenths.
    """
    gen = torch.Generator().manual_seed(seed)

    def mixtures(num: int) -> Tensor:
        return torch.rand(num, PARTS, generator=gen).pow(4) + 0.01

    shares = {
        "alike": lambda: mixtures(1).expand(CLASSES, -1),
        "own": lambda: mixtures(CLASSES),
        "families": lambda: 0.9 * mixtures(CLASSES // 3).repeat_interleave(3, 0) + 0.1 * mixtures(CLASSES),
    }[kind]()
    image_shares = shares.repeat_interleave(images, 0) * torch.rand(CLASSES * images, PARTS, generator=gen).pow(2)
    counts = torch.multinomial(image_shares, PLACES, replacement=True, generator=gen)
    parts = torch.zeros(CLASSES, PARTS, dtype=torch.int64)
    parts.view(-1).index_add_(
        0,
        (torch.arange(CLASSES).repeat_interleave(images * PLACES) * PARTS + counts.flatten()),
        torch.ones(counts.numel(), dtype=torch.int64),
    )
    return parts.repeat_interleave(2, 1)


def found(mass: Tensor, threshold: float | None = None, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    counts = torch.full((CLASSES,), images)
    return class_neighbors(mass, counts, neighbors=5, threshold=threshold, shrink=10.0, centering="centered")


def pull(kind: str, images: int, threshold: float | None = None) -> tuple[float, float]:
    """Over ten drawings: the share of classes with a neighbor, and the mean weight of the closest, 0 without any."""
    weights = torch.cat([found(planted(kind, seed, images), threshold, images)[1] for seed in range(10)])
    return float((weights[:, 0] > 0).float().mean()), float(weights[:, 0].mean())


@pytest.mark.parametrize("images", [5, IMAGES])
def test_classes_of_the_same_parts_have_no_neighbors_by_noise(images: int) -> None:
    """About as many have one as ``CHANCE`` says, and it pulls a hundredth; above 0, noise would pull two thirds."""
    with_any, mean = pull("alike", images)
    assert with_any < 0.08 and mean < 0.015
    assert pull("alike", images, 0.0)[1] > 0.6


@pytest.mark.parametrize("images", [5, IMAGES])
def test_independent_classes_pull_little(images: int) -> None:
    """Some do show the same main part by accident."""
    assert pull("own", images)[1] < 0.2 * pull("own", images, 0.0)[1]


@pytest.mark.parametrize("images", [5, IMAGES])
def test_classes_that_share_parts_find_each_other(images: int) -> None:
    family = torch.arange(CLASSES) // 3
    ids, weights = found(planted("families", 0, images), images=images)
    own_family = family[ids] == family[:, None]
    assert (weights * own_family).sum() / weights.sum() > 0.85  # a family is 3% of the others
    assert weights[:, 0].mean() > (0.85 if images == IMAGES else 0.35)
    assert ((weights > 0) & own_family).sum(1).double().mean() > (1.95 if images == IMAGES else 1.4)  # both sisters


def test_shrinkage_has_no_effect_on_differences_to_the_mean() -> None:
    mass, images = planted("own", 0), torch.arange(1, CLASSES + 1)
    results = [
        class_neighbors(mass, images, neighbors=5, threshold=None, shrink=shrink, centering="centered")
        for shrink in (0.0, 50.0)
    ]
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
