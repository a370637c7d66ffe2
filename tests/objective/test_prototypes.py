"""LPA's memory: keyed reservoir, clustering schedule, class descriptions and their neighbors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.objective.attributes import class_neighbors, describe_classes
from ltcore.objective.codebook import affinities, attribute_scores, lengths
from ltcore.objective.memory import reservoir as reservoir_module
from ltcore.objective.memory.prototypes import Prototypes, PrototypesSpec
from ltcore.objective.memory.reservoir import KeyedReservoir, join
from ltcore.stats import ClassStats
from tests.ddp import run_ranks

SPEC = PrototypesSpec(
    layers=None,
    scales=(1,),
    num_attributes=4,
    neighbors=2,
    threshold=0.0,
    shrink=1.0,
    centering="centered",
    similarity="cosine",
    score="hard",
    score_temperature=0.1,
    metric="cosine",
    reservoir="class",
    reservoir_per_class=6,
    locations_per_image=2,
    start=0.1,
    refresh_fraction=0.2,
    freeze_fraction=0.6,
    online_rate=0.0,
    iterations=10,
)
CLASSES, DIM = 3, 5
STATS = ClassStats(torch.tensor([8, 4, 2]), ("many", "medium", "few"))


def memory(spec: PrototypesSpec = SPEC, seed: int = 0) -> Prototypes:
    return Prototypes(spec, STATS, DIM, seed)


def observe(into: Prototypes, fmap_BDhw: Tensor, labels_B: Tensor, index_B: Tensor) -> None:
    num = len(labels_B)
    out = ModelOutput(torch.zeros(num, CLASSES), torch.zeros(num, DIM), fmap_BDhw=fmap_BDhw)
    into.observe(out, Batch(torch.zeros(1, num, 3, 1, 1), labels_B, index_B, torch.zeros_like(index_B)))


def window(seed: int, num: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [num, D, 2, 3], labels (every class) and indices."""
    gen = torch.Generator().manual_seed(seed)
    return torch.rand(num, DIM, 2, 3, generator=gen), torch.arange(num) % CLASSES, torch.arange(num)


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


# --- reservoir


