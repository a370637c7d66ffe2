"""Supervised contrast against closed forms and a naive loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ltcore.batch import Batch, ModelOutput
from ltcore.objective.contrast import ContrastSet, mean_over_valid, supcon
from ltcore.objective.interface import LossContext
from ltcore.objective.memory.queue import Queue
from ltcore.stats import ClassStats


def loss_of(units_nd: Tensor, weights_nn: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Every vector contrasted with all others."""
    return supcon(units_nd @ units_nd.T, weights_nn, torch.eye(len(units_nd), dtype=torch.bool), temperature)


def same_class(labels_n: Tensor) -> Tensor:
    return (labels_n[:, None] == labels_n).double()


def naive(cosine: Tensor, weights: Tensor, excluded: Tensor, temperature: float) -> list[float | None]:
    losses: list[float | None] = []
    for row, m, out in zip(cosine.tolist(), weights.tolist(), excluded.tolist(), strict=True):
        kept = [j for j in range(len(row)) if not out[j]]
        log_sum = math.log(sum(math.exp(row[j] / temperature) for j in kept))
        total = sum(m[j] for j in kept)
        terms = [m[j] * (row[j] / temperature - log_sum) for j in kept]
        losses.append(-sum(terms) / total if total else None)
    return losses


AXES = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64)
PAIRS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.551445), (0.5, 0.239545), (0.1, 9.0796e-5)])
def test_two_pairs(temperature: float, expected: float) -> None:
    loss_B, valid_B = loss_of(AXES, same_class(PAIRS), temperature)
    torch.testing.assert_close(mean_over_valid(loss_B, valid_B).item(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss_B[0].item(), math.log(1 + 2 * math.exp(-1 / temperature)))


def test_one_label_for_all() -> None:
    loss_B, valid_B = loss_of(AXES, same_class(torch.zeros(4)), 1.0)
    assert mean_over_valid(loss_B, valid_B).item() == pytest.approx(1.218111, abs=1e-6)


def test_soft_weights() -> None:
    loss_B, valid_B = loss_of(AXES, 0.5 + 0.5 * same_class(PAIRS), 1.0)
    assert mean_over_valid(loss_B, valid_B).item() == pytest.approx(1.051445, abs=1e-6)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 0, 0, 1], [2, 2, 2, 2]])
def test_equal_vectors_give_log_of_the_contrast_size(labels: list[int]) -> None:
    loss_B, valid_B = loss_of(AXES[:1].repeat(4, 1), same_class(torch.tensor(labels)), 0.07)
    assert mean_over_valid(loss_B, valid_B).item() == pytest.approx(math.log(3), abs=1e-6)


def test_matches_naive_loop_and_skips_anchors_without_positive() -> None:
    gen = torch.Generator().manual_seed(0)
    cosine = torch.rand(5, 9, generator=gen, dtype=torch.float64) * 2 - 1
    weights = torch.rand(5, 9, generator=gen, dtype=torch.float64)
    excluded = torch.rand(5, 9, generator=gen) < 0.3
    weights[3] = excluded[3]  # positives, but only where excluded
    loss_B, valid_B = supcon(cosine, weights, excluded, 0.1)
    expected = naive(cosine, weights, excluded, 0.1)
    assert valid_B.tolist() == [loss is not None for loss in expected] == [True, True, True, False, True]
    kept = [loss for loss in expected if loss is not None]
    torch.testing.assert_close(loss_B[valid_B], torch.tensor(kept, dtype=torch.float64))
    torch.testing.assert_close(mean_over_valid(loss_B, valid_B).item(), sum(kept) / len(kept))


def test_invariants() -> None:
    gen = torch.Generator().manual_seed(1)
    units = normalize(torch.randn(8, 3, generator=gen, dtype=torch.float64), dim=1)
    weights = same_class(torch.tensor([0, 0, 1, 1, 1, 2, 2, 0]))
    loss_B, _ = loss_of(units, weights, 0.2)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=gen, dtype=torch.float64))
    torch.testing.assert_close(loss_of(units @ rotation, weights, 0.2)[0], loss_B)
    order = torch.randperm(8, generator=gen)
    permuted, _ = loss_of(units[order], weights[order][:, order], 0.2)
    torch.testing.assert_close(permuted, loss_B[order])
    flat, _ = loss_of(units, weights, 1e9)
    torch.testing.assert_close(flat, torch.full((8,), math.log(7), dtype=torch.float64))
    torch.testing.assert_close(loss_of(units, 3.7 * weights, 0.2)[0], loss_B)


