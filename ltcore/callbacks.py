"""Callbacks of plugins: they read a run, log values of their own and may end it, and never change its numbers.

    @plugins.callback("patience_of_mine", summary="ends the run where the tail does not improve")
    class Mine(Callback):
        @dataclass(frozen=True, kw_only=True)
        class Config:
            least: float = 0.1
            \"\"\"Recall of few-shot classes under which the run ends after ten epochs. Range [0, 1].\"\"\"

        def on_evaluation(self, ctx):
            if ctx.epoch >= 10 and ctx.metrics["val/few"] < self.cfg.least:
                ctx.stop("the tail is not learned")

``callbacks.patience_of_mine=on`` switches it on. They run on rank 0, with the state of every random generator put back after
each call, and get copies alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltcore.plugins.generated import add_row, generate, grow
from ltcore.plugins.loading import attach
from ltcore.plugins.parts import Part

if TYPE_CHECKING:
    from torch import nn

ENDED_BY = "callback "
"""Begins the reason of a run that a callback ended, before its name."""


@dataclass(frozen=True)
class CallbackContext:
    """What a callback sees of a run. Nothing in it is the run's own."""

    epoch: int
    """Epochs done."""
    metrics: Mapping[str, Any]
    """Those of the last epoch, by the names of ``metrics.jsonl``; empty at the start. At the end also those of the tests,
    as '<split>/<metric>'."""
    config: Mapping[str, Any]
    """Dotted key -> value of the whole run."""
    run_uri: str
    """Directory in which the run works: on this machine, also where it is copied to a store."""
    log: Callable[[str, float], None]
    """Takes name and number of a new column, 'callback/<callback>/<name>', of the epoch's row; at the start, of the first
    row. Raises ValueError at the end, after the last row."""
    stop: Callable[[str], None]
    """Takes the reason for which the run ends, as finished, after this epoch. The tests follow as usual."""
    model: Callable[[], nn.Module]
    """Returns a copy, in evaluation mode, of the network that is evaluated."""


class Callback:
    """Something that is called at fixed points of a run. Subclasses declare a frozen ``Config`` and override what they need.

    What it keeps between calls is lost where a run is continued, so it should follow from what it is given.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    def on_run_start(self, ctx: CallbackContext) -> None:
        """Is called before the first epoch of this start of the run."""

    def on_epoch_end(self, ctx: CallbackContext) -> None:
        """Is called after every epoch, before its row is logged."""

    def on_evaluation(self, ctx: CallbackContext) -> None:
        """Is called after every validation, after ``on_epoch_end``."""

    def on_run_end(self, ctx: CallbackContext) -> None:
        """Is called when the run has finished, after its tests."""


@dataclass(frozen=True)
class Row:
    """A registered callback and its description."""

    build: type[Callback]
    summary: str
    paper: str


CALLBACKS: dict[str, Row] = {}
"""All are of plugins."""

if TYPE_CHECKING:  # a stand-in for the class generated below

    class Callbacks:
        def __init__(self, **callbacks: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

else:
    Callbacks = generate("Callbacks", __name__, "One optional section per callback of a plugin; null is off.", [])


def _add(part: Part) -> None:
    add_row(CALLBACKS, part.kind, part.name, Row(part.build, part.summary, part.paper))
    grow(Callbacks, part.name, part.build.Config, optional=True)


attach("callback", _add)