def rows(num: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    keys = torch.randperm(num, generator=gen) + 1
    groups = torch.randint(0, 3, (num,), generator=gen)
    return keys, groups, groups, torch.randn(num, 2, generator=gen)


@pytest.mark.parametrize("loose_rows", [1, 7, 1000])
def test_reservoir_keeps_the_largest_keys_per_group(loose_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservoir_module, "LOOSE_ROWS", loose_rows)
    keys, groups, labels, vectors = rows(40)
    keys[::9] = 0  # never to be kept
    kept = KeyedReservoir(groups=4, slots=5, dim=2)
    for part in torch.arange(40).split(6):
        kept.add(keys[part], groups[part], labels[part], vectors[part])
    state = kept.state()
    expected = []
    for group in range(4):
        mine = sorted((int(k), r) for r, k in enumerate(keys) if groups[r] == group and k > 0)[::-1][:5]
        assert state["reservoir_keys"][group].tolist() == [k for k, _ in mine] + [0] * (5 - len(mine))
        for slot, (_, row) in enumerate(mine):
            assert torch.equal(state["reservoir_vectors"][group, slot], vectors[row])
        assert not state["reservoir_vectors"][group, len(mine) :].any()
        expected += mine
    gathered, gathered_labels = kept.gather()
    order = [row for _, row in sorted(expected)[::-1]]
    assert torch.equal(gathered, vectors[order]) and torch.equal(gathered_labels, labels[order])


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("loose_rows", [1, 9, 1000])
def test_reservoir_in_place_equals_sorting_everything(
    groups: int, loose_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit and with equal keys, which stay in the order of their coming, whenever the state is looked at."""
    monkeypatch.setattr(reservoir_module, "LOOSE_ROWS", loose_rows)
    monkeypatch.setattr(reservoir_module, "ORDER_ROWS", 10)
    gen = torch.Generator().manual_seed(groups)
    kept = KeyedReservoir(groups, slots=6, dim=3)
    seen: list[tuple[int, int, int, Tensor]] = []
    for turn in range(30):
        keys = torch.randint(0, 60, (7,), generator=gen)  # 0 is never to be kept
        in_group = torch.randint(0, groups, (7,), generator=gen)
        labels, vectors = torch.randint(0, 9, (7,), generator=gen), torch.randn(7, 3, generator=gen)
        kept.add(keys, in_group, labels, vectors)
        seen += list(zip(keys.tolist(), in_group.tolist(), labels.tolist(), vectors, strict=True))
        if turn % 4 == 3:
            state = copies(kept.state())
            for group in range(groups):
                best = sorted((row for row in seen if row[1] == group and row[0]), key=lambda row: -row[0])[:6]
                assert state["reservoir_keys"][group].tolist() == [k for k, *_ in best] + [0] * (6 - len(best))
                assert state["reservoir_labels"][group].tolist() == [row[2] for row in best] + [0] * (6 - len(best))
                for slot, row in enumerate(best):
                    assert torch.equal(state["reservoir_vectors"][group, slot], row[3])
                assert not state["reservoir_vectors"][group, len(best) :].any()
        if turn % 10 == 9:
            kept.clear()
            seen.clear()
            assert not any(tensor.any() for tensor in kept.state().values())


def test_reservoir_writes_the_vectors_that_enter_and_no_others() -> None:
    kept = KeyedReservoir(groups=50, slots=20, dim=4)
    gen = torch.Generator().manual_seed(0)
    groups = torch.arange(50).repeat_interleave(20)
    kept.add(torch.randint(10, 10**6, (1000,), generator=gen), groups, groups, torch.randn(1000, 4, generator=gen))
    state = kept.state()
    address, before = state["reservoir_vectors"].data_ptr(), kept._vectors_MD.clone()
    kept.add(torch.tensor([2 * 10**6, 1, 0]), torch.tensor([7, 8, 9]), torch.tensor([7, 8, 9]), torch.zeros(3, 4))
    kept._take_in()
    changed = (kept._vectors_MD != before).any(1).nonzero().flatten().tolist()
    assert changed == [7 * 20 + 19], "where the smallest key of group 7 had been; 1 is too small and 0 is no key"
    assert kept.state()["reservoir_vectors"].data_ptr() == address
    assert not kept.state()["reservoir_vectors"][7, 0].any() and kept.state()["reservoir_keys"][7, 0] == 2 * 10**6


def test_joined_reservoirs_are_the_reservoir_of_all() -> None:
    whole, parts = KeyedReservoir(3, 4, 2), [KeyedReservoir(3, 4, 2) for _ in range(3)]
    columns = rows(30)
    whole.add(*columns)
    for i, part in enumerate(parts):
        part.add(*(column[i::3] for column in columns))
    assert_same(join([part.state() for part in parts]), whole.state())


# --- scores, descriptions, neighbors


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


# --- the memory


def test_first_merge_at_or_after_start_publishes_at_once() -> None:
    made = memory()
    for progress, clusters in [(0.05, 0), (0.099, 0), (0.1, 4)]:
        observe(made, *window(0))
        made.merge(progress)
        assert made.num_clusters == clusters
        assert not any(tensor.any() for tensor in made.pending().values())
    torch.testing.assert_close(made.prototypes_KD.norm(dim=1), torch.ones(4))
    # at once: two locations of each image, at most six per class
    assert made.mass_CK.sum(1).tolist() == [6, 6, 6]


def test_refresh_schedule_and_freeze() -> None:
    made, changed = memory(), []
    for step in range(1, 21):
        before = made.prototypes_KD.clone()
        observe(made, *window(step))
        made.merge(step / 20)
        if not torch.equal(before, made.prototypes_KD):
            changed.append(step / 20)
    assert changed == [0.1, 0.3, 0.5]
    assert made.next_refresh == math.inf


def test_coarse_merges_still_cluster_once_and_once_is_possible() -> None:
    late = memory()
    observe(late, *window(0))
    late.merge(1.0)
    assert late.num_clusters == 4
    once, seen = memory(replace(SPEC, refresh_fraction=0.0)), set()
    for step in range(1, 11):
        observe(once, *window(step))
        once.merge(step / 10)
        seen.add(tuple(once.prototypes_KD.flatten().tolist()))
    assert len(seen) == 1


def test_full_counts_replace_the_sample_and_unseen_classes_keep_theirs() -> None:
    made = memory()
    observe(made, *window(0))
    made.merge(0.1)
    after_refresh = made.mass_CK.clone()
    fmap, labels, index = window(1)
    seen = labels != 2
    observe(made, fmap[seen], labels[seen], index[seen])
    made.merge(0.15)
    assert torch.equal(made.mass_CK[2], after_refresh[2])
    expected = torch.zeros_like(after_refresh)
    for image, label in zip(fmap[seen], labels[seen], strict=True):
        for p in range(6):
            vector = image.flatten(1)[:, p]
            expected[label, int((made.prototypes_KD @ vector).argmax())] += 1
    assert torch.equal(made.mass_CK[:2], expected[:2])


def test_permuting_vectors_across_images_changes_the_attributes_and_within_an_image_does_not() -> None:
    def described(fmap: Tensor) -> dict[str, Tensor]:
        made = memory()
        observe(made, *window(0))
        made.merge(0.1)
        _, labels, index = window(1)
        observe(made, fmap, labels, index)
        made.merge(0.15)
        return copies(made.published())

    gen = torch.Generator().manual_seed(3)
    num, pixels = 14, 6
    kinds = torch.eye(DIM)[torch.arange(num) % CLASSES]  # each class made of its own direction
    vectors = kinds[:, None] + 0.2 * torch.rand(num, pixels, DIM, generator=gen)

    def as_map(vectors_BPD: Tensor) -> Tensor:
        return vectors_BPD.transpose(1, 2).reshape(num, DIM, 2, 3)

    plain = described(as_map(vectors))
    inside = torch.stack([image[torch.randperm(pixels, generator=gen)] for image in vectors])
    assert_same(described(as_map(inside)), plain)
    across = vectors.flatten(0, 1)[torch.randperm(num * pixels, generator=gen)].reshape(vectors.shape)
    pooled_only = vectors.mean(1, keepdim=True).expand_as(vectors)  # the global feature is all that is left
    for other in (across, pooled_only):
        assert not torch.equal(described(as_map(other))["mass"], plain["mass"])


def test_clusters_vectors_of_the_map_not_pooled_features() -> None:
    """Two kinds of parts in every image: prototypes are the parts, of which no image's mean is one."""
    made = memory(replace(SPEC, num_attributes=2))
    fmap = torch.zeros(6, DIM, 1, 2)
    fmap[:, 0, 0, 0] = fmap[:, 1, 0, 1] = 3.0
    observe(made, fmap, torch.arange(6) % CLASSES, torch.arange(6))
    made.merge(0.1)
    assert sorted(made.prototypes_KD.argmax(1).tolist()) == [0, 1]
    torch.testing.assert_close(made.prototypes_KD.amax(1), torch.ones(2))


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, score="soft"), replace(SPEC, reservoir="instance")])
def test_order_and_batch_size_do_not_matter(spec: PrototypesSpec) -> None:
    fmap, labels, index = window(0)
    results = []
    for order, size in [(torch.arange(14), 14), (torch.arange(14).flip(0), 4), (torch.randperm(14), 1)]:
        made = memory(spec)
        for progress in (0.1, 0.15):
            for rows_n in order.split(size):
                observe(made, fmap[rows_n], labels[rows_n], index[rows_n])
            made.merge(progress)
        results.append(made.published())
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_scale_of_the_features_does_not_matter_for_directions() -> None:
    plain, scaled = memory(), memory()
    for progress in (0.1, 0.15):
        for made, factor in ((plain, 1.0), (scaled, 16.0)):
            fmap, labels, index = window(int(progress * 100))
            observe(made, factor * fmap, labels, index)
            made.merge(progress)
    assert torch.equal(plain.mass_CK, scaled.mass_CK)
    torch.testing.assert_close(plain.prototypes_KD, scaled.prototypes_KD)
    torch.testing.assert_close(plain.weights_Ck, scaled.weights_Ck)


