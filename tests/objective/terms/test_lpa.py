"""The LPA term: weights of positives, closed-form values, invariants, ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.objective.contrast import ContrastSet, mean_over_valid, supcon
from ltcore.objective.losses.paco import Paco
from ltcore.objective.memory.queue import Queue
from ltcore.objective.terms.lpa.prototypes import Prototypes
from ltcore.objective.terms.lpa.term import Lpa, Positives, of_neighbors
from ltcore.stats import ClassStats
from tests.ddp import run_ranks
from tests.objective.terms.lpa_case import DIMS, STATS, case, context, loader, made, plain_supcon

F64 = torch.float64


def contrast_of(labels_B: Tensor, labels_A: Tensor, excluded_BA: Tensor) -> ContrastSet:
    return ContrastSet(labels_A, torch.zeros(excluded_BA.shape, dtype=F64), excluded_BA)


# --- weights


def test_closed_form_values() -> None:
    units = torch.tensor([[1, 0], [0.8, 0.6], [0, 1]], dtype=F64)
    weights = torch.tensor([[0, 0.838628, 0], [0.838628, 0, 0], [0, 0, 0]], dtype=F64)
    loss_B, valid_B = supcon(units @ units.T, weights, torch.eye(3, dtype=torch.bool), 0.5)
    assert valid_B.tolist() == [True, True, False]
    torch.testing.assert_close(loss_B[:2].tolist(), [0.183901, 0.513015], atol=1e-6, rtol=0)
    assert mean_over_valid(loss_B, valid_B).item() == pytest.approx((0.183901 + 0.513015) / 2, abs=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_positive_weights_match_a_naive_loop(rho: float) -> None:
    neighbors = torch.tensor([[1, 2], [0, 1], [2, 2], [0, 3]])
    similarity = torch.tensor([[0.8, 0.2], [0.8, 0.0], [0.0, 0.0], [0.5, 0.0]], dtype=F64)
    labels_B, labels_A = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 1, 2, 3, 0, 1, 2, -1, 0, 2])
    excluded = torch.zeros(5, 10, dtype=torch.bool)
    excluded[torch.arange(5), torch.arange(5)] = True
    excluded[:, 7] = True  # unfilled
    excluded[4, 1] = True
    by_class = torch.zeros(4, 4, dtype=F64).scatter_(1, neighbors, similarity)
    near = of_neighbors(labels_A, by_class[labels_B])
    found = Positives.of(contrast_of(labels_B, labels_A, excluded), labels_B, near).weights(rho)
    for i, y in enumerate(labels_B.tolist()):
        kept = [j for j in range(10) if not excluded[i, j]]
        table = {int(c): float(w) for c, w in zip(neighbors[y], similarity[y], strict=True) if c != y}
        same = [j for j in kept if labels_A[j] == y]
        near = {j: table[int(labels_A[j])] for j in kept if table.get(int(labels_A[j]), 0) > 0}
        mass = rho * max(near.values(), default=0.0)
        row = [0.0] * 10
        for j in same:
            row[j] += (1 - mass) / len(same)
        for j, weight in near.items():
            row[j] += mass * weight / sum(near.values())
        torch.testing.assert_close(found[i].tolist(), row)
        assert sum(row) == pytest.approx(1.0 if same else mass)
    # class 3 has only a neighbor left, half as similar as could be, class 2 only itself
    assert found[3].sum() == 0.5 * rho and found[2, [6, 9]].tolist() == [0.5, 0.5]


def test_an_anchor_without_its_class_is_pulled_by_its_neighbors_as_far_as_they_resemble_it() -> None:
    """One view, no queue, one image a class: nothing of the own class. The pull is the neighbors' mass, here closed form."""
    term, memories = made(views=1, queue_size=0, neighbor_mass=0.5)
    out, batch = case(0)
    loader(memories, out, batch, progress=0.1)
    prototypes = memories["prototypes"]
    assert isinstance(prototypes, Prototypes) and out.query_Bd is not None
    four = Batch(batch.images_VBCHW[:, :4], batch.labels_B[:4], batch.index_B[:4], batch.copy_B[:4])
    query = out.query_Bd[:4].detach()
    losses, kept = [], []
    for i in range(4):
        others = [j for j in range(4) if j != i]
        log_prob = dict(zip(others, (query[others] @ query[i] / term.cfg.temperature).log_softmax(0), strict=True))
        near = {int(c): float(w) for c, w in zip(prototypes.neighbors_Ck[i], prototypes.weights_Ck[i], strict=True)}
        near = {c: w for c, w in near.items() if w > 0}
        kept += [i] if near else []
        pull = sum(w * -float(log_prob[c]) for c, w in near.items()) / max(sum(near.values()), 1e-9)
        losses += [0.5 * max(near.values(), default=0.0) * pull]
    assert kept
    loss = term(ModelOutput(out.logits_BC[:4], out.features_BD[:4], query_Bd=query), four, context(memories))
    assert loss.item() == pytest.approx(sum(losses) / len(kept), rel=1e-5)


