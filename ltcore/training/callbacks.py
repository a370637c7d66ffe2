"""Calls the callbacks of a run on rank 0, such that they change nothing of it."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from ltcore import dist
from ltcore.callbacks import CALLBACKS, ENDED_BY, Callback, CallbackContext
from ltcore.config.schema import RunConfig
from ltcore.errors import CallbackError
from ltcore.evaluation.catalog import VALIDATION
from ltcore.training.switches import put_back

COLUMN = "callback"
_LOG = logging.getLogger("ltcore.training")
_said: set[tuple[str, ...]] = set()
"""(callback, switches) of which it was said in this process: an epoch is not the place to hear it again."""


class CallbackCalls:
    """The callbacks of one run, and what they asked for."""

    def __init__(self, cfg: RunConfig, run_dir: Path, net: nn.Module, rank: int) -> None:
        chosen = {name: getattr(cfg.callbacks, name) for name in CALLBACKS}
        self._on = {name: options for name, options in chosen.items() if options is not None}
        self._config = MappingProxyType(cfg.to_flat())
        self._run_dir, self._net = run_dir, net
        self._called: dict[str, Callback] = {}
        if rank == 0:
            for name, options in self._on.items():
                with _blamed(name, "__init__"), _undisturbed(name, "__init__"):
                    self._called[name] = CALLBACKS[name].build(options)
        self._columns: dict[str, float] = {}
        self._reason = ""

    def start(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Calls ``on_run_start``; the columns that it logs are those of the first row."""
        for name, each in self._called.items():
            self._call(name, "on_run_start", each.on_run_start, epoch, metrics)

    def epoch_end(self, epoch: int, metrics: Mapping[str, Any]) -> tuple[dict[str, float], str]:
        """Calls ``on_epoch_end`` and, after a validation, ``on_evaluation``. A collective where there are callbacks.

        Returns the columns that they log, and why the run should end; '' where it goes on.
        """
        if not self._on:
            return {}, ""
        evaluated = any(key.startswith(VALIDATION) for key in metrics)
        for name, each in self._called.items():
            self._call(name, "on_epoch_end", each.on_epoch_end, epoch, metrics)
            if evaluated:
                self._call(name, "on_evaluation", each.on_evaluation, epoch, metrics)
        columns, self._columns = self._columns, {}
        found: tuple[dict[str, float], str] = dist.broadcast_object((columns, self._reason))
        return found

    def end(self, epoch: int, metrics: Mapping[str, Any], tests: Mapping[str, Mapping[str, Any]]) -> None:
        """Calls ``on_run_end`` with the last epoch's metrics and those of the tests."""
        tested = {f"{split}/{name}": value for split, found in tests.items() for name, value in found.items()}
        for name, each in self._called.items():
            self._call(name, "on_run_end", each.on_run_end, epoch, {**metrics, **tested}, last=True)

    def _call(
        self,
        name: str,
        what: str,
        method: Callable[[CallbackContext], None],
        epoch: int,
        metrics: Mapping[str, Any],
        *,
        last: bool = False,
    ) -> None:
        def log(column: str, value: float) -> None:
            if last:
                raise ValueError("the last row is written: log in on_epoch_end or on_evaluation")
            if not math.isfinite(value):
                raise ValueError(f"log({column!r}, {value}): expected a finite number")
            self._columns[f"{COLUMN}/{name}/{column}"] = float(value)

        def stop(reason: str) -> None:
            self._reason = f"{ENDED_BY}{name} at epoch {epoch}: {reason}"

        view = CallbackContext(
            epoch=epoch,
            metrics=MappingProxyType(dict(metrics)),
            config=self._config,
            run_uri=str(self._run_dir),
            log=log,
            stop=stop,
            model=lambda: copy.deepcopy(self._net).eval(),
        )
        with _blamed(name, what), _undisturbed(name, what):
            method(view)


@contextlib.contextmanager
def _blamed(name: str, what: str) -> Iterator[None]:
    """Names plugin and callback in every error."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        plugin = CALLBACKS[name].build.__module__
        raise CallbackError(
            f"callback {name} of plugin {plugin} failed in {what} ({type(error).__name__}: {said}). Repair it, or set "
            f"callbacks.{name}=null; the same command continues from the last checkpoint, if no part of the plugin trains."
        ) from error


@contextlib.contextmanager
def _undisturbed(name: str, what: str) -> Iterator[None]:
    """Puts back the state of every random generator, and torch's switches on which numbers depend.

    Drawing is everybody's right; a switch that was changed is said, as the callback may have meant the run.
    """
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        with put_back(lambda switches: _say_changed(name, what, switches)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)


def _say_changed(name: str, what: str, switches: list[str]) -> None:
    if (name, *switches) in _said:
        return
    _said.add((name, *switches))
    more = f" and {len(switches) - 3} more" if len(switches) > 3 else ""
    _LOG.warning(
        "callback %s of plugin %s changed %s%s in %s, which is put back: a callback changes nothing of its run",
        name,
        CALLBACKS[name].build.__module__,
        ", ".join(switches[:3]),
        more,
        what,
    )
