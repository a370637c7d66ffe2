"""Randomness as a function of a key, never of who draws first.

Three needs, three functions. All are exact integer arithmetic, so a number depends only on its key: not on the batch it is
drawn in, the worker, the device, the number of ranks or the engine.

* ``hash64``: a 64-bit key from words, for shuffles and selections on the host.
* ``uniform``: [B, n] numbers for a batch of samples, keyed by (seed, epoch, index, copy, purpose), on any device.
* ``generator``: a ``torch.Generator`` for one named purpose, for parameter initialisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore.hashing import GOLDEN, MUL1, MUL2
from ltcore.hashing import hash64 as hash64

_GOLDEN, _MUL1, _MUL2 = (word - (1 << 64) for word in (GOLDEN, MUL1, MUL2))  # as signed int64


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """A CPU generator for one purpose: adding another consumer never shifts its numbers."""
    gen = torch.Generator()
    gen.manual_seed(hash64(seed, *purpose) >> 1)
    return gen


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's ``>>`` keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MUL1
    x = (x ^ _shift(x, 27)) * _MUL2
    return x ^ _shift(x, 31)


def hash_tensor(base: int, *columns: Tensor) -> Tensor:
    """int64 hash of the int64 columns (broadcast together) under an integer base key; wraps like splitmix64."""
    state = torch.full_like(columns[0], _signed(base & ((1 << 64) - 1)))
    for column in columns:
        state = _mix((state ^ column) + _GOLDEN)
    return state


def uniform(seed: int, epoch: int, index_B: Tensor, copy_B: Tensor, purpose: str, n: int) -> Tensor:
    """float32 [B, n] in [0, 1), on the device of ``index_B``; 24 random bits each."""
    key_B = hash_tensor(hash64(seed, epoch, purpose), index_B, copy_B)
    counter_n = torch.arange(1, n + 1, device=index_B.device, dtype=torch.int64)
    bits = _mix(key_B[:, None] + counter_n * _GOLDEN)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24