# --- the term


def test_contributes_nothing_before_the_first_clustering() -> None:
    term, memories = made()
    out, batch = case(0)
    loader(memories, out, batch)
    loss = term(out, batch, context(memories))
    loss.backward()
    assert loss.item() == 0 and out.query_Bd is not None and out.query_Bd.grad is not None
    assert not out.query_Bd.grad.any()
    loader(memories, out, batch, progress=0.1)
    assert term(out, batch, context(memories)) > 0


def test_pulls_neighbor_classes() -> None:
    """Weights of the term equal the loss of a hand-made weight matrix, and differ from plain contrast."""
    term, memories = made(neighbor_mass=0.4, temperature=0.2)
    out, batch = case(0)
    loader(memories, out, batch, progress=0.1)
    prototypes, queue = memories["prototypes"], memories["queue"]
    assert isinstance(prototypes, Prototypes) and isinstance(queue, Queue)
    assert (prototypes.weights_Ck > 0).any()
    contrast = ContrastSet.of(out, batch.labels_B, context(memories), queue)
    by_class = torch.zeros(4, 4).scatter_(1, prototypes.neighbors_Ck, prototypes.weights_Ck)
    near_BA = of_neighbors(contrast.labels_A, by_class[batch.labels_B])
    weights = Positives.of(contrast, batch.labels_B, near_BA).weights(0.4)
    expected = mean_over_valid(*supcon(contrast.cosine_BA, weights, contrast.excluded_BA, 0.2))
    loss = term(out, batch, context(memories))
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, plain_supcon(out, batch, memories, 0.2))


def test_logs_the_cosines_of_its_positives() -> None:
    """Means over the anchors that have such a positive; of neighbor classes, by their similarities."""
    term, memories = made(neighbor_mass=0.4)
    out, batch = case(0)
    loader(memories, out, batch, progress=0.1)
    prototypes, queue = memories["prototypes"], memories["queue"]
    assert isinstance(prototypes, Prototypes) and isinstance(queue, Queue)
    ctx = context(memories)
    term(out, batch, ctx)
    contrast = ContrastSet.of(out, batch.labels_B, ctx, queue)
    cosine_BA = contrast.cosine_BA.detach()
    similar = torch.zeros(4, 4).scatter_(1, prototypes.neighbors_Ck, prototypes.weights_Ck)
    same, near = [], []
    for i, y in enumerate(batch.labels_B.tolist()):
        kept = [(j, int(c)) for j, c in enumerate(contrast.labels_A) if not contrast.excluded_BA[i, j]]
        mine = [float(cosine_BA[i, j]) for j, c in kept if c == y]
        others = {j: float(similar[y, c]) for j, c in kept if c != y and similar[y, c] > 0}
        same += [sum(mine) / len(mine)] if mine else []
        if others:
            near.append(sum(w * float(cosine_BA[i, j]) for j, w in others.items()) / sum(others.values()))
    assert near and same
    found = [float(ctx.logged[f"{kind}_cosine"]) for kind in ("class", "neighbor")]
    assert found == pytest.approx([sum(same) / len(same), sum(near) / len(near)], abs=1e-6)
    closest = similar[batch.labels_B].amax(1)  # every class is among the keys
    assert float(ctx.logged["neighbor_mass"]) == pytest.approx(float(0.4 * closest.mean()), abs=1e-6)
    assert float(ctx.logged["neighbors"]) == pytest.approx(float((similar[batch.labels_B] > 0).sum(1).float().mean()))


