"""64-bit keys from words, on the host. Apart from ``ltcore.rng``, so that reading data does not import torch."""

from __future__ import annotations

import hashlib


def hash64(*words: int | str) -> int:
    """Unsigned 64-bit hash of the words: stable across processes, machines and Python versions."""
    text = "\x1f".join(f"{type(w).__name__[0]}{w}" for w in words)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
