"""Formatting of numbers, names and ranges for readers."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from ltcore.config.space import RANGES, parse_space

TRAINED = "trained parameters"
"""Title of the column that says how many numbers of a network training changes, where that differs by ``model.tune``."""


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Returns each dotted key's shortest ending that no other key has.

    It has at least two words where the key does.
    """
    keys = list(keys)
    result = {}
    for key in keys:
        words = key.split(".")
        for take in range(min(2, len(words)), len(words) + 1):
            short = ".".join(words[-take:])
            if sum(k == short or k.endswith("." + short) for k in keys) == 1:
                break
        result[key] = short
    return result


def value_text(value: Any) -> str:
    """Formats a configuration value for readers: 0.123457, off, a, b."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return str(value)


def parse_range(spec: str) -> tuple[str, float, float] | None:
    """Returns (kind, low, high) of a swept range such as 'log:0.02,1'; None for a list."""
    parsed = parse_space("", spec)
    if parsed.kind not in RANGES:
        return None
    low, high = (float(value) for value in parsed.values if isinstance(value, int | float))
    return parsed.kind, low, high


def listed_values(spec: str) -> list[str]:
    """Returns the values of 'choice:1,null' or 'grid:...' as ``value_text`` writes them."""
    return [value_text(value) for value in parse_space("", spec).values]


def range_text(spec: str) -> str:
    """Writes a search space for people: '0.02 to 1, logarithmic', 'a, off'."""
    found = parse_range(spec)
    if found is None:
        return ", ".join(listed_values(spec))
    kind, low, high = found
    return f"{low:g} to {high:g}" + {"log": ", logarithmic", "int": ", whole numbers", "uniform": ""}[kind]


def moment(time: datetime.datetime) -> str:
    """Returns a time in UTC to the minute: 2026-01-02T03:04:05+00:00 becomes '2026-01-02 03:04 UTC'."""
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def percent(value: float | None) -> str:
    """Formats a fraction in percent; None gives a dash."""
    return "—" if value is None else f"{100 * value:.1f}%"


def mean_sd(values: Sequence[float]) -> str:
    """Formats mean and standard deviation, '71.2 ± 1.4%'; a single value has no deviation."""
    if not values:
        return "—"
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}%"


def count_text(number: int | None) -> str:
    """Formats a count with separators, '1,927,172'; None gives a dash."""
    return "—" if number is None else f"{number:,}"