def test_is_plain_contrast_without_neighbor_mass_or_when_classes_are_alike() -> None:
    out, batch = case(0)
    assert out.fmap_BDhw is not None
    term, memories = made(neighbor_mass=0.0, temperature=0.2)
    loader(memories, out, batch, progress=0.1)
    torch.testing.assert_close(term(out, batch, context(memories)), plain_supcon(out, batch, memories, 0.2))
    term, memories = made(neighbor_mass=0.3, temperature=0.2)
    alike = ModelOutput(out.logits_BC, out.features_BD, torch.ones_like(out.fmap_BDhw), out.query_Bd, out.key_Bd)
    loader(memories, alike, batch, progress=0.1)
    assert isinstance(memories["prototypes"], Prototypes) and memories["prototypes"].num_clusters
    torch.testing.assert_close(term(out, batch, context(memories)), plain_supcon(out, batch, memories, 0.2))


def test_local_features_decide_and_not_their_mean() -> None:
    """Exchanging vectors between images changes the loss of the same queries; reordering them inside images does not."""
    out, batch = case(0)
    assert out.fmap_BDhw is not None
    losses = []
    gen = torch.Generator().manual_seed(1)
    flat = out.fmap_BDhw.flatten(2)
    inside = torch.stack([image[:, torch.randperm(4, generator=gen)] for image in flat])
    mixed = flat.transpose(0, 1).flatten(1)[:, torch.randperm(64, generator=gen)].reshape(5, 16, 4).transpose(0, 1)
    for fmap in (flat, inside, mixed):
        term, memories = made(neighbors=3, threshold=-0.99, temperature=0.2)
        loader(memories, out, batch, progress=0.1)
        other = ModelOutput(out.logits_BC, out.features_BD, fmap.reshape(out.fmap_BDhw.shape), out.query_Bd, out.key_Bd)
        loader(memories, other, batch, progress=0.12)
        losses.append(term(out, batch, context(memories)).item())
    assert losses[1] == losses[0] != losses[2]


def test_order_of_the_batch_does_not_matter_and_gradient_reaches_queries_only() -> None:
    term, memories = made(temperature=0.2)
    out, batch = case(0)
    assert out.query_Bd is not None and out.key_Bd is not None and out.fmap_BDhw is not None
    loader(memories, out, batch, progress=0.1)
    out.fmap_BDhw.requires_grad_()
    loss = term(out, batch, context(memories))
    loss.backward()
    assert out.query_Bd.grad is not None and out.query_Bd.grad.abs().sum() > 0 and out.fmap_BDhw.grad is None
    assert not any(tensor.requires_grad for memory in memories.values() for tensor in memory.published().values())
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = ModelOutput(out.logits_BC, out.features_BD, None, out.query_Bd[order], out.key_Bd[order])
    moved = Batch(batch.images_VBCHW, batch.labels_B[order], batch.index_B[order], batch.copy_B[order])
    torch.testing.assert_close(term(shuffled, moved, context(memories)), loss)


def test_relabeling_classes_changes_nothing() -> None:
    out, batch = case(0)
    new_name = torch.tensor([2, 0, 3, 1])
    old_name = new_name.argsort()
    counts, groups = STATS.counts_C[old_name], tuple(STATS.shot_groups[int(c)] for c in old_name)
    losses = []
    for stats, labels in ((STATS, batch.labels_B), (ClassStats(counts, groups), new_name[batch.labels_B])):
        options = {"num_attributes": 6, "neighbors": 2, "start": 0.0, "queue_size": 7, "embedding": "query"}
        term = Lpa(Lpa.Config(**options), stats, DIMS)
        memories = {name: spec.build(stats, DIMS, 0) for name, spec in term.memories().items()}
        named = Batch(batch.images_VBCHW, labels, batch.index_B, batch.copy_B)
        loader(memories, out, named, progress=0.1)
        losses.append(term(out, named, context(memories)))
    torch.testing.assert_close(losses[1], losses[0])


