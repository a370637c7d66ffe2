"""One optimizer step: backward passes, clipping, the step itself, and the loss scale of float16.

Gradients of float16 below 6e-8 are lost and those above 65504 overflow, so the loss is multiplied by a scale, by which the
gradients are divided before anything looks at them. Where one has overflowed, the step is left out and the scale halved; after
many good steps it is doubled (Micikevicius et al. 2018, arXiv:1710.03740).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.batch import Batch, ModelOutput
from ltcore.config.optim import OptimConfig
from ltcore.config.schema import TrainConfig
from ltcore.models.norm import running_stats
from ltcore.models.recompute import kept_running_stats
from ltcore.training.build import Components
from ltcore.training.compiled import update_compiler
from ltcore.training.optim import build_optimizer, clip_norm, hold_rates, set_lr
from ltcore.training.step import TrainStep, micro_batches


class Descent:
    """Lowers the loss of a module by its optimizer.

    Args:
        cfg: optimizer and limit of the gradient's norm.
        module: what is trained, not wrapped by DDP.
        scaler: of the loss, for float16.
        recomputes: whether the backward pass computes activations again; batch norms then must not count a batch twice.
        compiler: of the update, clipping included; None runs it as it is. Not with a scaler, which asks the host each time.
    """

    def __init__(
        self,
        cfg: OptimConfig,
        module: nn.Module,
        scaler: torch.amp.GradScaler | None = None,
        *,
        recomputes: bool = False,
        compiler: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self.optimizer = build_optimizer(cfg, module)
        self.module = module
        self._clip_norm = clip_norm(cfg, module)
        self._scaler = scaler
        self._recomputes = recomputes
        self._scale = 1.0 if scaler is None else scaler.get_scale()
        self._update = self._clip_and_step
        if compiler is not None and scaler is None:
            hold_rates(self.optimizer)
            self._update = compiler(self._clip_and_step)

    @property
    def scales(self) -> bool:
        """Tells whether the loss is scaled, so that steps may be left out."""
        return self._scaler is not None

    @property
    def scale(self) -> float:
        """Returns the factor on the next loss; 1 without a scaler."""
        return self._scale

    def set_lr(self, lr: float) -> None:
        """Sets the rate of the classifiers; that of every other group follows in its proportion."""
        set_lr(self.optimizer, lr)

    def descend(
        self, wrapped: nn.Module, pieces: Sequence[Batch], progress: float
    ) -> tuple[dict[str, Tensor], list[ModelOutput], bool]:
        """Makes one step on the mean loss of the equal pieces of a batch.

        ``wrapped`` is the module, possibly in DDP. Returns the loss and its parts, the output for each piece, and whether the
        step was taken, which is the same on all ranks.
        """
        self.zero_grad()
        stats = self._running_stats() if self.scales else []
        before = [value.clone() for value in stats]
        total: dict[str, Tensor] = {}
        outputs = []
        for piece in pieces:
            loss, values, out = wrapped(piece, progress)
            self.backward(loss / len(pieces))
            outputs.append(out)
            for name, value in {"loss": loss.detach(), **values}.items():
                total[name] = total.get(name, 0.0) + value / len(pieces)
        taken = self.step()
        if not taken:  # what overflowed may have been an activation, which batch norms have averaged
            for value, old in zip(stats, before, strict=True):
                value.copy_(old)
        return total, outputs, taken

    def _running_stats(self) -> list[Tensor]:
        """Returns the statistics that a forward changes, also those of the key encoder, which is no part of the module."""
        key = self.module.key if isinstance(self.module, TrainStep) else None
        return [*running_stats(self.module), *(running_stats(key.net) if key is not None else [])]

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss, times the scale."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        with kept_running_stats(self.module) if self._recomputes else contextlib.nullcontext():
            scaled.backward()

    def step(self) -> bool:
        """Clips the gradients and takes the step; tells whether it was taken, that is, whether no gradient overflowed."""
        if self._scaler is None:
            self._update()
            return True
        self._scaler.unscale_(self.optimizer)
        self._clip()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        before, self._scale = self._scale, self._scaler.get_scale()
        return self._scale >= before

    def _clip_and_step(self) -> None:
        self._clip()
        self.optimizer.step()

    def _clip(self) -> None:
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._clip_norm)

    def state_dict(self) -> dict[str, Any]:
        """Returns what ``load_state_dict`` restores."""
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])  # a compiled update holds it as a tensor
        return {"optimizer": optimizer, "scaler": None if self._scaler is None else self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores momentum and scale.

        The options of the groups stay those that the optimizer was built with: a population-based search changes weight
        decay, for example, when it continues a trial from a checkpoint.
        """
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update(own)
        if self._scaler is not None and state["scaler"] is not None:
            self._scaler.load_state_dict(state["scaler"])
            self._scale = self._scaler.get_scale()


def build_descent(cfg: TrainConfig, components: Components, device: torch.device) -> Descent:
    """Builds the descent of a run, with a scaler of the loss where its number format needs one."""
    half = components.precision.autocast is torch.float16
    scaler = torch.amp.GradScaler(device.type) if half else None
    compiler = update_compiler(cfg.compile)
    return Descent(cfg.optim, components.step, scaler, recomputes=cfg.grad_checkpointing, compiler=compiler)


def take_step(
    components: Components, descent: Descent, batch: Batch, progress: float, accumulate: int
) -> dict[str, Tensor]:
    """Trains on an augmented batch; memories and the average of the weights follow.

    Returns the loss and its parts; {} where the step was left out, which changes neither memories nor average.
    """
    step = components.step
    if step.key is not None:
        step.key.update(step.net)
    pieces = micro_batches(batch, accumulate)
    total, outputs, taken = descent.descend(components.wrapped, pieces, progress)
    if not taken:
        return {}
    for piece, out in zip(pieces, outputs, strict=True):
        step.objective.observe(out, piece, progress)
    if components.average:
        components.average.update(step.net)
    return total