@pytest.mark.parametrize("num_positive", [1, 3, 5])
def test_the_floor_is_the_log_of_the_number_of_positives(num_positive: int) -> None:
    """Reached where positives are tied and negatives far: classes with more samples have a higher floor."""
    cosine = torch.where(torch.arange(8) < num_positive, 1.0, -1.0)[None]
    loss_B, _ = supcon(cosine, (cosine > 0).float(), torch.zeros(1, 8, dtype=torch.bool), 0.05)
    assert loss_B.item() == pytest.approx(math.log(num_positive), abs=1e-6)


def test_the_logarithm_inside_the_sum_bounds_the_one_outside() -> None:
    gen = torch.Generator().manual_seed(4)
    cosine = torch.rand(6, 9, generator=gen, dtype=torch.float64) * 2 - 1
    positive = (torch.rand(6, 9, generator=gen) < 0.5).double()
    loss_B, valid_B = supcon(cosine, positive, torch.zeros(6, 9, dtype=torch.bool), 0.3)
    inside_B = -((cosine / 0.3).softmax(1) * positive).sum(1).div(positive.sum(1)).log()
    assert valid_B.all() and (inside_B < loss_B).all()


def test_duplicating_the_contrast_adds_log_two() -> None:
    gen = torch.Generator().manual_seed(2)
    cosine = torch.rand(4, 6, generator=gen, dtype=torch.float64)
    weights, excluded = torch.rand(4, 6, generator=gen, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.bool)
    once, _ = supcon(cosine, weights, excluded, 0.1)
    twice, _ = supcon(cosine.repeat(1, 2), weights.repeat(1, 2), excluded.repeat(1, 2), 0.1)
    torch.testing.assert_close(twice, once + math.log(2))


def test_self_similarity_does_not_swallow_the_rest() -> None:
    """At T = .01 the self logit is 100 above the others; float32 must still see them."""
    units = torch.eye(3)
    units.requires_grad_()
    loss_B, valid_B = loss_of(units, torch.eye(3)[[1, 2, 1]], 0.01)
    torch.testing.assert_close(loss_B, torch.full((3,), math.log(2)))
    mean_over_valid(loss_B, valid_B).backward()
    assert units.grad is not None and units.grad.abs().sum() > 0


def test_gradient() -> None:
    gen = torch.Generator().manual_seed(3)
    cosine = torch.rand(3, 5, generator=gen, dtype=torch.float64, requires_grad=True)
    weights, excluded = torch.rand(3, 5, generator=gen, dtype=torch.float64), torch.eye(3, 5, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda c: mean_over_valid(*supcon(c, weights, excluded, 0.3)), (cosine,))


def test_nothing_to_contrast_is_zero_with_zero_gradient() -> None:
    unit = torch.ones(1, 1, requires_grad=True)
    loss = mean_over_valid(*loss_of(unit, torch.ones(1, 1), 0.1))
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(unit.grad, torch.zeros(1, 1))


def output(queries: Tensor, keys: Tensor) -> ModelOutput:
    return ModelOutput(torch.zeros(len(queries), 2), torch.zeros(len(queries), 2), query_Bd=queries, key_Bd=keys)


def test_contrast_set_is_built_once_and_masks_self_and_unfilled_slots() -> None:
    gen = torch.Generator().manual_seed(4)
    queries, keys, old = (normalize(torch.randn(n, 3, generator=gen), dim=1) for n in (2, 2, 1))
    queries.requires_grad_()
    queue = Queue(3, 3)
    empty = torch.empty(1, 1, 3, 1, 1)
    queue.observe(output(old, old), Batch(empty, torch.tensor([4]), torch.zeros(1), torch.zeros(1)))
    queue.merge(0.0)
    stats = ClassStats(torch.tensor([3, 1]), ("many", "few"))
    ctx = LossContext(stats, torch.zeros(2), 0.0, {"queue": queue})
    labels = torch.tensor([1, 0])
    contrast = ContrastSet.of(output(queries, keys), labels, ctx, queue)
    assert ContrastSet.of(output(queries, keys), labels, ctx, queue) is contrast
    assert contrast.labels_A.tolist() == [1, 0, 1, 0, 4, -1, -1]
    assert contrast.excluded_BA.int().tolist() == [[1, 0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 1, 1]]
    torch.testing.assert_close(contrast.cosine_BA[:, :5], queries @ torch.cat([queries, keys, old]).T)
    without = ContrastSet.of(output(queries, keys), labels, ctx, None)
    assert without.labels_A.tolist() == [1, 0, 1, 0]
    assert (
        ContrastSet.of(
            output(queries.bfloat16(), keys.bfloat16()), labels, LossContext(stats, torch.zeros(2), 0.0, {}), None
        ).cosine_BA.dtype
        == torch.float32
    )