def test_euclidean_prototypes_are_means() -> None:
    made = memory(replace(SPEC, metric="euclid", num_attributes=1, reservoir_per_class=99, locations_per_image=6))
    fmap, labels, index = window(0)
    observe(made, fmap, labels, index)
    made.merge(0.1)
    torch.testing.assert_close(made.prototypes_KD[0], fmap.mean((0, 2, 3)))


def test_few_vectors_make_few_clusters_and_vectors_without_direction_none() -> None:
    made = memory(replace(SPEC, num_attributes=100))
    observe(made, torch.zeros(3, DIM, 2, 2), torch.arange(3), torch.arange(3))
    made.merge(0.1)
    assert made.num_clusters == 0 and not made.weights_Ck.any()
    observe(made, *window(0, num=3))
    made.merge(0.15)
    assert made.num_clusters == 6  # two locations of each of three images
    assert not made.prototypes_KD[6:].any() and not made.mass_CK[:, 6:].any()


def test_instance_reservoir_takes_what_comes() -> None:
    fmap, labels, index = window(0)
    labels = torch.zeros_like(labels)  # one class only
    for kind, expected in (("class", 6), ("instance", 18)):
        made = memory(replace(SPEC, reservoir=kind))
        observe(made, fmap, labels, index)
        made.merge(0.1)
        assert made.mass_CK.sum().item() == expected


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_resume_continues_as_if_uninterrupted(steps_before: int) -> None:
    def run(made: Prototypes, first: int, last: int) -> None:
        for step in range(first, last):
            observe(made, *window(step))
            if step % 2:
                made.merge(0.1 + step / 40)

    through, until, after = memory(), memory(), memory()
    run(through, 0, 8)
    run(until, 0, steps_before)
    after.load(copies(until.published()), [copies(until.pending())])
    assert (after.num_clusters, after.next_refresh) == (until.num_clusters, until.next_refresh)
    run(after, steps_before, 8)
    assert_same(after.published(), through.published())
    assert_same(after.pending(), through.pending())


