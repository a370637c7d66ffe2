"""A callback that uses random numbers, logs a column and ends a run."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

from ltcore import Callback, CallbackContext, plugins


@plugins.callback("watch", summary="logs the length of the weights, and ends the run after some epochs")
class Watch(Callback):
    """Draws from all generators on the way."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        last_epoch: int = 0
        """Epoch after which the run ends; 0: never. Range >= 0."""

    def on_run_start(self, ctx: CallbackContext) -> None:
        """Draws."""
        torch.manual_seed(7)
        ctx.log("drawn", float(torch.rand(())))

    def on_epoch_end(self, ctx: CallbackContext) -> None:
        """Logs, and spoils what it was given."""
        random.random(), np.random.rand(), torch.rand(3)
        model = ctx.model()
        ctx.log("weights", float(sum(p.detach().square().sum() for p in model.parameters())))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()

    def on_evaluation(self, ctx: CallbackContext) -> None:
        """Ends the run."""
        assert "val/top1" in ctx.metrics
        if ctx.epoch == self.cfg.last_epoch:
            ctx.stop("watched enough")

    def on_run_end(self, ctx: CallbackContext) -> None:
        """Draws."""
        torch.rand(3)
