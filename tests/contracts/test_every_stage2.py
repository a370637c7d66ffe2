"""What every method of stage 2 must keep: it knows no order of the batch, no numbering of the classes, and stays finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltcore.config.schema import RunConfig
from ltcore.errors import ConfigError
from ltcore.models.heads import HEADS, TdeConfig
from ltcore.objective.registry import STAGE2
from ltcore.objective.stage2.method import FeatureSet, Trained, expert_logits
from ltcore.rng import generator
from tests.contracts.harness import CLASSES, COUNTS, FEATURES, SAMPLES, stats

EXPERTS = 2
LABELS_N = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(COUNTS))
ORDER_C = torch.randperm(CLASSES, generator=generator(0, "new numbers"))


def goes(name: str, head: str) -> bool:
    try:
        RunConfig(name="stage2").replace({"model.head": head, "stage2.method": name})
    except ConfigError:
        return False
    return True


ROWS = [(name, head) for name in STAGE2 for head in HEADS if goes(name, head)]


def features() -> Tensor:
    """float32 [N, E D] that are zero or positive, as pooled features are."""
    return torch.randn(SAMPLES, EXPERTS * FEATURES, generator=generator(0, "features")).relu()


def build(name: str, kind: str, order_C: Tensor | None = None) -> Any:
    """The method with its defaults on two toy classifiers; ``order_C[c]`` is the new number of class c."""
    build_row, cfg = STAGE2[name].build, STAGE2[name].build.Config()
    heads = nn.ModuleList(
        HEADS[build_row.result_head(cfg) or kind].build(FEATURES, CLASSES, 16.0, TdeConfig()) for _ in range(EXPERTS)
    )
    for number, (_, parameter) in enumerate(heads.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator(number, "stage 1"))
        parameter.data.copy_(drawn if order_C is None else torch.zeros_like(drawn).index_copy(0, order_C, drawn))
    return build_row(cfg, heads, stats(order_C), 0)


def rounds(method: Any, features_ND: Tensor, labels_N: Tensor, steps: int = 4) -> nn.ModuleList:
    """A few steps on the whole set, or every computed round; returns the heads."""
    if not isinstance(method, Trained):
        for index in range(method.rounds(method.cfg)):
            method.solve_(index, FeatureSet(features_ND, labels_N))
        return method.heads
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=method.cfg.lr)
    for _ in range(steps):
        optimizer.zero_grad()
        method(features_ND.float(), labels_N).backward()
        optimizer.step()
        method.project_()
    method.export_()
    return method.heads


def logits(heads: nn.ModuleList, features_ND: Tensor) -> Tensor:
    return expert_logits(heads, features_ND.float()).detach()


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_the_order_of_the_samples_means_nothing(name: str, kind: str) -> None:
    order_N = torch.randperm(SAMPLES, generator=generator(0, "order"))
    a = rounds(build(name, kind), features(), LABELS_N)
    b = rounds(build(name, kind), features()[order_N], LABELS_N[order_N])
    torch.testing.assert_close(logits(a, features()), logits(b, features()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), [row for row in ROWS if row[0] != "crt"])
def test_the_numbers_of_the_classes_mean_nothing(name: str, kind: str) -> None:
    a = rounds(build(name, kind), features(), LABELS_N)
    b = rounds(build(name, kind, ORDER_C), features(), ORDER_C[LABELS_N])
    torch.testing.assert_close(logits(a, features()), logits(b, features())[..., ORDER_C], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), ROWS)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_zero_and_huge_features_stay_finite(name: str, kind: str, scale: float) -> None:
    heads = rounds(build(name, kind), scale * features(), LABELS_N, steps=1)
    assert all(bool(parameter.isfinite().all()) for parameter in heads.parameters())


@pytest.mark.parametrize(("name", "kind"), [row for row in ROWS if issubclass(STAGE2[row[0]].build, Trained)])
def test_one_sample_and_absent_classes_give_a_loss_and_a_gradient(name: str, kind: str) -> None:
    method = build(name, kind)
    loss = method(features()[:1], LABELS_N[:1])
    loss.backward()
    assert bool(loss.isfinite()) and loss.dtype in (torch.float32, torch.float64)
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_half_precision_features_give_nearly_the_same(name: str, kind: str) -> None:
    a = rounds(build(name, kind), features(), LABELS_N)
    b = rounds(build(name, kind), features().half(), LABELS_N)
    torch.testing.assert_close(logits(a, features()), logits(b, features()), rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize(("name", "kind"), [row for row in ROWS if issubclass(STAGE2[row[0]].build, Trained)])
def test_the_gradient_is_that_of_the_loss(name: str, kind: str) -> None:
    method = build(name, kind).double()
    learned = [p for p in method.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda *_: method(features().double(), LABELS_N), learned)
