"""What every method of stage 2 promises: it knows no order of the samples, and stays finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.config.schema import RunConfig
from ltcore.contracts.expect import expect
from ltcore.contracts.harness import CLASSES, COUNTS, FEATURES, SAMPLES, stats
from ltcore.errors import ConfigError
from ltcore.models.heads import HEADS, TdeConfig
from ltcore.objective.registry import STAGE2
from ltcore.objective.stage2.method import FeatureSet, Trained, expert_logits
from ltcore.rng import generator

EXPERTS = 2
LABELS_N = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(COUNTS))
ORDER_C = torch.randperm(CLASSES, generator=generator(0, "new numbers"))
Row = tuple[str, str]
"""Method and kind of classifier."""


def rows_of(name: str) -> list[Row]:
    """Returns the method with each kind of classifier that it goes with."""
    return [(name, head) for head in HEADS if _goes(name, head)]


def _goes(name: str, head: str) -> bool:
    try:
        RunConfig(name="stage2").replace({"model.head": head, "stage2.method": name})
    except ConfigError:
        return False
    return True


def features() -> Tensor:
    """Returns float32 [N, E D] that are zero or positive, as pooled features are."""
    return torch.randn(SAMPLES, EXPERTS * FEATURES, generator=generator(0, "features")).relu()


def build(name: str, kind: str, order_C: Tensor | None = None) -> Any:
    """Builds the method with its defaults on two toy classifiers; ``order_C[c]`` is the new number of class c."""
    build_row, cfg = STAGE2[name].build, STAGE2[name].build.Config()
    heads = nn.ModuleList(
        HEADS[build_row.result_head(cfg) or kind].build(FEATURES, CLASSES, 16.0, TdeConfig()) for _ in range(EXPERTS)
    )
    for number, (_, parameter) in enumerate(heads.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator(number, "stage 1"))
        parameter.data.copy_(drawn if order_C is None else torch.zeros_like(drawn).index_copy(0, order_C, drawn))
    return build_row(cfg, heads, stats(order_C), 0)


def rounds(method: Any, features_ND: Tensor, labels_N: Tensor, steps: int = 4) -> nn.ModuleList:
    """Makes a few steps on the whole set, or every computed round, and returns the heads."""
    heads: nn.ModuleList = method.heads
    if not isinstance(method, Trained):
        for index in range(method.rounds(method.cfg)):
            method.solve_(index, FeatureSet(features_ND, labels_N))
        return heads
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=method.cfg.lr)
    for _ in range(steps):
        optimizer.zero_grad()
        method(features_ND.float(), labels_N).backward()
        optimizer.step()
        method.project_()
    method.export_()
    return heads


def logits(heads: nn.ModuleList, features_ND: Tensor) -> Tensor:
    """Returns the logits [N, E, C] of the heads."""
    return expert_logits(heads, features_ND.float()).detach()


def order_of_samples_means_nothing(row: Row) -> None:
    """Tells whether the result does not depend on the order of the samples."""
    order_N = torch.randperm(SAMPLES, generator=generator(0, "order"))
    a = rounds(build(*row), features(), LABELS_N)
    b = rounds(build(*row), features()[order_N], LABELS_N[order_N])
    torch.testing.assert_close(logits(a, features()), logits(b, features()), rtol=1e-4, atol=1e-4)


def numbers_of_classes_mean_nothing(row: Row) -> None:
    """Tells whether the result does not depend on the numbers of the classes.

    New classifiers, which are drawn by number, have nothing to be compared by.
    """
    first, renumbered = build(*row), build(*row, ORDER_C)
    before = logits(first.heads, features()), logits(renumbered.heads, features())[..., ORDER_C]
    if not torch.allclose(*before, rtol=1e-4, atol=1e-4):
        return
    a = rounds(first, features(), LABELS_N)
    b = rounds(renumbered, features(), ORDER_C[LABELS_N])
    torch.testing.assert_close(logits(a, features()), logits(b, features())[..., ORDER_C], rtol=1e-4, atol=1e-4)


def zero_and_huge_features_stay_finite(row: Row) -> None:
    """Tells whether classifiers stay finite on features of 0 and of 10,000."""
    for scale in (0.0, 1e4):
        heads = rounds(build(*row), scale * features(), LABELS_N, steps=1)
        for name, parameter in heads.named_parameters():
            expect(bool(parameter.isfinite().all()), f"{name} is not finite on features times {scale:g}")


def half_precision_features_give_nearly_the_same(row: Row) -> None:
    """Tells whether float16 features give nearly the same classifiers."""
    a = rounds(build(*row), features(), LABELS_N)
    b = rounds(build(*row), features().half(), LABELS_N)
    torch.testing.assert_close(logits(a, features()), logits(b, features()), rtol=1e-2, atol=2e-2)


CONTRACTS: tuple[Callable[[Row], None], ...] = (
    order_of_samples_means_nothing,
    numbers_of_classes_mean_nothing,
    zero_and_huge_features_stay_finite,
    half_precision_features_give_nearly_the_same,
)
