"""Base losses against closed forms and the authors' numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ltcore.objective.bases.balanced_softmax import BalancedSoftmax
from ltcore.objective.bases.cross_entropy import CrossEntropy
from ltcore.objective.bases.logit_adjust import LogitAdjust, posthoc_logits
from ltcore.objective.term import Base
from ltcore.stats import ClassStats
from tests.objective import toy

COUNTS = (7, 2, 1)  # prior (.7, .2, .1)
LABELS = torch.tensor([0, 1, 2])
LOGITS = toy.f64([[1, 0, -1]] * 3)


def losses(
    base: type[Base], logits_BC: Tensor, stats: ClassStats, labels: Tensor = LABELS, **options: object
) -> Tensor:
    loss = base(base.Config(**options), stats, toy.make_dims(1, stats))  # type: ignore[attr-defined]
    return loss(toy.make_output(logits_BC), labels, toy.make_context(stats))


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


def test_balanced_softmax_equals_the_authors() -> None:
    golden = toy.golden()
    logits = golden["logits"].clone().requires_grad_()
    loss = losses(BalancedSoftmax, logits, toy.make_stats(golden["class_counts"]), golden["labels"]).mean()
    loss.backward()
    toy.assert_golden(loss, "balanced_softmax/loss")
    toy.assert_golden(logits.grad, "balanced_softmax/grad0")


@pytest.mark.parametrize(("config", "wrong"), [(CrossEntropy.Config, "label_smoothing"), (LogitAdjust.Config, "tau")])
def test_options_out_of_range(config: type, wrong: str) -> None:
    for value in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"^{wrong}"):
            config(**{wrong: value})
