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

from ltcore.contracts import harness, losses
from ltcore.objective.objective import Objective

RAGGED = harness.ragged()
LEARNED_RADII = ("dro+learned", "dro+learned-layers")


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


@every_row(
    dict.fromkeys(LEARNED_RADII, "the code that they reproduce pairs radii with samples by their place in the batch")
)
def test_permuting_the_batch_changes_nothing(row: tuple[str, str]) -> None:
    losses.permuting_the_batch_changes_nothing(row)


@every_row(
    {
        **dict.fromkeys(LEARNED_RADII, "the code that they reproduce pairs radii with samples sorted by class number"),
        "sade+order": "the code that it reproduces puts classes with equal counts in the order of their numbers",
    }
)
def test_renumbering_the_classes_changes_nothing(row: tuple[str, str]) -> None:
    losses.renumbering_the_classes_changes_nothing(row)


def test_twice_is_the_same_and_leaves_memories_alone(row: tuple[str, str]) -> None:
    losses.twice_is_the_same_and_leaves_memories_alone(row)


def test_extreme_logits(row: tuple[str, str]) -> None:
    losses.extreme_logits(row)


def test_zero_features(row: tuple[str, str]) -> None:
    losses.zero_features(row)


def test_tiny_batches(row: tuple[str, str]) -> None:
    losses.tiny_batches(row)


def test_before_anything_is_remembered(row: tuple[str, str]) -> None:
    losses.before_anything_is_remembered(row)


def test_classes_that_never_came(row: tuple[str, str]) -> None:
    losses.classes_that_never_came(row)


@pytest.mark.parametrize("what", ["zeros", "extreme logits"])
def test_extremes_that_are_remembered(row: tuple[str, str], what: str) -> None:
    losses.extremes_that_are_remembered(row, what)


@every_row(
    {
        "focal+detach": "its factor is a constant for the gradient, but not for the value",
        "lff": "its weights are constants for the gradient, but not for the value",
    }
)
def test_gradient_is_that_of_the_value(row: tuple[str, str]) -> None:
    losses.gradient_is_that_of_the_value(row)


def test_half_precision_input_gives_a_float32_loss(row: tuple[str, str]) -> None:
    losses.half_precision_input_gives_a_float32_loss(row)


def test_float32_agrees_with_float64(row: tuple[str, str]) -> None:
    losses.float32_agrees_with_float64(row)


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
