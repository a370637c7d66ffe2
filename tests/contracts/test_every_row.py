"""What base losses and terms promise alike, for each row of the registry (a term over balanced softmax)."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

from ltcore.batch import ModelOutput
from ltcore.objective.objective import Objective
from tests.contracts import harness

RAGGED = harness.ragged()


@pytest.fixture(params=harness.ROWS, ids=lambda row: "-".join(row))
def row(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


def every_row(excused: dict[str, str]) -> pytest.MarkDecorator:
    """All rows. Those that are excused, by name, must fail, for the reason that is given."""
    failures = (AssertionError, GradcheckError)
    marks = {name: pytest.mark.xfail(strict=True, raises=failures, reason=why) for name, why in excused.items()}
    params = [pytest.param(row, marks=marks.get(row[1], ()), id="-".join(row)) for row in harness.ROWS]
    return pytest.mark.parametrize("row", params, indirect=True)


@pytest.fixture
def objective(row: tuple[str, str]) -> Objective:
    return harness.fill(harness.build_row(*row))


def floating(out: ModelOutput, change: Any) -> ModelOutput:
    """``change(name, tensor)`` applied to every field that there is, ready to be differentiated."""
    changed = {n: change(n, t.detach()).requires_grad_(t.requires_grad) for n, t in harness.tensors(out).items()}
    return harness.with_tensors(out, changed)


def assert_finite(result: harness.Result) -> None:
    assert all(value.isfinite() for value in (result.loss, *result.parts.values()))
    assert all(grad.isfinite().all() for grad in result.grads.values())


@every_row({"dro+learned": "the code that it reproduces pairs radii with samples by their place in the batch"})
def test_permuting_the_batch_changes_nothing(objective: Objective) -> None:
    order_B = torch.randperm(len(RAGGED), generator=torch.Generator().manual_seed(3))
    plain, permuted = harness.run(objective, RAGGED), harness.run(objective, RAGGED[order_B])
    harness.assert_close(permuted.loss, plain.loss)
    torch.testing.assert_close(permuted.parts, plain.parts, rtol=1e-9, atol=1e-9)
    parameters = dict(objective.named_parameters())
    for name, grad in plain.grads.items():
        harness.assert_close(permuted.grads[name], grad if name in parameters else grad[order_B])


@every_row(
    {
        "dro+learned": "the code that it reproduces pairs radii with samples sorted by class number",
        "sade+order": "the code that it reproduces puts classes with equal counts in the order of their numbers",
    }
)
def test_renumbering_the_classes_changes_nothing(row: tuple[str, str], objective: Objective) -> None:
    order_C = torch.randperm(harness.CLASSES, generator=torch.Generator().manual_seed(1))
    renumbered = harness.fill(harness.build_row(*row, order_C), order_C)
    plain, other = harness.run(objective, RAGGED), harness.run(renumbered, RAGGED, order_C)
    harness.assert_close(other.loss, plain.loss)
    torch.testing.assert_close(other.parts, plain.parts, rtol=1e-9, atol=1e-9)
    for name, tensor in harness.tensors(harness.output_of(objective, RAGGED)).items():
        if tensor.requires_grad:
            grad = other.grads[name]
            harness.assert_close(grad[..., order_C] if name.endswith("logits_BC") else grad, plain.grads[name])


def test_twice_is_the_same_and_leaves_memories_alone(objective: Objective) -> None:
    def state() -> dict[str, torch.Tensor]:
        return {
            f"{memory}/{name}": tensor.clone()
            for memory, held in objective.memories().items()
            for name, tensor in (held.published() | held.pending()).items()
        }

    before, first = state(), harness.run(objective, RAGGED)
    second, after = harness.run(objective, RAGGED), state()
    assert torch.equal(first.loss, second.loss) and first.parts == second.parts
    assert all(torch.equal(grad, second.grads[name]) for name, grad in first.grads.items())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_extreme_logits(objective: Objective) -> None:
    out = harness.output_of(objective, RAGGED)
    extreme = floating(out, lambda n, t: t.sign() * 1e4 if n.endswith("logits_BC") else t)
    for dtype in (torch.float64, torch.float32):
        inputs = floating(extreme, lambda n, t, dtype=dtype: t.to(dtype))
        assert_finite(harness.evaluate(objective.to(dtype), inputs, harness.batch_of(RAGGED)))


def test_zero_features(objective: Objective) -> None:
    out = floating(harness.output_of(objective, RAGGED), lambda n, t: torch.zeros_like(t))
    assert_finite(harness.evaluate(objective, out, harness.batch_of(RAGGED)))


@pytest.mark.parametrize("index", [[5], [71], [0, 1, 2], [70, 71]], ids=["head", "tail", "one class", "two singletons"])
def test_tiny_batches(objective: Objective, index: list[int]) -> None:
    assert_finite(harness.run(objective, torch.tensor(index)))


def test_before_anything_is_remembered(row: tuple[str, str]) -> None:
    assert_finite(harness.run(harness.build_row(*row), RAGGED))


def test_classes_that_never_came(row: tuple[str, str]) -> None:
    """Memories that know two classes of twelve, and a batch with others, or of others alone."""
    objective = harness.fill(harness.build_row(*row), samples=20)
    assert_finite(harness.run(objective, RAGGED))
    assert_finite(harness.run(objective, RAGGED[-4:]))


@pytest.mark.parametrize("what", ["zeros", "extreme logits"])
def test_extremes_that_are_remembered(row: tuple[str, str], what: str) -> None:
    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if what == "zeros":
            return torch.zeros_like(tensor)
        return tensor.sign() * 1e4 if name.endswith("logits_BC") else tensor

    objective = harness.fill(harness.build_row(*row), change=change)
    assert_finite(harness.run(objective, RAGGED))


@every_row(
    {
        "focal+detach": "its factor is a constant for the gradient, but not for the value",
        "lff": "its weights are constants for the gradient, but not for the value",
    }
)
def test_gradient_is_that_of_the_value(objective: Objective) -> None:
    small = RAGGED[:5]
    out, batch = harness.output_of(objective, small), harness.batch_of(small)
    inputs = {name: tensor for name, tensor in harness.tensors(out).items() if tensor.requires_grad}

    def loss(*values: torch.Tensor) -> torch.Tensor:
        changed = harness.with_tensors(out, dict(zip(inputs, values, strict=False)))
        return objective(changed, batch, harness.PROGRESS).loss

    checked = (*inputs.values(), *objective.parameters())
    assert torch.autograd.gradcheck(loss, checked, check_undefined_grad=False)


def test_half_precision_input_gives_a_float32_loss(objective: Objective) -> None:
    objective, batch = objective.float(), harness.batch_of(RAGGED)
    half = floating(harness.output_of(objective, RAGGED), lambda n, t: t.bfloat16())
    full = floating(half, lambda n, t: t.float())  # the same numbers: only the arithmetic may differ
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(half, batch, harness.PROGRESS).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, objective(full, batch, harness.PROGRESS).loss, rtol=1e-2, atol=1e-2)


def test_float32_agrees_with_float64(objective: Objective) -> None:
    exact = harness.run(objective, RAGGED)
    out = floating(harness.output_of(objective, RAGGED, 7), lambda n, t: t.float())
    loss = objective.float()(out, harness.batch_of(RAGGED), harness.PROGRESS).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact.loss, rtol=1e-5, atol=1e-5)


def test_restored_memories_give_the_same_loss(row: tuple[str, str], objective: Objective) -> None:
    restored = harness.build_row(*row)
    restored.load_state_dict(objective.state_dict())
    for name, memory in restored.memories().items():
        saved = objective.memories()[name]
        copies = [{n: t.clone() for n, t in held.items()} for held in (saved.published(), saved.pending())]
        memory.load(copies[0], [copies[1]])
    assert torch.equal(harness.run(restored, RAGGED).loss, harness.run(objective, RAGGED).loss)
    merges = (0.95,)  # and they go on alike
    again = [harness.run(harness.fill(each, merges=merges), RAGGED).loss for each in (restored, objective)]
    assert torch.equal(*again)


def test_two_ranks_equal_one(row: tuple[str, str], objective: Objective, two_ranks: list[dict[str, Any]]) -> None:
    one, ranks = harness.run(objective, RAGGED), [rank["runs"]["-".join(row)] for rank in two_ranks]
    harness.assert_close((ranks[0]["loss"] + ranks[1]["loss"]) / 2, one.loss)
    means = {name: (ranks[0]["parts"][name] + ranks[1]["parts"][name]) / 2 for name in one.parts}
    torch.testing.assert_close(means, one.parts, rtol=1e-9, atol=1e-9)
    parameters = dict(objective.named_parameters())
    for name, grad in one.grads.items():  # DDP divides by the number of ranks
        mine = [rank["grads"][name] / 2 for rank in ranks]
        harness.assert_close(mine[0] + mine[1] if name in parameters else torch.cat(mine), grad)
    for memory, held in objective.memories().items():
        for name, tensor in held.published().items():
            for rank in ranks:
                harness.assert_close(rank["memories"][memory][name], tensor)


def test_source_and_options_are_documented(row: tuple[str, str]) -> None:
    build = harness.method(*row)
    module = sys.modules[build.__module__]
    assert "Source:" in (module.__doc__ or ""), f"{module.__name__}: name the paper and where this differs"
    body = ast.parse(textwrap.dedent(inspect.getsource(build.Config))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, following in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert documented, f"{build.__name__}.Config.{ast.unparse(statement.target)} has no docstring under it"


def test_no_device_and_no_synchronization_in_the_source(row: tuple[str, str]) -> None:
    build = harness.method(*row)
    source = inspect.getsource(sys.modules[build.__module__])
    assert ".cuda(" not in source
    assert ".item(" not in source
