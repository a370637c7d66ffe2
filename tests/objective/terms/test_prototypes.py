"""LPA's memory: keyed reservoir, clustering schedule, class descriptions and their neighbors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import ModelOutput
from ltcore.objective.terms.lpa.prototypes import Prototypes, PrototypesSpec
from tests.ddp import run_ranks
from tests.objective.terms.prototypes_case import CLASSES, DIM, SPEC, STATS, memory, observe, window
from tests.objective.toy import assert_same, copies, make_dims


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


def test_images_behind_a_description_are_those_counted() -> None:
    """Of a sample, as large a part of the images as of their vectors; of a window, those shown; never more than exist."""
    made = memory()  # two locations of each image, at most six per class; the classes have 8, 4 and 2 images
    fmap, _, index = window(0)
    labels = torch.tensor([0] * 8 + [1] * 4 + [2] * 2)
    observe(made, fmap, labels, index)
    made.merge(0.1)
    assert made.images_C.tolist() == [8 * 6 / 16, 4 * 6 / 8, 2 * 4 / 4]
    observe(made, fmap[:7], labels[:7], index[:7])
    observe(made, fmap[8:11].repeat(2, 1, 1, 1), labels[8:11].repeat(2), index[8:11].repeat(2))
    made.merge(0.15)
    assert made.images_C.tolist() == [7, 4, 2]


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


def test_another_seed_samples_other_vectors_and_the_same_seed_the_same() -> None:
    def kept(seed: int) -> set[tuple[float, ...]]:
        made = SPEC.build(STATS, make_dims(DIM, STATS), seed)
        observe(made, *window(0))
        return {tuple(row) for row in made.pending()["reservoir_vectors"].flatten(0, 1).tolist()}

    assert kept(0) == kept(0)
    assert kept(0) != kept(1)


def test_another_seed_clusters_the_same_sample_otherwise_and_the_same_seed_alike() -> None:
    seen = memory()
    observe(seen, *window(0))
    empty, sample = copies(seen.published()), copies(seen.pending())

    def clustered(seed: int) -> Tensor:
        made = SPEC.build(STATS, make_dims(DIM, STATS), seed)
        made.load(copies(empty), [copies(sample)])
        made.merge(0.1)
        assert made.num_clusters == 4
        return made.prototypes_KD

    assert torch.equal(clustered(0), clustered(0))
    assert not torch.equal(clustered(0), clustered(1))


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
    exclusive, ranks = _rank_windows(), run_ranks(_rank_windows, 2)
    for score in ("hard", "soft"):
        assert_same(ranks[0][score], ranks[1][score])
        for name, tensor in exclusive[score].items():
            torch.testing.assert_close(ranks[0][score][name], tensor, msg=f"{score} {name}")


@pytest.mark.parametrize("metric", ["cosine", "euclid", "whitened"])
def test_activations_rank_prototypes_as_scores_do(metric: str) -> None:
    of = memory(replace(SPEC, metric=metric))
    fmap_BDhw, labels_B, index_B = window(0)
    observe(of, fmap_BDhw, labels_B, index_B)
    of.merge(0.5)
    out = ModelOutput(torch.zeros(14, CLASSES), torch.zeros(14, DIM), fmap_BDhw=fmap_BDhw)
    scores_BK, activation_BPK = of.located(out)
    assert torch.equal(scores_BK, of.scores(out))
    nearest_BPK = torch.nn.functional.one_hot(activation_BPK.argmax(2), of.num_clusters)
    assert torch.equal(nearest_BPK.sum(1), scores_BK)
    vectors_BPD = fmap_BDhw.flatten(2).transpose(1, 2)
    if metric == "cosine":
        expected = torch.nn.functional.cosine_similarity(vectors_BPD[:, :, None], of.prototypes_KD, dim=3)
    elif metric == "euclid":
        expected = -(vectors_BPD[:, :, None] - of.prototypes_KD).square().sum(3)
    else:
        return
    assert torch.allclose(activation_BPK, expected, atol=1e-5)
