"""Every base loss and term under torch.compile: one graph, the eager numbers, and no new graph for another progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ltcore.contracts import harness
from ltcore.contracts.harness import Result
from ltcore.objective.objective import Objective

QUICK = [("base", name) for name in harness.BASES]
"""The defaults of the bases; terms, and the options of ``harness.VARIANTS``, take longer."""
GENERATED = 1e-12
"""Relative and absolute tolerance of generated code in float64, which sums in another order."""


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(row: tuple[str, str], backend: str) -> tuple[Result, Result]:
    """Eager and compiled. ``fullgraph`` raises where the graph would break."""
    objective = harness.fill(harness.build_row(*row))
    eager = harness.run(objective, harness.ragged())
    compiled: Callable[..., Any] = torch.compile(objective, fullgraph=True, backend=backend)
    out, batch = harness.output_of(objective, harness.ragged(), 7), harness.batch_of(harness.ragged())
    wanted = {n: t for n, t in (harness.tensors(out) | dict(objective.named_parameters())).items() if t.requires_grad}
    found = compiled(out, batch, harness.PROGRESS)
    grads = torch.autograd.grad(found.loss, list(wanted.values()), allow_unused=True)
    named = {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(wanted.items(), grads, strict=True)}
    return eager, Result(found.loss.detach(), named, found.parts)


def assert_same(eager: Result, found: Result, tolerance: float) -> None:
    assert eager.parts.keys() == found.parts.keys()
    for a, b in [(eager.loss, found.loss), *((eager.parts[name], found.parts[name]) for name in eager.parts)]:
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for name, grad in eager.grads.items():
        torch.testing.assert_close(grad, found.grads[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if row in QUICK else pytest.mark.slow) for row in harness.ROWS],
    ids="-".join,
)
def test_one_graph_with_the_eager_bits(row: tuple[str, str]) -> None:
    assert_same(*results(row, "aot_eager"), tolerance=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [("base", "balanced_softmax"), ("base", "focal"), ("base", "paco"), ("term", "dro")], ids="-".join
)
def test_generated_code(row: tuple[str, str]) -> None:
    assert_same(*results(row, "inductor"), tolerance=GENERATED)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "graphs"), [(("base", "ldam"), 3), (("term", "dro"), 2), (("term", "ifl"), 3)])
def test_progress_is_a_variable_of_the_graph(row: tuple[str, str], graphs: int) -> None:
    """One graph for the first step, one for the second and those like it, one more for each later start or milestone."""
    objective: Objective = harness.fill(harness.build_row(*row))
    made = CompileCounterWithBackend("eager")
    compiled: Callable[..., Any] = torch.compile(objective, fullgraph=True, backend=made)
    batch = harness.batch_of(harness.ragged())
    for step in range(12):
        out = harness.output_of(objective, harness.ragged(), step)
        assert torch.equal(compiled(out, batch, step / 12).loss, objective(out, batch, step / 12).loss)
        objective.observe(out, batch, step / 12)
    assert made.frame_count == graphs
