"""Global state that no part may depend on: random generators of the process, and the rank that it has."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch

from ltcore import dist
from ltcore.contracts.expect import expect

T = TypeVar("T")


def _state() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds all global generators, and puts them back as they were."""
    before = _state()
    random.seed(seed), np.random.seed(seed), torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def apart(call: Callable[[], T]) -> tuple[T, T]:
    """Calls twice, under other global seeds each time. Raises AssertionError where a global generator was used."""
    results = []
    for seed in (1, 2):
        with seeded(seed):
            before = _state()
            results.append(call())
            after = _state()
            used = [
                name
                for name, was, now in zip(("random", "numpy.random", "torch"), before, after, strict=True)
                if not _same(was, now)
            ]
            expect(not used, f"it draws from the global generator of {' and '.join(used)}")
    return results[0], results[1]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return bool(torch.equal(a, b))
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


@contextlib.contextmanager
def as_rank(rank: int, world: int) -> Iterator[None]:
    """Lets code that asks believe that it runs on one of several ranks; no collective is possible."""
    words = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    with (
        mock.patch.dict(os.environ, words),
        mock.patch.object(dist, "rank", lambda: rank),
        mock.patch.object(dist, "world", lambda: world),
        mock.patch.object(torch.distributed, "get_rank", lambda *_: rank),
        mock.patch.object(torch.distributed, "get_world_size", lambda *_: world),
    ):
        yield