@pytest.mark.parametrize(
    "options",
    [
        {"score": "soft"},
        {"score": "presence"},
        {"centering": "pmi"},
        {"centering": "raw"},
        {"metric": "euclid"},
        {"metric": "whitened"},
        {"similarity": "jaccard"},
        {"scales": (1, 2)},
    ],
)
def test_every_option_changes_the_loss(options: dict[str, str]) -> None:
    out, batch = case(0)
    losses = []
    for chosen in ({}, options):
        term, memories = made(neighbors=3, threshold=-0.99, **chosen)  # several neighbors, so similarities matter
        for progress in (0.1, 0.12):  # a clustering, then a window of counts
            loader(memories, out, batch, progress)
        losses.append(term(out, batch, context(memories)).item())
    assert losses[0] != losses[1]


def test_shares_queue_and_similarities_with_paco() -> None:
    term, memories = made()
    paco = Paco(Paco.Config(queue_size=7), STATS, DIMS)
    assert paco.memories()["queue"].key == term.memories()["queue"].key
    out, batch = case(0)
    loader(memories, out, batch, progress=0.1)
    ctx = context(memories)
    paco(out, batch.labels_B, ctx)
    term(out, batch, ctx)
    assert sum(isinstance(value, ContrastSet) for value in ctx.shared.results.values()) == 1


def _train(steps: int, under_paco: bool) -> dict[str, Tensor]:
    """SGD on a linear encoder in float64: last loss, parameters after ``steps`` steps, everything published.

    ``under_paco``: with neighbors by image, which PaCo spares.
    """
    torch.set_default_dtype(F64)
    gen = torch.Generator().manual_seed(7)
    encoder = torch.randn(5, 4, generator=gen, requires_grad=True)
    options: dict[str, Any] = {}
    if under_paco:
        options = {"positives": "sample", "spare_neighbors": True, "online_rate": 0.5, "score": "presence"}
    term, memories = made(temperature=0.2, reservoir_per_class=5, refresh_fraction=0.3, **options)
    paco = Paco(Paco.Config(queue_size=7, temperature=0.2), STATS, DIMS)
    loss = torch.zeros(())
    for step in range(steps):
        out, batch = case(step, dtype=F64)
        mine = slice(dist.rank() * 16 // dist.world(), (dist.rank() + 1) * 16 // dist.world())
        assert out.fmap_BDhw is not None
        fmap, labels, index = out.fmap_BDhw[mine], batch.labels_B[mine], batch.index_B[mine]
        query = normalize(fmap.mean((2, 3)) @ encoder, dim=1)
        key = normalize(fmap.amax((2, 3)) @ encoder, dim=1).detach()
        local = ModelOutput(torch.zeros(len(labels), 4), torch.zeros(len(labels), 5), fmap, query, key)
        local_batch = Batch(batch.images_VBCHW, labels, index, torch.zeros_like(index))
        ctx = context(memories)
        term.before_base(local, local_batch, ctx)
        loss = term(local, local_batch, ctx) + (paco(local, labels, ctx).mean() if under_paco else 0)
        (grad,) = torch.autograd.grad(loss, [encoder])
        with torch.no_grad():
            encoder -= 0.1 * dist.all_reduce_sum_(grad) / dist.world()
            loader(memories, local, local_batch, (step + 1) / steps if step % 2 else None)
    average = dist.all_reduce_sum_(loss.detach().clone()) / dist.world()
    published = {f"{n}/{k}": t for n, memory in memories.items() for k, t in memory.published().items()}
    torch.set_default_dtype(torch.float32)
    return {"loss": average, "encoder": encoder.detach(), **published}


def _alone_and_under_paco(steps: int) -> list[dict[str, Tensor]]:
    return [_train(steps, under_paco) for under_paco in (False, True)]


@pytest.fixture(scope="module")
def two_ranks() -> list[list[dict[str, Tensor]]]:
    return run_ranks(_alone_and_under_paco, 2, 10)


@pytest.mark.parametrize("under_paco", [False, True])
def test_two_ranks_equal_one(under_paco: bool, two_ranks: list[list[dict[str, Tensor]]]) -> None:
    alone = _train(10, under_paco)
    assert alone["loss"] > 0 and (alone["prototypes/weights"] > 0).any()
    for results in two_ranks:
        rank = results[under_paco]
        assert rank.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-10, atol=1e-12, msg=name)
