"""Values of the command line: each function reads one word, or says what was expected."""

from __future__ import annotations

import argparse
import sys
from typing import Literal, TypeVar

from ltcore.config.execution import AUTO

N = TypeVar("N", int, float)


def whole(text: str) -> int:
    """Reads a whole number of 0 or more."""
    return _number(text, int, 0, "a whole number >= 0")


def count(text: str) -> int:
    """Reads a whole number of 1 or more."""
    return _number(text, int, 1, "a whole number >= 1")


def at_least_one(text: str) -> float:
    """Reads a number of 1 or more."""
    return _number(text, float, 1.0, "a number >= 1")


def not_negative(text: str) -> float:
    """Reads a number of 0 or more."""
    return _number(text, float, 0.0, "a number >= 0")


def gpu_part(text: str) -> float | Literal["auto"]:
    """Reads a number of 0 or more, or 'auto'."""
    return AUTO if text == AUTO else _number(text, float, 0.0, "a number >= 0, or auto")


def positive(text: str) -> float:
    """Reads a number above 0."""
    return _number(text, float, sys.float_info.min, "a number > 0")


def worker_range(text: str) -> tuple[int, int]:
    """Reads ``N`` or ``MIN-MAX`` as the fewest and the most."""
    low, dash, high = text.partition("-")
    ends = (count(low), count(high) if dash else count(low))
    if ends[0] > ends[1]:
        raise argparse.ArgumentTypeError(f"expected N or MIN-MAX, got {text}")
    return ends


def _number(text: str, kind: type[N], least: float, words: str) -> N:
    try:
        value = kind(text)
    except ValueError:
        value = kind(-1)
    if not least <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected {words}, got {text}")
    return value


def pair(text: str) -> tuple[str, str]:
    """Reads ``SPLIT=FILE``."""
    split, equals, file = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected SPLIT=FILE, got {text}")
    return split, file


def comma_separated(text: str) -> tuple[str, ...]:
    """Splits what commas separate."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
