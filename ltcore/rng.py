"""Random numbers as functions of a key, independent of the order of draws.

All functions use exact integer arithmetic, so a number depends only on its key: not on the batch it is drawn in, the
worker, the device, the number of ranks or the engine.

* ``hash64``: a 64-bit key from words, for shuffles and selections on the host.
* ``uniform``: [B, n] numbers for a batch of samples, keyed by (seed, epoch, index, copy, purpose), on any device.
* ``generator``: a ``torch.Generator`` for one named purpose, for parameter initialization.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore.hashing import GOLDEN, MUL1, MUL2
from ltcore.hashing import hash64 as hash64

_GOLDEN, _MUL1, _MUL2 = (word - (1 << 64) for word in (GOLDEN, MUL1, MUL2))  # as signed int64


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """Returns a CPU generator for one purpose, whose numbers do not depend on other consumers."""
    gen = torch.Generator()
    gen.manual_seed(hash64(seed, *purpose) >> 1)
    return gen


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shifts int64 right logically (torch's ``>>`` keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MUL1
    x = (x ^ _shift(x, 27)) * _MUL2
    return x ^ _shift(x, 31)


def hash_tensor(base: int, *columns: Tensor) -> Tensor:
    """Hashes the int64 columns (broadcast together) under an integer base key, by splitmix64 with wrap-around."""
    state = torch.full_like(columns[0], _signed(base & ((1 << 64) - 1)))
    for column in columns:
        state = _mix((state ^ column) + _GOLDEN)
    return state


def uniform(seed: int, epoch: int, index_B: Tensor, copy_B: Tensor, purpose: str, n: int) -> Tensor:
    """Returns float32 [B, n] in [0, 1), on the device of ``index_B``; 24 random bits each."""
    key_B = hash_tensor(hash64(seed, epoch, purpose), index_B, copy_B)
    counter_n = torch.arange(1, n + 1, device=index_B.device, dtype=torch.int64)
    bits = _mix(key_B[:, None] + counter_n * _GOLDEN)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24
