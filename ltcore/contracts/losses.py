"""What base losses and terms promise, for a row ('base' or 'term', name); a term is checked over balanced softmax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.contracts import harness
from ltcore.contracts.expect import expect, raises
from ltcore.objective.interface import LossContext
from ltcore.objective.objective import Objective
from ltcore.objective.registry import TERMS

Row = tuple[str, str]
RAGGED = harness.ragged()


def floating(out: ModelOutput, change: Callable[[str, Tensor], Tensor]) -> ModelOutput:
    """Applies ``change(name, tensor)`` to every field that there is, ready to be differentiated."""
    changed = {n: change(n, t.detach()).requires_grad_(t.requires_grad) for n, t in harness.tensors(out).items()}
    return harness.with_tensors(out, changed)


def filled(row: Row) -> Objective:
    """Builds the row's objective, with memories that two toy epochs have filled."""
    return harness.fill(harness.build_row(*row))


def expect_finite(result: harness.Result) -> None:
    """Refuses a loss, part or gradient that is not finite."""
    for name, value in {"loss": result.loss, **result.parts}.items():
        expect(bool(value.isfinite()), f"{name} is {float(value)}")
    for name, grad in result.grads.items():
        expect(bool(grad.isfinite().all()), f"the gradient of {name} is not finite")


def permuting_the_batch_changes_nothing(row: Row) -> None:
    """Tells whether loss and gradients follow the samples, in any order of the batch."""
    objective = filled(row)
    order_B = torch.randperm(len(RAGGED), generator=torch.Generator().manual_seed(3))
    plain, permuted = harness.run(objective, RAGGED), harness.run(objective, RAGGED[order_B])
    harness.assert_close(permuted.loss, plain.loss)
    torch.testing.assert_close(permuted.parts, plain.parts, rtol=1e-9, atol=1e-9)
    parameters = dict(objective.named_parameters())
    for name, grad in plain.grads.items():
        harness.assert_close(permuted.grads[name], grad if name in parameters else grad[order_B])


def renumbering_the_classes_changes_nothing(row: Row) -> None:
    """Tells whether the numbers of the classes mean nothing."""
    objective, order_C = filled(row), torch.randperm(harness.CLASSES, generator=torch.Generator().manual_seed(1))
    renumbered = harness.fill(harness.build_row(*row, order_C), order_C)
    plain, other = harness.run(objective, RAGGED), harness.run(renumbered, RAGGED, order_C)
    harness.assert_close(other.loss, plain.loss)
    torch.testing.assert_close(other.parts, plain.parts, rtol=1e-9, atol=1e-9)
    for name, tensor in harness.tensors(harness.output_of(objective, RAGGED)).items():
        if tensor.requires_grad:
            grad = other.grads[name]
            harness.assert_close(grad[..., order_C] if name.endswith("logits_BC") else grad, plain.grads[name])


def _state(objective: Objective) -> dict[str, Tensor]:
    return {
        f"{memory}/{name}": tensor.clone()
        for memory, held in objective.memories().items()
        for name, tensor in (held.published() | held.pending()).items()
    }


def twice_is_the_same_and_leaves_memories_alone(row: Row) -> None:
    """Tells whether the loss is pure: the same number again, and no memory written."""
    objective = filled(row)
    before, first = _state(objective), harness.run(objective, RAGGED)
    second, after = harness.run(objective, RAGGED), _state(objective)
    expect(torch.equal(first.loss, second.loss) and first.parts == second.parts, "the second call gives another number")
    for name, grad in first.grads.items():
        expect(torch.equal(grad, second.grads[name]), f"the second call gives another gradient of {name}")
    expect(all(torch.equal(before[name], after[name]) for name in before), "the loss writes into a memory")


def extreme_logits(row: Row) -> None:
    """Tells whether logits of 10,000 give a finite loss and gradient in float64 and float32."""
    objective = filled(row)
    out = harness.output_of(objective, RAGGED)
    extreme = floating(out, lambda n, t: t.sign() * 1e4 if n.endswith("logits_BC") else t)
    for dtype in (torch.float64, torch.float32):
        inputs = floating(extreme, lambda _, t, dtype=dtype: t.to(dtype))  # type: ignore[misc]
        expect_finite(harness.evaluate(objective.to(dtype), inputs, harness.batch_of(RAGGED)))


def zero_features(row: Row) -> None:
    """Tells whether zeros everywhere give a finite loss and gradient."""
    objective = filled(row)
    out = floating(harness.output_of(objective, RAGGED), lambda _, t: torch.zeros_like(t))
    expect_finite(harness.evaluate(objective, out, harness.batch_of(RAGGED)))


TINY = {"head": [5], "tail": [71], "one class": [0, 1, 2], "two singletons": [70, 71]}


def tiny_batches(row: Row) -> None:
    """Tells whether batches of one to three samples give a finite loss and gradient."""
    objective = filled(row)
    for index in TINY.values():
        expect_finite(harness.run(objective, torch.tensor(index)))


