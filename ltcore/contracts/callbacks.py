"""What every callback promises: it takes what it is given, asks for nothing else, and bears an epoch without validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from ltcore.callbacks import CALLBACKS, CallbackContext
from ltcore.config.schema import RunConfig
from ltcore.contracts.expect import expect

_TRAINED = {"epoch": 1, "step": 10, "images_seen": 80, "progress": 0.5, "lr": 0.1, "train/loss": 2.0, "train/base": 2.0}
_VALIDATED = {
    f"val/{name}": 0.5 for name in ("top1", "top5", "balanced_accuracy", "macro_f1", "ece", "many", "medium", "few")
}


class _Toy:
    """Takes the place of a run."""

    def __init__(self, name: str) -> None:
        self.logged: dict[str, float] = {}
        self.reasons: list[str] = []
        self.config = MappingProxyType(RunConfig(name="toy").replace({f"callbacks.{name}": "on"}).to_flat())
        self.net = nn.Linear(3, 2)

    def view(self, epoch: int, metrics: Mapping[str, Any]) -> CallbackContext:
        """Returns what the callback sees."""
        return CallbackContext(
            epoch=epoch,
            metrics=MappingProxyType(dict(metrics)),
            config=self.config,
            run_uri="/nowhere",
            log=lambda column, value: self.logged.__setitem__(column, float(value)),
            stop=self.reasons.append,
            model=lambda: nn.Linear(3, 2).eval(),
        )


def takes_a_whole_run(name: str) -> None:
    """Tells whether it can be called through a run of two epochs, of which the first is not validated."""
    toy, build = _Toy(name), CALLBACKS[name].build
    each = build(build.Config())  # type: ignore[attr-defined]
    each.on_run_start(toy.view(0, {}))
    each.on_epoch_end(toy.view(1, _TRAINED))
    each.on_epoch_end(toy.view(2, {**_TRAINED, **_VALIDATED, "epoch": 2}))
    each.on_evaluation(toy.view(2, {**_TRAINED, **_VALIDATED, "epoch": 2}))
    each.on_run_end(toy.view(2, {**_TRAINED, **_VALIDATED, "epoch": 2}))
    for column, value in toy.logged.items():
        expect(math.isfinite(value), f"it logs {column}={value}")
    expect(all(reason.strip() for reason in toy.reasons), "it ends the run without a reason")


def a_second_run_is_like_the_first(name: str) -> None:
    """Tells whether a callback keeps nothing outside of its instance: a second run logs the same columns."""
    columns = []
    for _ in range(2):
        toy, build = _Toy(name), CALLBACKS[name].build
        each = build(build.Config())  # type: ignore[attr-defined]
        each.on_run_start(toy.view(0, {}))
        each.on_epoch_end(toy.view(1, _TRAINED))
        columns.append(list(toy.logged))
    expect(columns[0] == columns[1], f"first it logs {columns[0]}, in a second run {columns[1]}")


CONTRACTS: tuple[Callable[[str], None], ...] = (takes_a_whole_run, a_second_run_is_like_the_first)
