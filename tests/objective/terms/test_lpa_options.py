"""The LPA term: other readings of the paper, each an option."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from ltcore.batch import Batch, ModelOutput
from ltcore.objective.contrast import ContrastSet, mean_over_valid, supcon
from ltcore.objective.losses.paco import Paco
from ltcore.objective.memory.base import Memory
from ltcore.objective.memory.queue import Queue
from ltcore.objective.objective import ObjectiveConfig
from ltcore.objective.registry import Terms
from ltcore.objective.terms.lpa.prototypes import Prototypes
from ltcore.objective.terms.lpa.term import Lpa, Positives, of_neighbors
from tests.objective.terms.lpa_case import DIMS, STATS, case, context, loader, made, plain_supcon


def filled(**options: Any) -> tuple[Lpa, dict[str, Memory], ModelOutput, Batch]:
    """A term with everything published, and a batch with all that it may ask for."""
    term, memories = made(neighbors=3, threshold=-0.99, temperature=0.2, **options)
    out, batch = case(0)
    gen = torch.Generator().manual_seed(5)
    own_query, own_key = (normalize(torch.randn(16, 4, generator=gen), dim=1) for _ in range(2))
    features, key_features = torch.randn(16, 5, generator=gen), torch.randn(16, 5, generator=gen)
    out = replace(
        out,
        features_BD=features.requires_grad_(),
        key_features_BD=key_features,
        own_query_Bd=own_query.requires_grad_(),
        own_key_Bd=own_key,
    )
    loader(memories, out, batch, progress=0.1)
    return term, memories, out, batch


@pytest.mark.parametrize(
    ("embedding", "needs", "length"), [("query", {"query"}, 4), ("own", {"own_query"}, 4), ("pooled", set(), 5)]
)
def test_what_is_contrasted(embedding: str, needs: set[str], length: int) -> None:
    """The loss is that of the same vectors given as the shared projection, and no other field is looked at."""
    term, memories, out, batch = filled(embedding=embedding)
    assert term.needs == needs | {"fmap", "key"}
    queue = memories["queue"]
    assert isinstance(queue, Queue) and queue.keys_Qd.shape == (7, length)
    loss = term(out, batch, context(memories))
    given = {"query": out.query_Bd, "own": out.own_query_Bd, "pooled": out.features_BD}
    grads = torch.autograd.grad(loss, list(given.values()), allow_unused=True)
    assert [name for name, grad in zip(given, grads, strict=True) if grad is not None] == [embedding]
    keys = {"query": out.key_Bd, "own": out.own_key_Bd, "pooled": out.key_features_BD}
    query, key = (normalize(each[embedding], dim=1) for each in (given, keys))
    torch.testing.assert_close(queue.keys_Qd, key[-7:].roll(int(queue.pointer), 0))
    shared, _ = made(neighbors=3, threshold=-0.99, temperature=0.2)
    expected = shared(replace(out, query_Bd=query, key_Bd=key), batch, context(memories))
    torch.testing.assert_close(loss, expected)


def test_an_embedding_of_its_own_shares_nothing_with_paco() -> None:
    paco = Paco(Paco.Config(queue_size=7), STATS, DIMS)
    for embedding in ("own", "pooled"):
        assert made(embedding=embedding)[0].memories()["queue"].key != paco.memories()["queue"].key


def test_neighbors_of_an_image_are_those_of_a_class_that_looks_like_it() -> None:
    """Where every image of a class shows what the class does, both readings agree; one that does not goes elsewhere."""
    term, memories, out, batch = filled(positives="sample", shrink=0.0)
    by_class, _ = made(neighbors=3, threshold=-0.99, temperature=0.2, shrink=0.0)
    prototypes = memories["prototypes"]
    assert isinstance(prototypes, Prototypes) and out.fmap_BDhw is not None
    first = out.fmap_BDhw[batch.labels_B]  # images 0 to 3 have classes 0 to 3: each class looks like its first image
    alike = replace(out, fmap_BDhw=first)
    loader(memories, alike, batch, progress=0.12)
    ctx = context(memories)
    torch.testing.assert_close(term(alike, batch, ctx), by_class(alike, batch, context(memories)))
    swapped = replace(out, fmap_BDhw=out.fmap_BDhw[3 - batch.labels_B])
    by_image_BC = term._neighbor_classes(swapped, batch, context(memories))
    assert (by_image_BC[torch.arange(16), batch.labels_B] == 0).all(), "never its own class, whatever it looks like"
    others = torch.tensor([3, 2, 1, 0])[batch.labels_B]
    assert (by_image_BC.argmax(1) == others).all(), "first of all the class that it looks like"
    assert not torch.isclose(term(swapped, batch, context(memories)), by_class(swapped, batch, context(memories)))


def test_an_image_without_any_direction_has_no_neighbors() -> None:
    term, memories, out, batch = filled(positives="sample")
    blank = replace(out, fmap_BDhw=torch.zeros_like(out.fmap_BDhw))  # type: ignore[arg-type]
    assert not term._neighbor_classes(blank, batch, context(memories)).any()
    torch.testing.assert_close(term(blank, batch, context(memories)), plain_supcon(out, batch, memories, 0.2))


def test_one_view_contrasts_with_queries_and_earlier_keys_alone() -> None:
    term, memories, out, batch = filled(views=1)
    two_views, _, _, _ = filled()
    queue, prototypes = memories["queue"], memories["prototypes"]
    assert isinstance(queue, Queue) and isinstance(prototypes, Prototypes) and out.query_Bd is not None
    labels_A = torch.cat([batch.labels_B, queue.labels_Q])
    excluded_BA = torch.cat([torch.eye(16, dtype=torch.bool), torch.zeros(16, 7, dtype=torch.bool)], 1)
    by_class = torch.zeros(4, 4).scatter_(1, prototypes.neighbors_Ck, prototypes.weights_Ck)[batch.labels_B]
    contrast = ContrastSet(labels_A, out.query_Bd @ torch.cat([out.query_Bd, queue.keys_Qd]).T, excluded_BA)
    weights = Positives.of(contrast, batch.labels_B, of_neighbors(labels_A, by_class)).weights(0.3)
    loss = term(out, batch, context(memories))
    torch.testing.assert_close(loss, mean_over_valid(*supcon(contrast.cosine_BA, weights, excluded_BA, 0.2)))
    other_keys = replace(out, key_Bd=out.own_key_Bd)
    assert torch.equal(term(other_keys, batch, context(memories)), loss)
    assert not torch.isclose(two_views(out, batch, context(memories)), loss)
    assert not torch.isclose(two_views(out, batch, context(memories)), two_views(other_keys, batch, context(memories)))


def test_spared_neighbors_are_no_negatives_of_paco() -> None:
    """PaCo's loss is that of a contrast set in which they are excluded; its positives and centers stay."""
    term, memories, out, batch = filled(spare_neighbors=True)
    out = replace(out, logits_BC=torch.randn(16, 4, generator=torch.Generator().manual_seed(6)))
    paco = Paco(Paco.Config(queue_size=7, temperature=0.2), STATS, DIMS)
    ctx = context(memories)
    plain = paco(out, batch.labels_B, ctx)
    term.before_base(out, batch, ctx)
    spared = paco(out, batch.labels_B, ctx)
    queue = memories["queue"]
    assert isinstance(queue, Queue)
    contrast = ContrastSet.of(out, batch.labels_B, ctx, queue)
    near_BA = of_neighbors(contrast.labels_A, term._neighbor_classes(out, batch, ctx)) > 0
    assert near_BA.any() and not (near_BA & (batch.labels_B[:, None] == contrast.labels_A)).any()
    without = context(memories)
    without.shared.results[("contrast", queue, "query", True)] = replace(
        contrast, excluded_BA=contrast.excluded_BA | near_BA
    )
    torch.testing.assert_close(spared, paco(out, batch.labels_B, without))
    assert (spared < plain).all()
    kept, _, _, _ = filled()
    untouched = context(memories)
    kept.before_base(out, batch, untouched)
    assert untouched.shared.spared is None


