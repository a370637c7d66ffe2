"""What a sweep varies: the search space, its sampler, and ``SweepConfig``. Importing it needs neither torch nor Ray.

One notation in two spellings, YAML and text (command line, reports); the text reads back as the same thing:

    {log: [0.02, 1.0]}      log:0.02,1.0       a number, uniform in its logarithm
    {uniform: [0, 0.5]}     uniform:0.0,0.5    a number
    {int: [1, 4]}           int:1,4            a whole number, both ends included
    {choice: [a, b]}        choice:a,b         one of a list
    {grid: [a, b]}          grid:a,b           every one of a list; only with search=grid

The sampler is a Latin hypercube: with n trials every range is cut into n strata and every stratum is hit exactly once,
so that already eight trials cover each axis. Which trial gets which stratum, and where inside it, is a hash of (seed,
key, trial): the same seed and number of trials give the same trials on any engine and machine. Another number of trials
gives other trials.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias, TypeGuard

from ltcore.config.overrides import as_text
from ltcore.errors import ConfigError, nearest

Scalar: TypeAlias = bool | int | float | str | None

SELECTABLE = ("val/top1", "val/macro_precision", "val/glt_f1", "val/many", "val/medium", "val/few")
"""Metrics that may choose a checkpoint or a trial: of the validation split alone, the test splits are read once."""

SEARCHES = ("random", "grid", "tpe", "pbt")
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
        return f"{self.kind}:{','.join(as_text(v) for v in self.values)}"

    def probes(self) -> tuple[Scalar, ...]:
        """Values to try before a sweep starts: both ends and one between of a range, or the whole list."""
        return self.values if self.kind in LISTS else (*self.values, self.at(0.4))

    def at(self, u: float) -> Scalar:
        """The value at ``u`` in [0, 1): uniform over the list, the whole numbers, the range or its logarithm."""
        if self.kind in LISTS:
            return self.values[int(u * len(self.values))]
        low, high = (v for v in self.values if isinstance(v, int | float))
        if self.kind == "int":
            return int(low) + int(u * (int(high) - int(low) + 1))
        value = low * (high / low) ** u if self.kind == "log" else low + u * (high - low)
        return min(max(float(f"{value:.6g}"), low), high)  # six digits: what reports print is what was run

    def enumerate(self) -> tuple[Scalar, ...]:
        """All values of a list or of a range of whole numbers."""
        if self.kind == "int":
            low, high = (v for v in self.values if isinstance(v, int))
            return tuple(range(low, high + 1))
        if self.kind in LISTS:
            return self.values
        raise ValueError(f"{self} has no end of values, so search=grid cannot go through it; give grid:a,b,c instead")


_HINT = "Write {log: [a, b]}, {uniform: [a, b]}, {int: [a, b]}, {choice: [..]} or {grid: [..]}."


def parse_space(key: str, raw: Any) -> SpaceSpec:
    """A spec out of YAML (``{log: [0.02, 1]}``) or text (``log:0.02,1``); ConfigError names ``key``."""
    if isinstance(raw, SpaceSpec):
        return raw
    if isinstance(raw, str) and ":" in raw:
        kind, _, items = raw.partition(":")
        raw = {kind: [parse_scalar(item) for item in items.split(",")]}
    kind, values = next(iter(raw.items())) if isinstance(raw, Mapping) and len(raw) == 1 else ("", None)
    if not isinstance(values, list | tuple):
        raise ConfigError(f"sweep.space.{key}={raw!r} is not a search space. {_HINT}")
    if kind in ("log", "uniform"):  # YAML reads 1e-4 as text
        values = [parse_scalar(v) if isinstance(v, str) else v for v in values]
    try:
        return SpaceSpec(kind, tuple(values))
    except ValueError as error:
        raise ConfigError(f"sweep.space.{key}: {error}") from None


def parse_scalar(text: str) -> Scalar:
    """null, true, false, a whole number, a number, or the text itself."""
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
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A search over keys of one recipe, the retraining of its winner, and its limits."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    """Name of the sweep: directory and W&B group. Letters, digits, '.', '_' and '-'."""
    recipe: str
    """The recipe that every trial starts from: a packaged name, or a path or URI of a YAML file."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted keys set in every trial, the baseline and the retrains."""
    space: dict[str, SpaceSpec] = field(default_factory=dict)
    """Dotted key -> values to try. At least one."""
    search: str = "random"
    """'random' (Latin hypercube), 'grid' (all combinations), 'tpe' (Optuna, in batches of a tenth of the trials and five at
    least; needs 20 trials) or 'pbt' (population based: keys in ``hot`` change while training). All but pbt choose the same
    winner for one seed, however many trials run at a time."""
    num_trials: int = 8
    """Trials. Range >= 1. No effect with search=grid, whose size is the product of the lists."""
    metric: str = "val/top1"
    """Validation metric that ranks trials; the highest wins."""
    grace_fraction: float | None = None
    """Fraction of a full training after which trials are compared first, all of them, and the worse ones stopped; from there
    on whenever training is reduction_factor times as far. Range (0, 1]; 1 never stops one. Not less than the start of the
    latest term, which in any case acts for a whole epoch before trials are compared; null: 0.25, or that start where it is
    later. No effect with search=pbt."""
    reduction_factor: int = 3
    """Successive halving keeps 1 / reduction_factor of the trials at each comparison, and three at least. Range >= 2. No
    effect with search=pbt."""
    hot: tuple[str, ...] = ()
    """Keys of ``space`` that population-based training may change. Needed by search=pbt, else without effect."""
    retrain_seeds: int = 3
    """Paired seeds with which winner and baseline are trained again and tested. Range >= 0; 0 ends with the ranking, as
    search=pbt always does."""
    train_engine_retrain: bool = True
    """Send one retrain of the winner through Ray Train, two workers and the stream tier. No effect without retrains,
    on a cluster or beside a GPU, and where trials are Ray Train runs already."""
    budget_s: float | None = None
    """Seconds for the search. Where a warm-up shows that the trials would take longer, their epochs are cut, to 8 at
    least, and it is said. null: never cut. Range > 0. What a sweep file says holds for its own recipe: with another one it
    is null unless it is given too. No effect on a cluster."""
    share_start: bool = True
    """Train the epochs before the first term acts once for all trials that differ in their terms alone, and let each
    go on from there: the results are the same, bit for bit. No effect on short starts, with several workers per trial, nor
    with search=tpe or pbt."""
    stall_s: float = 300.0
    """Seconds without any progress after which the sweep is canceled with the capacity it waits for. Range > 0."""

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "._-" for c in self.name) or self.name[0] in ".-":
            raise ValueError(f"name must consist of letters, digits, '.', '_' and '-', got {self.name!r}")
        if not self.space:
            raise ValueError("space is empty: a sweep needs at least one key to vary")
        both = sorted(set(self.space) & set(self.overrides))
        if both:
            raise ValueError(
                f"space and overrides both set {both[0]}; to fix it for all trials, take it out with "
                f"sweep.space.{both[0]}=null"
            )
        if self.search not in SEARCHES:
            raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {self.search!r}")
        if self.metric not in SELECTABLE:
            raise ValueError(f"metric must be one of {', '.join(SELECTABLE)}, got {self.metric!r}")
        if self.grace_fraction is not None and not 0 < self.grace_fraction <= 1:
            raise ValueError(f"grace_fraction must be in (0, 1], got {self.grace_fraction}")
        for name, least in (("num_trials", 1), ("reduction_factor", 2), ("retrain_seeds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if self.budget_s is not None and not self.budget_s > 0:
            raise ValueError(f"budget_s must be > 0 or null, got {self.budget_s}")
        if not self.stall_s > 0:
            raise ValueError(f"stall_s must be > 0, got {self.stall_s}")
        self._check_search()

    def _check_search(self) -> None:
        if self.search == "grid":
            for key, spec in self.space.items():
                try:
                    spec.enumerate()
                except ValueError as error:
                    raise ValueError(f"space.{key}: {error}") from None
        elif grids := [key for key, spec in self.space.items() if spec.kind == "grid"]:
            raise ValueError(f"space.{grids[0]}: grid needs search=grid; with search={self.search} write choice")
        if self.search == "tpe" and self.num_trials < 20:
            raise ValueError(
                f"num_trials={self.num_trials} is too few for search=tpe, whose first 10 trials are random: give 20 or "
                "more, or take search=random"
            )
        if self.search == "pbt" and not self.hot:
            raise ValueError("hot is empty: search=pbt needs to know which keys it may change while training")
        foreign = sorted(set(self.hot) - set(self.space))
        if foreign:
            raise ValueError(f"hot names {', '.join(foreign)}, which space does not vary")

    @property
    def size(self) -> int:
        """Number of trials: ``num_trials``, or the number of combinations with search=grid."""
        return math.prod(len(s.enumerate()) for s in self.space.values()) if self.search == "grid" else self.num_trials


def sample_space(space: Mapping[str, SpaceSpec], trial: int, *, num_trials: int, seed: int) -> dict[str, Scalar]:
    """Dotted key -> value of trial number ``trial`` (from 0). Trials beyond ``num_trials`` start another hypercube."""
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
    """Which stratum of a key each trial of a hypercube gets."""
    from ltcore.hashing import hash64

    return tuple(sorted(range(num_trials), key=lambda s: hash64(seed, "stratum", key, block, s)))


def grid_points(space: Mapping[str, SpaceSpec]) -> list[dict[str, Scalar]]:
    """All combinations; the last key varies fastest."""
    return [
        dict(zip(space, point, strict=True)) for point in itertools.product(*(s.enumerate() for s in space.values()))
    ]
