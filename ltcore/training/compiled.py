"""The training step as one compiled graph (``train.compile``): the same forward and loss in fewer and larger kernels.

What is compiled is the forward of ``TrainStep``, and with it its backward. Parameters, buffers and memories remain those of
the bare step, so that no name in a checkpoint changes. Where CUDA graphs are replayed, the update is compiled as well, in
graphs of its own, so that what a step launches itself is augmentation, memories and averages alone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.config.combinations import COMPILE
from ltcore.errors import ConfigError
from ltcore.storage import cache_root
from ltcore.text import duration
from ltcore.training.step import TrainStep

OFF, _, REDUCE_OVERHEAD = COMPILE

SAID_AFTER = 2
"""Calls that compile: the first, and the second, which makes the progress of training a variable of the graph."""

MOST_GRAPHS = 64
"""Graphs of the step before torch goes on without compiling. Starts and milestones of several terms need more than torch's 8."""

COMPILED = "TORCHINDUCTOR_CACHE_DIR"
"""Torch's variable for the folder of compiled code, by default one for temporary files; those of Ray's workers go with Ray."""
# At once: torch reads it when its first optimizer is made.
os.environ.setdefault(COMPILED, str(cache_root() / "compiled"))

_LOG = logging.getLogger("ltcore.training")


class CompiledStep(nn.Module):
    """Calls ``step`` compiled, and says once how long compiling took. A term that begins later compiles again.

    ``backend`` is torch.compile's.
    """

    def __init__(self, step: TrainStep, mode: str = "default", backend: str = "inductor") -> None:
        super().__init__()
        self.step = step
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        # an adapter with a norm of its own keeps tokens until its MLP has run, which nothing has to do again in the backward
        torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
        self._run: Callable[..., Any] = torch.compile(
            step.forward, backend=backend, mode=mode if backend == "inductor" else None
        )
        self._graphs = mode == REDUCE_OVERHEAD
        self._calls, self._seconds = 0, 0.0

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor], ModelOutput]:
        """Returns what ``TrainStep`` returns."""
        began = time.monotonic()
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        loss, parts, out = self._run(batch, progress)
        if self._graphs:  # whose next replay, that of the next step, writes into the same memory
            parts = {name: part.clone() for name, part in parts.items()}
            out = out.with_each(Tensor.clone)
        if self._calls < SAID_AFTER:
            self._note(time.monotonic() - began)
        return loss, parts, out

    def _note(self, seconds: float) -> None:
        self._calls, self._seconds = self._calls + 1, self._seconds + seconds
        if self._calls == SAID_AFTER and dist.rank() == 0:
            _LOG.warning("compiling the training step: %s", duration(self._seconds))


def compiled(step: TrainStep, mode: str, device: torch.device) -> nn.Module:
    """Returns what to call for a step: ``step`` itself with 'off', else compiled.

    Raises ConfigError where this machine cannot compile, or the mode is for another device.
    """
    check_compiles(mode, device)
    return step if mode == OFF else CompiledStep(step, mode)


def forget_compiled(mode: str) -> None:
    """Drops what a run compiled as ``mode`` says. To be called by the thread that ran it.

    Otherwise an equal run of the same process would go on with it: a trial has a thread of its own, and CUDA graphs belong to
    the memory and the thread of the run that recorded them. Nor does what was compiled then depend on earlier runs.
    """
    if mode != OFF:
        torch.compiler.reset()


def update_compiler(mode: str) -> Callable[[Callable[[], None]], Callable[[], None]] | None:
    """Returns what compiles an optimizer's update; None where it runs as it is.

    Only replays are worth it: torch updates all parameters in a few kernels also by itself, but launches them from Python.
    """
    return partial(torch.compile, mode=mode) if mode == REDUCE_OVERHEAD else None


def check_compiles(mode: str, device: torch.device) -> None:
    """Raises ConfigError where this machine cannot compile a step for the device as ``mode`` says."""
    if mode == OFF:
        return
    if mode == REDUCE_OVERHEAD and device.type != "cuda":
        raise ConfigError(
            f"train.compile={mode} replays CUDA graphs, and this run computes on {device.type}. Set train.compile=default."
        )
    if (missing := _missing(device)) is not None:
        raise ConfigError(f"train.compile={mode} needs {missing}. Install it, or set train.compile=off.")


def _missing(device: torch.device) -> str | None:
    """Returns what torch needs to compile for the device and this machine lacks; None where it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    if device.type == "cuda" and not has_triton():
        return "Triton, which torch cannot use on this machine"
    try:
        get_cpp_compiler()
    except RuntimeError:
        return "a C++ compiler, and torch finds none on this machine (g++, clang++, or what CXX names)"
    return None
