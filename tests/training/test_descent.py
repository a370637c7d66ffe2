"""One step: order of unscaling, clipping and stepping, and what an overflow in float16 does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltcore.batch import ModelOutput
from ltcore.config.optim import OptimConfig
from ltcore.errors import ConfigError, NumericError
from ltcore.training.descent import Descent
from ltcore.training.hardware import choose_precision
from ltcore.training.monitor import LEAST_SCALE, MeanMetrics, NonFiniteGuard

CPU = torch.device("cpu")
CFG = OptimConfig(lr=0.5, momentum=0.9, weight_decay=0.0)


class Line(nn.Module):
    """Loss w * x, whose gradient is x; called like a training step."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, piece: Any, progress: float) -> tuple[Tensor, dict[str, Tensor], ModelOutput]:
        loss = (self.w * piece).sum()
        return loss, {"base": loss.detach()}, ModelOutput(logits_BC=piece, features_BD=piece)


def scaler(**options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", **{"init_scale": 1024.0, **options})


def steps(descent: Descent, *values: float) -> list[bool]:
    taken = []
    for value in values:
        pieces: list[Any] = [torch.tensor([value, 0.0])]
        taken.append(descent.descend(descent.module, pieces, 0.0)[2])
    return taken


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_is_that_of_sgd(scaled: bool) -> None:
    line = Line()
    descent = Descent(CFG, line, scaler() if scaled else None)
    assert steps(descent, 1.0, 1.0) == [True, True]
    assert line.w.tolist() == [pytest.approx(1 - 0.5 - 0.5 * 1.9), 1.0]
    assert descent.scales is scaled and descent.scale == (1024.0 if scaled else 1.0)


def test_the_rate_of_a_compiled_update_is_a_tensor_and_a_checkpoint_knows_nothing_of_it() -> None:
    """Here the compiler does nothing; the scaler asks the host in each step, so that its update stays as it is."""
    asked: list[Any] = []

    def compiler(update: Any) -> Any:
        asked.append(update)
        return update

    line, plain = Line(), Line()
    held, usual = Descent(CFG, line, compiler=compiler), Descent(CFG, plain)
    Descent(CFG, Line(), scaler(), compiler=compiler)
    assert len(asked) == 1
    for rate in (0.5, 0.25):
        held.set_lr(rate)
        usual.set_lr(rate)
        assert steps(held, 1.0) == steps(usual, 1.0) == [True]
    assert torch.equal(line.w, plain.w)
    state = held.state_dict()
    assert state["optimizer"]["param_groups"] == usual.state_dict()["optimizer"]["param_groups"]
    again = Descent(CFG, Line(), compiler=compiler)
    again.load_state_dict(state)
    (group,) = again.optimizer.param_groups
    assert isinstance(group["lr"], Tensor) and group["lr"] == 0.5, "its own rate, until the next is set"


def test_pieces_are_averaged() -> None:
    line = Line()
    pieces: list[Any] = [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 2.0])]
    total, outputs, taken = Descent(CFG, line).descend(line, pieces, 0.0)
    assert line.w.grad is not None and line.w.grad.tolist() == [2.0, 1.0]
    assert total["loss"] == 3.0 and total["base"] == 3.0 and len(outputs) == 2 and taken


@pytest.mark.parametrize("scaled", [False, True])
def test_the_norm_is_that_of_the_gradient_itself_not_of_the_scaled_one(scaled: bool) -> None:
    line = Line()
    descent = Descent(OptimConfig(lr=0.5, momentum=0.0, clip_norm=2.0), line, scaler() if scaled else None)
    steps(descent, 1.0)
    assert line.w.grad is not None and line.w.grad[0] == pytest.approx(1.0), "below the limit nothing changes"
    steps(descent, 40.0)
    assert line.w.grad[0] == pytest.approx(2.0, rel=1e-5)


def test_an_overflow_is_left_out_and_halves_the_scale() -> None:
    line = Line()
    descent = Descent(CFG, line, scaler())
    assert steps(descent, 1.0, float("inf"), float("nan")) == [True, False, False]
    assert line.w[0] == 0.5 and descent.scale == 256.0
    assert steps(descent, 1.0) == [True]
    assert line.w[0].item() == pytest.approx(0.5 - 0.5 * 1.9), "momentum knows nothing of the steps that were left out"


