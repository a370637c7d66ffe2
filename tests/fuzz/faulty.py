"""Targets that fail in every way there is, to see that the harness tells them apart."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ltcore.errors import DataError
from tests.fuzz.harness import SilentError, Target


def _refuse() -> None:
    raise DataError("no")


def _raise() -> None:
    raise KeyError("trial")


def _silent() -> None:
    raise SilentError("other pixels")


def _much() -> None:
    assert bytearray(2**32)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _work() -> None:
    while True:
        pass


def _talk() -> None:
    print("no key is read from it " * 10_000)


class _Faulty:
    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def originals(self) -> list[Any]:
        return []

    def mutated(self, rng: random.Random) -> float:
        return rng.random()

    def run(self, case: float) -> None:
        self.act()


class Seldom:
    """Fails at the inputs whose number is below a tenth."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def originals(self) -> list[float]:
        return [1.0]

    def mutated(self, rng: random.Random) -> float:
        return rng.random()

    def run(self, case: float) -> None:
        if case < 0.1:
            _die()


TARGETS: Mapping[str, Callable[[Path], Target]] = {
    "accepted": lambda _: _Faulty(lambda: None),
    "refused": lambda _: _Faulty(_refuse),
    "traceback": lambda _: _Faulty(_raise),
    "silent": lambda _: _Faulty(_silent),
    "memory": lambda _: _Faulty(_much),
    "died": lambda _: _Faulty(_die),
    "hang": lambda _: _Faulty(lambda: time.sleep(3600)),
    "loud": lambda _: _Faulty(_talk),
    "busy": lambda _: _Faulty(_work),
    "seldom": Seldom,
}
