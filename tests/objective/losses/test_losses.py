"""Base losses against closed forms and the authors' numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ltcore.objective.class_weights import effective_weights, weighted
from ltcore.objective.interface import Base
from ltcore.objective.losses.balanced_softmax import BalancedSoftmax
from ltcore.objective.losses.class_balanced import ClassBalanced
from ltcore.objective.losses.cross_entropy import CrossEntropy
from ltcore.objective.losses.focal import Focal, focal
from ltcore.objective.losses.ldam import Ldam
from ltcore.objective.losses.logit_adjust import LogitAdjust, posthoc_logits
from ltcore.stats import ClassStats
from tests.objective import toy

COUNTS = (7, 2, 1)  # prior (.7, .2, .1)
LABELS = torch.tensor([0, 1, 2])
LOGITS = toy.f64([[1, 0, -1]] * 3)


def losses(
    base: type[Base],
    logits_BC: Tensor,
    stats: ClassStats,
    labels: Tensor = LABELS,
    progress: float = 0.9,
    **options: object,
) -> Tensor:
    loss = base(base.Config(**options), stats, toy.make_dims(1, stats))  # type: ignore[attr-defined]
    return loss(toy.make_output(logits_BC), labels, toy.make_context(stats, progress))


@pytest.mark.parametrize(
    ("base", "options", "expected"),
    [
        (CrossEntropy, {}, (0.407606, 1.407606, 2.407606)),
        (BalancedSoftmax, {}, (0.117287, 2.370050, 4.063197)),
        (LogitAdjust, {}, (0.117287, 2.370050, 4.063197)),
        (LogitAdjust, {"tau": 1.5}, (0.061556, 2.940701, 4.980421)),
        (LogitAdjust, {"tau": 0.0}, (0.407606, 1.407606, 2.407606)),
    ],
)
def test_closed_forms(base: type[Base], options: dict[str, float], expected: tuple[float, ...]) -> None:
    torch.testing.assert_close(
        losses(base, LOGITS, toy.make_stats(COUNTS), **options), toy.f64(expected), rtol=0, atol=1e-6
    )


def test_zero_logits_cost_the_log_prior() -> None:
    ours = losses(BalancedSoftmax, torch.zeros_like(LOGITS), toy.make_stats(COUNTS))
    torch.testing.assert_close(ours, toy.f64([0.356675, 1.609438, 2.302585]), rtol=0, atol=1e-6)
    plain = losses(CrossEntropy, torch.zeros_like(LOGITS), toy.make_stats(COUNTS))
    torch.testing.assert_close(plain, toy.f64([math.log(3)] * 3))


def test_gradient_is_the_predicted_distribution_less_the_label_and_shifts_cancel() -> None:
    label = torch.tensor([0])
    for base, p in [(CrossEntropy, LOGITS[0].softmax(0)), (BalancedSoftmax, toy.f64([0.889330, 0.093476, 0.017194]))]:
        logits = LOGITS[:1].clone().requires_grad_()
        loss = losses(base, logits, toy.make_stats(COUNTS), label).sum()
        (grad,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(grad[0], p - toy.f64([1, 0, 0]), rtol=0, atol=1e-6)
        assert float(grad.sum()) == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(losses(base, logits + 100, toy.make_stats(COUNTS), label).sum(), loss)


def test_log_prior_of_cifar100_lt() -> None:
    log_prior = toy.make_stats([int(500 * 100 ** (-c / 99)) for c in range(100)]).log_prior_C("dataset", torch.float64)
    assert [float(log_prior[0]), float(log_prior[-1])] == pytest.approx([-3.077036, -7.682206], abs=1e-6)


def test_posthoc_adjustment_of_cross_entropy_is_balanced_softmax_at_the_optimum() -> None:
    """Where p(y | x) is known, cross-entropy is minimal at log p, balanced softmax at log p - log pi."""
    stats, gen = toy.make_stats(COUNTS), torch.Generator().manual_seed(0)
    joint_XC = torch.rand(4, 3, generator=gen, dtype=torch.float64) * toy.f64(COUNTS)
    joint_XC = joint_XC / joint_XC.sum(0) * toy.f64(COUNTS) / sum(COUNTS)  # four images; the class marginal is pi
    plain = (joint_XC / joint_XC.sum(1, keepdim=True)).log()
    adjusted = posthoc_logits(plain, stats.log_prior_C("dataset", torch.float64))
    for base, optimum in [(CrossEntropy, plain), (BalancedSoftmax, adjusted)]:
        logits = optimum.clone().requires_grad_()
        each = [losses(base, logits, stats, torch.full((4,), c)) for c in range(3)]
        (grad,) = torch.autograd.grad((joint_XC * torch.stack(each, 1)).sum(), logits)
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12)


def test_label_smoothing_mixes_with_the_mean_over_classes() -> None:
    log_p = LOGITS.log_softmax(1)
    expected = -0.9 * log_p.diagonal() - 0.1 * log_p.mean(1)
    torch.testing.assert_close(losses(CrossEntropy, LOGITS, toy.make_stats(COUNTS), label_smoothing=0.1), expected)


@pytest.mark.parametrize("base", [BalancedSoftmax, LogitAdjust])
def test_prior_matters_up_to_a_factor_and_not_where_uniform(base: type[Base]) -> None:
    times_ten = losses(base, LOGITS, toy.make_stats([70, 20, 10]))
    torch.testing.assert_close(times_ten, losses(base, LOGITS, toy.make_stats(COUNTS)))
    uniform = losses(base, LOGITS, toy.make_stats([5, 5, 5]))
    torch.testing.assert_close(uniform, losses(CrossEntropy, LOGITS, toy.make_stats([5, 5, 5])))


def test_a_class_without_samples_stays_finite() -> None:
    loss_B = losses(BalancedSoftmax, LOGITS, toy.make_stats([8, 2, 0]))
    assert loss_B.isfinite().all()


def test_experts_are_judged_by_the_mean_of_their_logits() -> None:
    stats = toy.make_stats(COUNTS)
    experts_BEC = torch.stack([LOGITS + 1, LOGITS - 2, LOGITS * 3], dim=1)
    torch.testing.assert_close(
        losses(CrossEntropy, experts_BEC, stats), losses(CrossEntropy, experts_BEC.mean(1), stats)
    )


def test_posthoc_scores() -> None:
    prior = toy.make_stats(COUNTS).log_prior_C("dataset", torch.float64)
    scores = posthoc_logits(LOGITS[0], prior)
    torch.testing.assert_close(scores, toy.f64([1.356675, 1.609438, 1.302585]), rtol=0, atol=1e-6)
    assert scores.argmax() == 1


@pytest.mark.parametrize(("p", "expected"), [(0.5, 0.173287), (0.9, 0.001053605), (0.1, 1.865094)])
def test_focal_closed_form(p: float, expected: float) -> None:
    assert float(focal(toy.f64([p]).log(), 2.0)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_focal_without_exponent_is_cross_entropy(form: str) -> None:
    ours = losses(Focal, LOGITS, toy.make_stats(COUNTS), gamma=0.0, form=form)
    if form == "softmax":
        expected = torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none")
    else:
        target = torch.eye(3, dtype=torch.float64)
        expected = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, target, reduction="none").sum(1)
    torch.testing.assert_close(ours, expected)


def test_sigmoid_focal_equals_a_loop() -> None:
    ours = losses(Focal, LOGITS, toy.make_stats(COUNTS), gamma=1.5, form="sigmoid")
    for i, row in enumerate(LOGITS.tolist()):
        expected = 0.0
        for c, s in enumerate(row):
            p = 1 / (1 + math.exp(-s if c == LABELS[i] else s))
            expected -= (1 - p) ** 1.5 * math.log(p)
        assert float(ours[i]) == pytest.approx(expected)


def test_focal_gradient_stays_finite_for_certain_samples() -> None:
    logits = toy.f64([[1e4, 0.0, 0.0]]).requires_grad_()
    losses(Focal, logits, toy.make_stats(COUNTS), torch.tensor([0]), gamma=0.5).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (0.0, (1, 1, 1)),
        (0.9, (0.674593, 0.678088, 1.647318)),
        (0.99, (0.126130, 0.317223, 2.556647)),
        (0.999, (0.034111, 0.275169, 2.690720)),
        (0.9999, (0.027690, 0.270763, 2.701547)),
        (1 - 1e-12, (0.027027, 0.270270, 2.702703)),
    ],
)
def test_effective_number_closed_forms(beta: float, expected: tuple[float, ...]) -> None:
    ours = effective_weights(torch.tensor([500, 50, 5]), beta)
    torch.testing.assert_close(ours, toy.f64(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("factor", "first", "last"), [(100, 0.044876, 4.378313), (50, 0.078889, 3.849388), (10, 0.258185, 2.524667)]
)
def test_effective_number_on_cifar100_lt(factor: int, first: float, last: float) -> None:
    counts = torch.tensor([int(500 * factor ** (-c / 99)) for c in range(100)])
    weights = effective_weights(counts, 0.9999)
    assert [float(weights[0]), float(weights[-1])] == pytest.approx([first, last], abs=1e-6)


def test_class_balanced_multiplies_and_focal_uses_the_plain_probability() -> None:
    stats = toy.make_stats([500, 50, 5])
    plain, weights = losses(CrossEntropy, LOGITS, stats), effective_weights(stats.counts_C, 0.9999)
    torch.testing.assert_close(losses(ClassBalanced, LOGITS, stats), plain * weights)
    torch.testing.assert_close(
        losses(ClassBalanced, LOGITS, stats, focal_gamma=2.0), (1 - (-plain).exp()) ** 2 * plain * weights
    )
    assert 2 * float(focal(toy.f64([0.5]).log(), 1.0)) == pytest.approx(0.693147, abs=1e-6)  # not exp(-w CE): 1.039721


def test_deferred_weights_begin_at_their_fraction_of_training() -> None:
    stats = toy.make_stats([500, 50, 5])
    plain = losses(CrossEntropy, LOGITS, stats)
    assert torch.equal(losses(ClassBalanced, LOGITS, stats, progress=0.79, drw_start=0.8), plain)
    assert not torch.equal(losses(ClassBalanced, LOGITS, stats, progress=0.8, drw_start=0.8), plain)


def test_published_normalization_is_the_weighted_mean() -> None:
    loss_B, weights_B = toy.f64([1, 2, 4]), toy.f64([0.5, 1, 3])
    assert float(weighted(loss_B, weights_B, "batch_sum").mean()) == pytest.approx((0.5 + 2 + 12) / 4.5)
    assert float(weighted(loss_B, weights_B, "batch").mean()) == pytest.approx((0.5 + 2 + 12) / 3)


def test_ldam_closed_form() -> None:
    stats = toy.make_stats([500, 50, 5])
    loss = Ldam(Ldam.Config(), stats, toy.make_dims(1, stats))
    torch.testing.assert_close(loss.margin_C, toy.f64([0.158114, 0.281171, 0.5]), rtol=0, atol=1e-6)
    logits = 30 * toy.f64([[0.5, 0.2, 0.1]] * 3)
    ours = losses(Ldam, logits, stats, progress=0.0)
    torch.testing.assert_close(ours, toy.f64([0.014766583, 17.435126, 27.000123]), rtol=0, atol=1e-6)
    without = losses(Ldam, logits, stats, progress=0.0, max_margin=0.0)
    torch.testing.assert_close(without, losses(CrossEntropy, logits, stats))
    assert Ldam.cosine_scale(Ldam.Config(scale=20.0)) == 20.0
    assert CrossEntropy.cosine_scale(CrossEntropy.Config()) is None


@pytest.mark.parametrize(("factor", "first"), [(10, 0.281171), (50, 0.188030), (100, 0.158114)])
def test_margins_on_cifar100_lt(factor: int, first: float) -> None:
    stats = toy.make_stats([int(500 * factor ** (-c / 99)) for c in range(100)])
    margin_C = Ldam(Ldam.Config(), stats, toy.make_dims(1, stats)).margin_C
    assert [float(margin_C[0]), float(margin_C[-1])] == pytest.approx([first, 0.5], abs=1e-6)
    assert (margin_C.diff() >= 0).all(), "rarer classes have larger margins"


def test_equal_counts_give_one_margin_for_all() -> None:
    logits = 30 * toy.f64([[0.5, 0.2, 0.1]] * 3)
    shifted = logits - 30 * 0.5 * torch.eye(3, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(shifted, LABELS, reduction="none")
    torch.testing.assert_close(losses(Ldam, logits, toy.make_stats([4, 4, 4])), expected)


def test_only_the_published_normalization_looks_across_the_batch() -> None:
    for base in (ClassBalanced, Ldam):
        for norm, gathers in [("batch", False), ("batch_sum", True)]:
            assert base.gathers(base.Config(weight_norm=norm)) is gathers


@pytest.mark.parametrize(
    ("config", "wrong", "values"),
    [
        (CrossEntropy.Config, "label_smoothing", (-0.1, 1.0, float("nan"))),
        (LogitAdjust.Config, "tau", (-0.1, float("inf"))),
        (Focal.Config, "gamma", (-1.0,)),
        (Focal.Config, "form", ("binary",)),
        (ClassBalanced.Config, "beta", (1.0, -0.1)),
        (ClassBalanced.Config, "drw_start", (1.0,)),
        (ClassBalanced.Config, "focal_gamma", (-1.0,)),
        (ClassBalanced.Config, "weight_norm", ("sum",)),
        (Ldam.Config, "max_margin", (-0.1, 2.5)),
        (Ldam.Config, "scale", (0.0,)),
        (Ldam.Config, "drw_start", (-0.1,)),
    ],
)
def test_options_out_of_range(config: type, wrong: str, values: tuple[object, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{wrong}"):
            config(**{wrong: value})