def test_resume_with_fewer_ranks_joins_what_each_had_seen() -> None:
    whole, parts, fresh = memory(), [memory(), memory()], memory()
    for made in (whole, *parts):
        observe(made, *window(0))
        made.merge(0.1)
    fmap, labels, index = window(1)
    observe(whole, fmap, labels, index)
    for i, part in enumerate(parts):
        observe(part, fmap[i::2], labels[i::2], index[i::2])
    fresh.load(copies(parts[0].published()), [copies(part.pending()) for part in parts])
    assert_same(fresh.pending(), whole.pending())


def _rank_windows() -> dict[str, dict[str, Tensor]]:
    published = {}
    for score in ("hard", "soft"):
        made = memory(replace(SPEC, score=score))
        for step, progress in enumerate((0.05, 0.1, 0.2, 0.3)):
            fmap, labels, index = window(step)
            for rows_n in torch.arange(14).split(4):
                mine = rows_n[dist.rank() :: dist.world()]
                observe(made, fmap[mine], labels[mine], index[mine])
            made.merge(progress)
        published[score] = made.published()
    return published


def test_two_ranks_publish_what_one_does() -> None:
    alone, ranks = _rank_windows(), run_ranks(_rank_windows, 2)
    for score in ("hard", "soft"):
        assert_same(ranks[0][score], ranks[1][score])
        for name, tensor in alone[score].items():
            torch.testing.assert_close(ranks[0][score][name], tensor, msg=f"{score} {name}")