def test_the_scale_grows_after_good_steps_which_is_no_overflow() -> None:
    descent = Descent(CFG, Line(), scaler(growth_interval=2))
    assert steps(descent, 1.0, 1.0, 1.0, 1.0) == [True] * 4
    assert descent.scale == 4096.0


def test_without_a_scaler_nothing_is_left_out() -> None:
    line = Line()
    assert steps(Descent(CFG, line), float("inf")) == [True]
    assert not line.w.isfinite().all(), "the guard of the loop says so"


def test_scale_and_momentum_go_on_where_they_were() -> None:
    course = [1.0, float("inf"), 2.0, 3.0, 1.0]
    whole, cut = Line(), Line()
    descent = Descent(CFG, whole, scaler(growth_interval=2))
    steps(descent, *course)
    first = Descent(CFG, cut, scaler(growth_interval=2))
    steps(first, *course[:3])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Descent(CFG, cut, scaler(growth_interval=2))
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.scale == first.scale == 512.0
    steps(second, *course[3:])
    assert torch.equal(whole.w, cut.w) and second.state_dict()["scaler"] == descent.state_dict()["scaler"]


def test_options_of_the_groups_are_those_of_now() -> None:
    line = Line()
    first = Descent(CFG, line)
    steps(first, 1.0)
    second = Descent(OptimConfig(lr=0.1, momentum=0.5, weight_decay=0.3), line)
    second.load_state_dict(first.state_dict())
    (group,) = second.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.3)
    assert second.optimizer.state[line.w]["momentum_buffer"].tolist() == [1.0, 0.0]


def test_recomputation_counts_no_batch_twice() -> None:
    norm = nn.BatchNorm1d(2)
    descent = Descent(CFG, norm, recomputes=True)
    x = torch.randn(4, 2)
    loss = torch.utils.checkpoint.checkpoint(norm, x, use_reentrant=False).square().sum()
    descent.backward(loss)
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))


# ---- what the loop notes


def test_left_out_steps_are_no_error_until_the_scale_is_tiny(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path)
    guard.skipped(3, 2.0**-14)
    guard.check()
    with pytest.raises(
        NumericError, match=r"^Step 4: the gradient is not finite.* no checkpoint yet. Lower train.optim.lr"
    ):
        guard.skipped(4, LEAST_SCALE / 2)


def test_a_gradient_that_never_becomes_finite_ends_the_run(tmp_path: Path) -> None:
    descent, guard = Descent(CFG, Line(), torch.amp.GradScaler("cpu")), NonFiniteGuard(tmp_path)
    with pytest.raises(NumericError, match="Step 31: the gradient is not finite"):
        for step in range(1, 100):
            assert steps(descent, float("nan")) == [False]
            guard.skipped(step, descent.scale)


def test_the_means_of_no_step_are_none() -> None:
    assert MeanMetrics({}, {}, CPU).means() == {}


# ---- precision


def test_float16_is_for_gpus_and_is_never_chosen() -> None:
    with pytest.raises(ConfigError, match=r"train\.precision=fp16 is for GPUs, and this run is on the cpu\. Set"):
        choose_precision("fp16", CPU)
    assert choose_precision("fp16", torch.device("cuda")).autocast is torch.float16
    assert choose_precision("auto", CPU).autocast in (None, torch.bfloat16)


class Normed(Line):
    """Counts what it sees, as a batch norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(1))

    def forward(self, piece: Any, progress: float) -> tuple[Tensor, dict[str, Tensor], ModelOutput]:
        self.running_mean += piece.mean()
        return super().forward(piece, progress)


def test_a_step_that_is_left_out_leaves_statistics_as_they_were() -> None:
    net = Normed()
    descent = Descent(CFG, net, scaler())
    assert steps(descent, 2.0, float("inf")) == [True, False]
    assert net.running_mean.tolist() == [1.0]
