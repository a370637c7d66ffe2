"""Numbers, names and ranges as people read them."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

METRICS = {
    "top1": "top-1",
    "macro_precision": "macro precision",
    "glt_f1": "GLT F1",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
    "worst_class": "worst class",
}


def metric_name(metric: str) -> str:
    """'top1' -> 'top-1', 'attribute/red' -> 'attribute red', 'val/top1' -> 'validation top-1'."""
    if metric.startswith("val/"):
        return f"validation {metric_name(metric.removeprefix('val/'))}"
    return " ".join(METRICS.get(word, word) for word in metric.split("/"))


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key's shortest ending that no other key shares; two words at least where there are two."""
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
    """A configuration value as one reads it: 0.123457, off, a, b."""
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
    """(kind, low, high) of a swept range spelled 'log:0.02,1', 'uniform:0,1' or 'int:1,4'; None for a list."""
    kind, _, ends = spec.partition(":")
    if kind not in ("log", "uniform", "int"):
        return None
    low, high = map(float, ends.split(","))
    return kind, low, high


def listed_values(spec: str) -> list[str]:
    """The values of 'choice:1,null' or 'grid:...' as ``value_text`` writes them."""
    spelled = {"null": "off", "true": "yes", "false": "no"}
    return [spelled.get(word, _number_text(word)) for word in spec.partition(":")[2].split(",")]


def _number_text(word: str) -> str:
    try:
        return value_text(float(word))
    except ValueError:
        return word  # a name


def range_text(spec: str) -> str:
    """'log:0.02,1.0' -> '0.02 to 1, logarithmic'; 'choice:a,null' -> 'a, off'."""
    found = parse_range(spec)
    if found is None:
        return ", ".join(listed_values(spec))
    kind, low, high = found
    return f"{low:g} to {high:g}" + {"log": ", logarithmic", "int": ", whole numbers", "uniform": ""}[kind]


def moment(time: datetime.datetime) -> str:
    """2026-01-02T03:04:05+00:00 -> '2026-01-02 03:04 UTC'."""
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f}%"


def mean_sd(values: Sequence[float]) -> str:
    """'71.2 ± 1.4%'; one value alone has no spread."""
    if not values:
        return "—"
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}%"
