"""What a sweep varies: the search space, its sampler, and ``SweepConfig``. Importing it needs neither torch nor Ray.

One notation in two spellings, YAML and text (command line, reports); the text reads back as the same thing:

    {log: [0.02, 1.0]}      log:0.02,1.0       a number, uniform in its logarithm
    {uniform: [0, 0.5]}     uniform:0.0,0.5    a number
    {int: [1, 4]}           int:1,4            a whole number, both ends included
    {choice: [a, b]}        choice:a,b         one of a list
    {grid: [a, b]}          grid:a,b           every one of a list; only with search=grid
    {choice: [[a, b], c]}   choice:[a,b],c     a value that is a list itself

The sampler is a Latin hypercube: with n trials every range is cut into n strata and every stratum is hit exactly once,
so that already eight trials cover each axis. Which trial gets which stratum, and where inside it, is a hash of (seed,
key, trial): the same seed and number of trials give the same trials on any engine and machine. Another number of trials
gives other trials.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

from ltcore.config.overrides import as_text
from ltcore.errors import ConfigError, nearest
from ltcore.limits import MAX_TRIALS

Scalar: TypeAlias = bool | int | float | str | None


RANGES = ("log", "uniform", "int")
LISTS = ("choice", "grid")


@dataclass(frozen=True)
class SpaceSpec:
    """The values one key may take."""

    kind: str
    """'log', 'uniform', 'int', 'choice' or 'grid'."""
    values: tuple[Scalar, ...]
    """Both ends of a range, or the whole list."""

    def __post_init__(self) -> None:
        if self.kind not in RANGES + LISTS:
            raise ValueError(f"unknown kind {self.kind!r}.{nearest(self.kind, RANGES + LISTS)} {_HINT}")
        if self.kind in LISTS:
            if not self.values or len(set(map(repr, self.values))) < len(self.values):
                raise ValueError(f"{self.kind} needs a list of different values, got {list(self.values)}")
            return
        numbers = [v for v in self.values if _is_number(v)]
        if len(self.values) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
            raise ValueError(f"{self.kind} needs two numbers, the lower one first, got {list(self.values)}")
        if self.kind == "log" and numbers[0] <= 0:
            raise ValueError(f"log needs numbers > 0, got {list(self.values)}")
        if self.kind == "int" and not all(isinstance(v, int) for v in numbers):
            raise ValueError(f"int needs whole numbers, got {list(self.values)}")

    def __str__(self) -> str:
        texts = (as_text(v) for v in self.values)
        return f"{self.kind}:{','.join(f'[{text}]' if ',' in text else text for text in texts)}"

    def probes(self) -> tuple[Scalar, ...]:
        """Returns values to try before a sweep starts.

        They are both ends of a range and one value between, or the whole list.
        """
        return self.values if self.kind in LISTS else (*self.values, self.at(0.4))

    def at(self, u: float) -> Scalar:
        """Returns the value at ``u`` in [0, 1).

        Values are uniform over the list, the whole numbers, the range or its logarithm.
        """
        if self.kind in LISTS:
            return self.values[int(u * len(self.values))]
        low, high = (v for v in self.values if isinstance(v, int | float))
        if self.kind == "int":
            return int(low) + int(u * (int(high) - int(low) + 1))
        value = low * (high / low) ** u if self.kind == "log" else low + u * (high - low)
        return min(max(float(f"{value:.6g}"), low), high)  # six digits: what reports print is what was run

    def enumerate(self) -> tuple[Scalar, ...]:
        """Returns all values of a list or of a range of whole numbers."""
        if self.kind == "int":
            low, high = (v for v in self.values if isinstance(v, int))
            if high - low >= MAX_TRIALS:
                raise ValueError(f"{self} has {high - low + 1} values, expected at most {MAX_TRIALS} for search=grid")
            return tuple(range(low, high + 1))
        if self.kind in LISTS:
            return self.values
        raise ValueError(f"{self} has no end of values, so search=grid cannot go through it; give grid:a,b,c instead")


_BETWEEN = re.compile(r",(?![^\[\]]*\])")
"""Commas between values, and none inside of one."""
_BRACKETED = re.compile(r"\[[^\[\]]*\]")
_HINT = "Write {log: [a, b]}, {uniform: [a, b]}, {int: [a, b]}, {choice: [..]} or {grid: [..]}."


def parse_space(key: str, raw: Any) -> SpaceSpec:
    """Parses a spec from YAML (``{log: [0.02, 1]}``) or text (``log:0.02,1``); a value with commas has brackets there.

    Raises ConfigError, which names ``key``, for anything else.
    """
    if isinstance(raw, SpaceSpec):
        return raw
    if isinstance(raw, str) and ":" in raw:
        kind, _, items = raw.partition(":")
        raw = {kind: [_item(item) for item in _BETWEEN.split(items)]}
    kind, values = next(iter(raw.items())) if isinstance(raw, Mapping) and len(raw) == 1 else ("", None)
    if not isinstance(values, list | tuple):
        raise ConfigError(f"sweep.space.{key}={raw!r} is not a search space. {_HINT}")
    if kind in ("log", "uniform"):  # YAML reads 1e-4 as text
        values = [parse_scalar(v) if isinstance(v, str) else v for v in values]
    try:
        return SpaceSpec(kind, tuple(_joined(v) if isinstance(v, list | tuple) else v for v in values))
    except ValueError as error:
        raise ConfigError(f"sweep.space.{key}: {error}") from None


def _item(text: str) -> Scalar:
    """Parses one value of a list, without the brackets that stand around one with commas."""
    bare = text[1:-1] if _BRACKETED.fullmatch(text) else text
    return bare if "," in bare else parse_scalar(bare)


def _joined(values: Sequence[Any]) -> Scalar:
    """Returns a list as it is spelled on the command line."""
    text = as_text(values)
    return text if "," in text else parse_scalar(text)


def parse_scalar(text: str) -> Scalar:
    """Returns null, true, false, a whole number, a number, or the text itself."""
    words: dict[str, Scalar] = {"null": None, "none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _is_number(value: Scalar) -> TypeGuard[int | float]:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)


def sample_space(space: Mapping[str, SpaceSpec], trial: int, *, num_trials: int, seed: int) -> dict[str, Scalar]:
    """Returns dotted key -> value of trial number ``trial`` (from 0).

    Trials beyond ``num_trials`` start another hypercube.
    """
    from ltcore.hashing import hash64

    block, row = divmod(trial, num_trials)
    values = {}
    for key, spec in space.items():
        strata = _strata(num_trials, seed, key, block)
        inside = (hash64(seed, "inside", key, trial) >> 11) * 2.0**-53
        values[key] = spec.at((strata[row] + inside) / num_trials)
    return values


@functools.lru_cache(maxsize=256)
def _strata(num_trials: int, seed: int, key: str, block: int) -> tuple[int, ...]:
    """Returns the stratum of a key for each trial of a hypercube."""
    from ltcore.hashing import hash64

    return tuple(sorted(range(num_trials), key=lambda s: hash64(seed, "stratum", key, block, s)))


def grid_points(space: Mapping[str, SpaceSpec]) -> list[dict[str, Scalar]]:
    """Returns all combinations; the last key varies fastest."""
    return [
        dict(zip(space, point, strict=True)) for point in itertools.product(*(s.enumerate() for s in space.values()))
    ]