def test_sparing_needs_a_base_with_negatives() -> None:
    lpa = Lpa.Config(spare_neighbors=True)
    ObjectiveConfig(base="paco", terms=Terms(lpa=lpa))
    with pytest.raises(ValueError, match=r"^terms\.lpa\.spare_neighbors has no effect with base='balanced_softmax'"):
        ObjectiveConfig(base="balanced_softmax", terms=Terms(lpa=lpa))


def test_works_without_queue_and_in_half_precision() -> None:
    term, memories = made(queue_size=0)
    assert set(memories) == {"prototypes"}
    out, batch = case(0)
    assert out.query_Bd is not None and out.key_Bd is not None and out.fmap_BDhw is not None
    loader(memories, out, batch, progress=0.1)
    full = term(out, batch, context(memories))
    half = ModelOutput(
        out.logits_BC, out.features_BD, out.fmap_BDhw.bfloat16(), out.query_Bd.bfloat16(), out.key_Bd.bfloat16()
    )
    loss = term(half, batch, context(memories))
    loader(memories, half, batch, progress=0.12)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, full, rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"num_attributes": 1}, "num_attributes"),
        ({"temperature": 0.0}, "temperature"),
        ({"threshold": 1.0}, "threshold"),
        ({"neighbor_mass": 1.1}, "neighbor_mass"),
        ({"start": 0.6}, "freeze_fraction"),
        ({"centering": "mean"}, "centering"),
        ({"score": "max"}, "score"),
        ({"positives": "image"}, "positives"),
        ({"embedding": "key"}, "embedding"),
        ({"similarity": "dice"}, "similarity"),
        ({"layers": ()}, "layers"),
        ({"layers": ("final", "final")}, "layers"),
        ({"scales": ()}, "scales"),
        ({"scales": (0,)}, "scales"),
        ({"online_rate": 1.5}, "online_rate"),
        ({"online_rate": 0.5, "metric": "whitened"}, "online_rate"),
        ({"refresh_fraction": float("nan")}, "refresh_fraction"),
        ({"weight": -1.0}, "weight"),
    ],
)
def test_config_errors_name_the_field(options: dict[str, Any], start: str) -> None:
    with pytest.raises(ValueError, match=f"^{start} "):
        Lpa.Config(**options)


def test_layers_are_asked_of_the_network() -> None:
    assert made(layers=("final",))[0].needs == {"fmap", "key", "query"}
    term = Lpa(
        Lpa.Config(layers=("stage1", "stage2"), embedding="query"),
        STATS,
        replace(DIMS, stages={"stage1": 3, "stage2": 4}),
    )
    assert term.needs == {"fmap/stage1", "fmap/stage2", "key", "query"}
