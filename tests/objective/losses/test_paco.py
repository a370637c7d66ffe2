"""PaCo against closed-form values and a naive loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.objective.contrast import ContrastSet, supcon
from ltcore.objective.dims import FeatureDims
from ltcore.objective.interface import LossContext
from ltcore.objective.losses.paco import Paco
from ltcore.objective.memory.queue import Queue
from ltcore.stats import ClassStats
from tests.ddp import run_ranks

F64 = torch.float64


def full_queue(keys: Tensor, labels: Tensor) -> Queue:
    queue = Queue(len(labels), keys.shape[1])
    queue.keys_Qd = torch.zeros(keys.shape, dtype=keys.dtype)
    fill(queue, keys, labels)
    return queue


def fill(queue: Queue, keys: Tensor, labels: Tensor) -> None:
    out = ModelOutput(torch.zeros(len(labels), 2), torch.zeros(len(labels), 2), key_Bd=keys)
    queue.observe(out, Batch(torch.zeros(1, len(labels), 3, 1, 1), labels, labels, labels))
    queue.merge(0.0)


def paco(**options: float) -> Paco:
    stats = ClassStats(torch.tensor([4, 1]), ("many", "few"))
    return Paco(Paco.Config(**options), stats, FeatureDims(2, 2, 5))  # type: ignore[arg-type]


def context(prior: Tensor, queue: Queue | None) -> LossContext:
    stats = ClassStats(torch.ones(len(prior), dtype=torch.int64), ("few",) * len(prior))
    return LossContext(stats, prior.log(), 0.0, {} if queue is None else {"queue": queue})


PRIOR = torch.tensor([0.8, 0.2], dtype=F64)
LABELS = torch.tensor([0, 1])
LOGITS = torch.tensor([[2, 0], [0.5, 1]], dtype=F64)


def small() -> tuple[ModelOutput, LossContext]:
    query, key = torch.eye(2, dtype=F64), torch.tensor([[0.8, 0.6], [0.6, 0.8]], dtype=F64)
    queue = full_queue(torch.tensor([[1.0, 0.0]], dtype=F64), torch.tensor([0]))
    return ModelOutput(LOGITS, query, query_Bd=query, key_Bd=key), context(PRIOR, queue)


@pytest.mark.parametrize(
    ("sample_weight", "neg_weight", "expected"),
    [
        (0.0, 1.0, [3.662127, 4.973126]),
        (0.05, 1.0, [3.414569, 4.753629]),
        (1.0, 1.0, [1.846698, 2.668407]),
        (0.0, 0.0, [0.033274, 1.231429]),
    ],
)
def test_closed_form_values(sample_weight: float, neg_weight: float, expected: list[float]) -> None:
    out, ctx = small()
    base = paco(sample_weight=sample_weight, neg_weight=neg_weight, temperature=0.2)
    torch.testing.assert_close(base(out, LABELS, ctx).tolist(), expected, atol=1e-6, rtol=0)


def test_closed_form_value_at_temperature_one() -> None:
    out, ctx = small()
    assert paco(sample_weight=0.05, temperature=1.0)(out, LABELS, ctx).mean().item() == pytest.approx(
        1.771795, abs=1e-6
    )


@pytest.mark.parametrize(
    ("num_positive", "center", "each", "floor"),
    [
        (1, 0.952381, 0.047619, 0.191444),
        (5, 0.8, 0.04, 0.822290),
        (20, 0.5, 0.025, 2.191013),
        (100, 0.166667, 0.008333, 4.288203),
    ],
)
def test_the_minimum_divides_between_center_and_positives(
    num_positive: int, center: float, each: float, floor: float
) -> None:
    """beta / (beta + alpha K) for the own center and alpha / (beta + alpha K) for each of K positives, nothing for others.

    A batch of one: its key and K - 1 queue entries are the positives, all with cosine 0.
    """
    query, key = torch.tensor([[1.0, 0.0]], dtype=F64), torch.tensor([[0.0, 1.0]], dtype=F64)
    others = num_positive - 1
    queue = full_queue(key.repeat(others, 1), torch.zeros(others, dtype=torch.int64)) if others else None
    logits = torch.tensor([[math.log(1 / 0.05), -1e4]], dtype=F64, requires_grad=True)
    out = ModelOutput(logits, query, query_Bd=query.requires_grad_(), key_Bd=key)
    loss = paco(sample_weight=0.05, temperature=0.2)(out, torch.tensor([0]), context(torch.ones(2, dtype=F64), queue))
    assert loss.item() == pytest.approx(floor, abs=1e-6)
    own, other = logits.detach()[0].exp().tolist()
    total = own + other + num_positive  # exp(0) for each positive of the contrast set
    assert (own / total, 1 / total) == pytest.approx((center, each), abs=1e-6)
    for grad in torch.autograd.grad(loss.sum(), (logits, query)):
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12)


def test_without_contrast_it_is_balanced_softmax() -> None:
    out, ctx = small()
    loss_B = paco(sample_weight=0, neg_weight=0)(out, LABELS, ctx)
    torch.testing.assert_close(loss_B, cross_entropy(LOGITS + PRIOR.log(), LABELS, reduction="none"))


def random_case(seed: int = 0) -> tuple[ModelOutput, Tensor, LossContext]:
    gen = torch.Generator().manual_seed(seed)
    query, key, old = (normalize(torch.randn(n, 4, generator=gen, dtype=F64), dim=1) for n in (6, 6, 5))
    labels, old_labels = torch.randint(0, 3, (6,), generator=gen), torch.randint(0, 3, (5,), generator=gen)
    logits = torch.randn(6, 3, generator=gen, dtype=F64)
    prior = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    out = ModelOutput(logits.requires_grad_(), query, query_Bd=query.requires_grad_(), key_Bd=key)
    return out, labels, context(prior, full_queue(old, old_labels))


@pytest.mark.parametrize("normalize_by_weight", [True, False])
def test_matches_naive_loop(normalize_by_weight: bool) -> None:
    out, labels, ctx = random_case()
    assert out.query_Bd is not None and out.key_Bd is not None
    queue = ctx.memories["queue"]
    assert isinstance(queue, Queue)
    alpha, beta, gamma, temperature, center_temperature = 0.3, 0.9, 0.7, 0.2, 2.0
    contrast = torch.cat([out.query_Bd, out.key_Bd, queue.keys_Qd]).detach()
    contrast_labels = torch.cat([labels, labels, queue.labels_Q]).tolist()
    expected = []
    for i, y in enumerate(labels.tolist()):
        centers = ((out.logits_BC[i] + ctx.log_prior_C) / center_temperature).tolist()
        samples = (contrast @ contrast[i] / temperature).tolist()
        others = [j for j in range(len(samples)) if j != i]
        log_sum = math.log(sum(map(math.exp, centers)) + gamma * sum(math.exp(samples[j]) for j in others))
        positives = [j for j in others if contrast_labels[j] == y]
        total = beta * (centers[y] - log_sum) + alpha * sum(samples[j] - log_sum for j in positives)
        expected.append(-total / (beta + alpha * len(positives) if normalize_by_weight else 1))
    base = paco(
        sample_weight=alpha,
        center_weight=beta,
        neg_weight=gamma,
        temperature=temperature,
        center_temperature=center_temperature,
        normalize_by_weight=normalize_by_weight,
    )
    torch.testing.assert_close(base(out, labels, ctx).tolist(), expected, rtol=1e-13, atol=0)


def test_without_centers_it_is_supervised_contrast() -> None:
    out, labels, ctx = random_case(1)
    queue = ctx.memories["queue"]
    assert isinstance(queue, Queue)
    ctx.log_prior_C = torch.full((3,), -1e6, dtype=F64)
    with_tiny_center = paco(center_weight=1e-12, sample_weight=1.0, temperature=0.2)(out, labels, ctx)
    contrast = ContrastSet.of(out, labels, ctx, queue)
    same = (labels[:, None] == contrast.labels_A).double()
    expected, valid_B = supcon(contrast.cosine_BA, same, contrast.excluded_BA, 0.2)
    assert valid_B.all()
    torch.testing.assert_close(with_tiny_center, expected, rtol=1e-5, atol=1e-5)


def test_order_of_the_queue_does_not_matter_and_gradient_stays_on_queries_and_logits() -> None:
    out, labels, ctx = random_case(2)
    queue = ctx.memories["queue"]
    assert isinstance(queue, Queue) and out.query_Bd is not None and out.key_Bd is not None
    out.key_Bd.requires_grad_()
    base = paco(temperature=0.2)
    loss_B = base(out, labels, ctx)
    loss_B.sum().backward()
    assert out.query_Bd.grad is not None and out.logits_BC.grad is not None and out.key_Bd.grad is None
    present = torch.bincount(labels, minlength=3) > 0
    assert (
        out.logits_BC.grad.sum(0)[~present] > 0
    ).all()  # an absent class is only pushed, by its share of the softmax
    contrast = ContrastSet.of(out, labels, ctx, queue)
    centers, samples = (
        out.logits_BC + ctx.log_prior_C,
        (contrast.cosine_BA / 0.2).masked_fill(contrast.excluded_BA, -1e9),
    )
    share = torch.cat([centers, samples], 1).softmax(1)[:, :3].detach()
    torch.testing.assert_close(out.logits_BC.grad[:, ~present], share[:, ~present])
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = full_queue(queue.keys_Qd[order], queue.labels_Q[order])
    torch.testing.assert_close(base(out, labels, context(ctx.log_prior_C.exp(), shuffled)), loss_B)
    assert not queue.keys_Qd.requires_grad


def test_unfilled_slots_do_not_count() -> None:
    out, labels, ctx = random_case(3)
    empty = Queue(50, 4)
    base = paco(temperature=0.2)
    with_empty = base(out, labels, context(ctx.log_prior_C.exp(), empty))
    torch.testing.assert_close(with_empty, base(out, labels, context(ctx.log_prior_C.exp(), None)))


def test_extreme_logits_stay_finite() -> None:
    out, labels, ctx = random_case(4)
    hard = ModelOutput(out.logits_BC.float() * 1e4, out.features_BD, query_Bd=out.query_Bd, key_Bd=out.key_Bd)
    assert torch.isfinite(paco()(hard, labels, ctx)).all()


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"center_weight": 0.0}, "center_weight"),
        ({"sample_weight": -1.0}, "sample_weight"),
        ({"neg_weight": 0.0}, "neg_weight"),
    ],
)
def test_config_errors_name_the_field(options: dict[str, float], start: str) -> None:
    with pytest.raises(ValueError, match=f"^{start}"):
        Paco.Config(**options)  # type: ignore[arg-type]


def _steps() -> dict[str, Tensor]:
    """Three steps of a linear query encoder and head: losses and averaged gradients of the last one, queue."""
    torch.set_default_dtype(F64)
    gen = torch.Generator().manual_seed(5)
    encoder = torch.randn(6, 4, generator=gen, requires_grad=True)
    head = torch.randn(6, 3, generator=gen, requires_grad=True)
    base, queue = paco(temperature=0.2), Queue(10, 4)
    for _ in range(3):
        x, view = torch.randn(8, 6, generator=gen), torch.randn(8, 6, generator=gen)
        labels = torch.randint(0, 3, (8,), generator=gen)
        mine = slice(dist.rank() * 8 // dist.world(), (dist.rank() + 1) * 8 // dist.world())
        x, view, labels = x[mine], view[mine], labels[mine]
        query, key = normalize(x @ encoder, dim=1), normalize(view @ encoder, dim=1).detach()
        out = ModelOutput(x @ head, x, query_Bd=query, key_Bd=key)
        loss = base(out, labels, context(torch.tensor([0.5, 0.3, 0.2]), queue)).mean()
        grads = torch.autograd.grad(loss, [encoder, head])
        fill(queue, key, labels)
    average = [dist.all_reduce_sum_(value.clone()) / dist.world() for value in (loss.detach(), *grads)]
    torch.set_default_dtype(torch.float32)
    return {"loss": average[0], "encoder": average[1], "head": average[2], **queue.published()}


def test_two_ranks_equal_one() -> None:
    alone = _steps()
    for rank in run_ranks(_steps, 2):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-12, atol=1e-12)