def before_anything_is_remembered(row: Row) -> None:
    """Tells whether the first step of a run gives a finite loss and gradient."""
    expect_finite(harness.run(harness.build_row(*row), RAGGED))


def classes_that_never_came(row: Row) -> None:
    """Tells whether memories that know two of twelve classes are enough for a batch with others."""
    objective = harness.fill(harness.build_row(*row), samples=20)
    expect_finite(harness.run(objective, RAGGED))
    expect_finite(harness.run(objective, RAGGED[-4:]))


def extremes_that_are_remembered(row: Row, what: str = "zeros") -> None:
    """Tells whether zeros, or extreme logits, in what was observed leave the loss finite."""

    def change(name: str, tensor: Tensor) -> Tensor:
        if what == "zeros":
            return torch.zeros_like(tensor)
        return tensor.sign() * 1e4 if name.endswith("logits_BC") else tensor

    expect_finite(harness.run(harness.fill(harness.build_row(*row), change=change), RAGGED))


def gradient_is_that_of_the_value(row: Row) -> None:
    """Tells whether the gradient is that of the loss, by finite differences."""
    objective, small = filled(row), RAGGED[:5]
    out, batch = harness.output_of(objective, small), harness.batch_of(small)
    inputs = {name: tensor for name, tensor in harness.tensors(out).items() if tensor.requires_grad}

    def loss(*values: Tensor) -> Tensor:
        changed = harness.with_tensors(out, dict(zip(inputs, values, strict=False)))
        return objective(changed, batch, harness.PROGRESS).loss

    torch.autograd.gradcheck(loss, (*inputs.values(), *objective.parameters()), check_undefined_grad=False)


def half_precision_input_gives_a_float32_loss(row: Row) -> None:
    """Tells whether bfloat16 outputs of the network give a float32 loss that is nearly the same."""
    objective, batch = filled(row).float(), harness.batch_of(RAGGED)
    half = floating(harness.output_of(objective, RAGGED), lambda _, t: t.bfloat16())
    full = floating(half, lambda _, t: t.float())  # the same numbers: only the arithmetic may differ
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(half, batch, harness.PROGRESS).loss
    expect(loss.dtype == torch.float32, f"the loss is {loss.dtype}: compute in float32, as by logits.float()")
    torch.testing.assert_close(loss, objective(full, batch, harness.PROGRESS).loss, rtol=1e-2, atol=1e-2)


def float32_agrees_with_float64(row: Row) -> None:
    """Tells whether float32 gives the loss of float64 to 1e-5."""
    objective = filled(row)
    exact = harness.run(objective, RAGGED)
    out = floating(harness.output_of(objective, RAGGED, 7), lambda _, t: t.float())
    loss = objective.float()(out, harness.batch_of(RAGGED), harness.PROGRESS).loss
    expect(loss.dtype == torch.float32, f"the loss is {loss.dtype}")
    torch.testing.assert_close(loss.double(), exact.loss, rtol=1e-5, atol=1e-5)


def a_saved_memory_goes_on_alike(row: Row) -> None:
    """Tells whether memories that are saved and loaded give the same loss, now and after another epoch."""
    objective, restored = filled(row), harness.build_row(*row)
    for name, memory in restored.memories().items():
        saved = harness.copies(objective.memories()[name])
        memory.load(saved[0], [saved[1]])
    restored.load_state_dict(objective.state_dict())
    for _ in range(2):
        same = torch.equal(harness.run(restored, RAGGED).loss, harness.run(objective, RAGGED).loss)
        expect(same, "the loss is another one after the memories were saved and loaded")
        for each in (restored, objective):
            harness.fill(each, merges=(0.95,))


COMMON: tuple[Callable[[Row], None], ...] = (
    permuting_the_batch_changes_nothing,
    renumbering_the_classes_changes_nothing,
    twice_is_the_same_and_leaves_memories_alone,
    extreme_logits,
    zero_features,
    tiny_batches,
    before_anything_is_remembered,
    classes_that_never_came,
    extremes_that_are_remembered,
    gradient_is_that_of_the_value,
    half_precision_input_gives_a_float32_loss,
    float32_agrees_with_float64,
    a_saved_memory_goes_on_alike,
)
"""Of base losses and of terms."""


# ---- base losses


def per_sample(objective: Objective, index_B: Tensor) -> Tensor:
    """Returns the base losses [B], as the objective would call for them."""
    prior_C = objective.stats.log_prior_C("dataset", torch.float64)
    ctx = LossContext(objective.stats, prior_C, harness.PROGRESS, objective._named["base"])
    loss_B: Tensor = objective.base(harness.output_of(objective, index_B), harness.batch_of(index_B).labels_B, ctx)
    return loss_B


