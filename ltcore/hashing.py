"""Keys and keyed random numbers on the host, without torch, so that reading data does not import it."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

GOLDEN, MUL1, MUL2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Increment and multipliers of splitmix64."""


def hash64(*words: int | str) -> int:
    """Returns an unsigned 64-bit hash of the words, stable across processes, machines and Python versions."""
    text = "\x1f".join(f"{type(w).__name__[0]}{w}" for w in words)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def uniform(
    seed: int, epoch: int, index_B: npt.NDArray[np.int64], copy_B: npt.NDArray[np.int64], purpose: str, n: int
) -> npt.NDArray[np.float32]:
    """Returns [B, n] in [0, 1), equal bit for bit to ``ltcore.rng.uniform`` of the same arguments."""
    state_B = np.full(len(index_B), hash64(seed, epoch, purpose), np.uint64)
    for column_B in (index_B, copy_B):
        state_B = _mix((state_B ^ column_B.astype(np.uint64)) + np.uint64(GOLDEN))
    counter_n = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    bits_Bn = _mix(state_B[:, None] + counter_n) >> np.uint64(40)
    return bits_Bn.astype(np.float32) * np.float32(2.0**-24)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MUL1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MUL2)
    return x ^ (x >> np.uint64(31))