def one_number_per_sample(row: Row) -> None:
    """Tells whether the loss has one finite number for each sample, without reduction."""
    loss_B = per_sample(filled(row), RAGGED)
    expect(loss_B.shape == (len(RAGGED),), f"the shape is {tuple(loss_B.shape)}, expected [B]: use reduction='none'")
    expect(bool(loss_B.isfinite().all()), "a loss is not finite")


def loss_is_the_mean_over_samples(row: Row) -> None:
    """Tells whether the objective is the mean of the losses of the samples."""
    objective = filled(row)
    result = objective(harness.output_of(objective, RAGGED), harness.batch_of(RAGGED), harness.PROGRESS)
    harness.assert_close(result.loss, per_sample(objective, RAGGED).mean())
    harness.assert_close(result.parts["base"], result.loss.detach())


def permuting_the_batch_permutes_the_losses(row: Row) -> None:
    """Tells whether each sample keeps its loss in another order of the batch."""
    objective, order_B = filled(row), torch.randperm(12, generator=torch.Generator().manual_seed(3))
    harness.assert_close(per_sample(objective, RAGGED[order_B]), per_sample(objective, RAGGED)[order_B])


def a_class_without_training_images(row: Row) -> None:
    """Tells whether a class without training images leaves loss and gradient finite."""
    counts_C = torch.tensor([*harness.COUNTS[:-1], 0])
    stats = replace(harness.stats(), counts_C=counts_C)
    objective = Objective(harness.objective_config(row[1]), stats, harness.DIMS, seed=0).double()
    harness.fill(objective, samples=71)
    expect_finite(harness.run(objective, RAGGED[:-1]))


BASE: tuple[Callable[[Row], None], ...] = (
    one_number_per_sample,
    loss_is_the_mean_over_samples,
    permuting_the_batch_permutes_the_losses,
    a_class_without_training_images,
)


# ---- terms


def before_its_start_the_base_is_bitwise_unchanged(row: Row) -> None:
    """Tells whether a term does nothing before its ``start``."""
    key = harness.key_of(row[1])
    base = harness.build("balanced_softmax")
    late = harness.fill(harness.build("balanced_softmax", **{key: harness.term_config(row[1], start=0.5)}))
    out, batch = harness.output_of(late, RAGGED), harness.batch_of(RAGGED)
    plain, other = (harness.evaluate(each, out, batch, progress=0.49) for each in (base, late))
    expect(torch.equal(other.loss, plain.loss), "the loss is another one before the term starts")
    expect(
        torch.equal(other.grads["logits_BC"], plain.grads["logits_BC"]), "the gradient is another one before it starts"
    )


def its_part_enters_with_its_weight(row: Row) -> None:
    """Tells whether the penalty is not zero and is multiplied by ``weight`` outside of the term."""
    key = harness.key_of(row[1])

    def parts(weight: float) -> tuple[float, float]:
        objective = harness.fill(harness.build("balanced_softmax", **{key: harness.term_config(row[1], weight=weight)}))
        result = objective(harness.output_of(objective, RAGGED, 7), harness.batch_of(RAGGED), harness.PROGRESS)
        return float(result.loss.detach()), float(result.parts[key])

    (loss_1, part_1), (loss_3, part_3) = parts(1.0), parts(3.0)
    expect(
        part_1 == part_3 != 0, f"the penalty is {part_1} with weight 1 and {part_3} with weight 3, expected one, not 0"
    )
    expect(abs(loss_3 - loss_1 - 2 * part_1) <= 1e-9 * abs(part_1) + 1e-12, "weight does not multiply the penalty")


def weight_and_start_are_checked(row: Row) -> None:
    """Tells whether ``Config`` refuses a weight or start out of range, as ``TermConfig`` does."""
    config = TERMS[harness.key_of(row[1])].build.Config
    for wrong in ({"weight": -1.0}, {"weight": float("nan")}, {"start": 1.0}, {"start": -0.1}):
        ((field, value),) = wrong.items()
        expect(raises(ValueError, field, partial(config, **wrong)), f"{field}={value} is not refused")


def what_changes_class_shares_refuses_sampling(row: Row) -> None:
    """Tells whether a term that changes the shares of classes refuses ``train.sampling``, and no other one does."""
    key, cfg = harness.key_of(row[1]), harness.term_config(row[1])
    objective = harness.fill(harness.build("balanced_softmax", **{key: cfg}))
    labels_N = harness.batch_of(torch.arange(harness.SAMPLES)).labels_B
    term: Any = objective.terms[key]
    memories = objective._named[key]
    changes = term.class_shares(memories) is not None or term.draws(memories, labels_N) is not None
    expect(
        bool(TERMS[key].build.sampling_refusal(cfg)) == changes, "sampling_refusal contradicts class_shares and draws"
    )


TERM: tuple[Callable[[Row], None], ...] = (
    before_its_start_the_base_is_bitwise_unchanged,
    its_part_enters_with_its_weight,
    weight_and_start_are_checked,
    what_changes_class_shares_refuses_sampling,
)
