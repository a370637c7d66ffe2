"""Sweep files: YAML plus overrides -> ``SweepConfig``. ``load.load_sweep`` tries the values on the recipe."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ltcore.config.keys import selectable, sweep_keys
from ltcore.config.overrides import Tree, lookup, unknown
from ltcore.config.plugged import declared
from ltcore.config.recipes import read_file, read_run
from ltcore.config.space import SpaceSpec, parse_space
from ltcore.config.validate import plain, validate
from ltcore.errors import ConfigError, at_least, nearest, one_of, plain_name, positive, within
from ltcore.evaluation.catalog import METRICS, NCM_METRICS, VALIDATION
from ltcore.limits import MAX_TRIALS
from ltcore.text import counted

_SWEEP, _SPACE, _VARIANTS = "sweep.", "sweep.space.", "sweep.variants."
_MAPPINGS = ("space", "overrides", "variants")
_BELONGS = {"budget_s": ("recipe", "search", "num_trials"), "grace_fraction": ("recipe",)}
"""Key of a sweep -> the keys that its value in a file was chosen for: where these differ from the file's, it is not taken."""
STAGE1 = "stage2.from_run"
"""Key of a variant of stage 2 that names the variant whose runs it starts from."""
STARTS = (STAGE1, "train.init_from")
"""Keys of a variant that may name the variant from whose runs it starts."""


def read_sweep(sweep: str, overrides: Mapping[str, Any] = {}) -> SweepConfig:
    """Reads a sweep (packaged name, path or URI of YAML) with overrides.

    Overrides that start with ``sweep.`` set keys of the sweep (``sweep.num_trials``, ``sweep.space.<key>=log:0.1,1``,
    ``sweep.variants.<name>.<key>=value``; null takes the key out of the space, or the variant out), all others set keys
    of every run.
    """
    tree, stem = read_file("sweep", sweep)
    tree.setdefault("name", stem)
    for key in _MAPPINGS:
        if not isinstance(tree.setdefault(key, {}), dict):
            raise ConfigError(f"sweep.{key}={tree[key]!r} must map dotted keys to values.")
    for name, changes in tree["variants"].items():
        if not isinstance(changes, dict):
            raise ConfigError(f"sweep.variants.{name}={changes!r} must map dotted keys to values.")
    own = dict(tree)
    for key, value in overrides.items():
        _set(tree, key, value)
    if "sweep.num_trials" in overrides and (instead := _SIZED_BY.get(str(tree.get("search")))):
        raise ConfigError(
            f"num_trials={overrides['sweep.num_trials']} has no effect with search={tree['search']}, {instead}."
        )
    for key, others in _BELONGS.items():
        if f"{_SWEEP}{key}" not in overrides and any(str(own.get(other)) != str(tree.get(other)) for other in others):
            tree.pop(key, None)
    declared(tree["overrides"], {})
    if isinstance(tree.get("recipe"), str) and tree["recipe"] and tree.get("metric", SELECTABLE[0]) not in selectable():
        read_run(tree["recipe"])  # makes its plugins known
    for key in (*tree["space"], *tree["overrides"], *itertools.chain(*tree["variants"].values())):
        _look_up(key, tree)
    tree["space"] = {key: parse_space(key, spec) for key, spec in tree["space"].items()}
    return validate(SweepConfig, sweep_keys(), tree, prefix=_SWEEP)


_SIZED_BY = {
    "variants": "whose rows are all trained. Give sweep.seeds=1 for fewer runs, or sweep.variants.NAME=null to leave one out",
    "grid": "which tries every combination. Give fewer values in the space, or another search",
}
"""Searches that know their number of trials, and what changes it."""


def _look_up(key: str, tree: Tree) -> None:
    """Raises ConfigError for a key that exists neither by itself nor with the plugins of the recipe."""
    try:
        lookup(key)
    except ConfigError:
        if not isinstance(tree.get("recipe"), str):
            raise
        read_run(tree["recipe"])
        lookup(key)


def _set(tree: Tree, key: str, value: Any) -> None:
    if key.startswith(_SPACE):
        name = key.removeprefix(_SPACE)
        if value in (None, "null"):
            tree["space"].pop(name, None)
        else:
            tree["space"][name] = value
    elif key.startswith(_VARIANTS):
        _set_variant(tree["variants"], *key.removeprefix(_VARIANTS).partition(".")[::2], value)
    elif not key.startswith(_SWEEP):
        tree["overrides"].pop(key, None)  # what is said last is applied last
        tree["overrides"][key] = value
    elif (name := key.removeprefix(_SWEEP)) in _MAPPINGS:
        raise ConfigError(f"{key}={value}: give single keys, sweep.space.<key>=log:0.1,1 or <key>=value.")
    elif name in sweep_keys().fields:
        tree[name] = value
    else:
        raise unknown(name, sweep_keys(), _SWEEP)


def _set_variant(variants: Tree, name: str, key: str, value: Any) -> None:
    if key:
        variants.setdefault(name, {}).pop(key, None)  # what is said last is applied last
        variants[name][key] = value
    elif name not in variants:
        raise ConfigError(f"{_VARIANTS}{name}: there is no such variant.{nearest(name, variants)}")
    elif value not in (None, "null"):
        raise ConfigError(f"{_VARIANTS}{name}={value}: give {_VARIANTS}{name}.<key>=value, or null to leave it out.")
    else:
        del variants[name]


SELECTABLE = tuple(VALIDATION + name for name in (*METRICS, *NCM_METRICS))
"""Metrics that may choose a checkpoint or a trial: of the validation split alone, the test splits are read once. The first
is the default."""


SEARCHES = ("random", "grid", "tpe", "pbt", "variants")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A search over keys of one recipe, the retraining of its winner, and its limits."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    """Name of the sweep: directory and W&B group. Letters, digits, '.', '_' and '-'."""
    recipe: str = ""
    """The recipe that every trial starts from: a packaged name, or a path or URI of a YAML file. Empty: it has to be given on
    the command line, or data, whose image size then chooses folder or folder_small."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted keys set in every trial, the baseline and the retrains."""
    space: dict[str, SpaceSpec] = field(default_factory=dict)
    """Dotted key -> values to try. At least one, except with search=variants, which takes none."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> dotted keys in which it differs from the recipe, with search=variants. One whose ``stage2.from_run`` or
    ``train.init_from`` is the name of another variant starts from that one's run of the same seed, in chains of any length.
    What is said here of stopping, retraining and shared starts has no effect then."""
    seeds: int = 1
    """Paired seeds with which every variant is trained, counted from the run's ``seed``. Range >= 1. Three or more give
    intervals. No effect unless search=variants."""
    search: str = "random"
    """'random' (Latin hypercube), 'grid' (all combinations), 'tpe' (Optuna, in batches of a tenth of the trials and five at
    least; needs 20 trials), 'pbt' (population based: keys in ``mutable`` change while training) or 'variants' (each of
    ``variants`` is trained to its end, the best on validation chosen, and all are tested and compared). All but pbt choose
    the same winner for one seed, however many trials run at a time."""
    num_trials: int = 8
    """Trials. Range >= 1. No effect with search=grid, whose size is the product of the lists, nor with search=variants."""
    metric: str = "val/balanced_accuracy"
    """Validation metric that ranks trials; see ``train.select``. The highest wins, of val/ece and val/<group>/ece the
    lowest."""
    grace_fraction: float | None = None
    """Fraction of a full training after which trials are compared first, all of them, and the worse ones stopped; from there
    on whenever training is reduction_factor times as far. Range (0, 1]; 1 never stops one. Not less than the start of the
    latest term, which in any case acts for a whole epoch before trials are compared; null: 0.25, or that start where it is
    later. What a sweep file says holds for its own recipe: with another one it is null unless it is given too. No effect
    with search=pbt."""
    reduction_factor: int = 3
    """Successive halving keeps 1 / reduction_factor of the trials at each comparison, and three at least. Range >= 2. No
    effect with search=pbt."""
    mutable: tuple[str, ...] = ()
    """Keys of ``space`` that population-based training may change. Needed by search=pbt, else without effect."""
    retrain_seeds: int = 3
    """Paired seeds with which winner and baseline are trained again and tested. Range >= 0; 0 ends with the ranking, as
    search=pbt always does."""
    train_engine_retrain: bool = True
    """Send one retrain of the winner through Ray Train, two workers and the Ray loader. No effect without retrains,
    on a cluster or beside a GPU, and where trials are Ray Train runs already."""
    alt: bool = False
    """Train winner and baseline, or every variant, also on the training split with balanced classes (``train_cbl``), with
    the same seeds: the ALT protocol. A comparison of variants needs data with that split; elsewhere there is no effect
    without it, nor without retrains or with search=pbt. May be set later, beside a search: the same command then adds these
    runs to a finished sweep."""
    ablation: bool = False
    """Train each term of the winner alone at its best setting, and its controls: the term without what it claims to
    add (LPA ``neighbor_mass=0``, IFL ``tail_ratio=1`` and ``num_envs=1``; DRO's is the baseline). What is best beside other
    terms need not be best alone, so what the space varies of a term is chosen anew: of the settings that trials had, the
    winner's and the next best, 4 at most, each is trained alone with the search's seed, and ``metric`` decides. One with
    which the term is a control of itself is left out; a single term keeps the winner's, unless that is such a one. All else
    is as in the winner. Same seeds as the retrains, and the report says of which term a control does as well. No effect
    without retrains, and with search=pbt or variants. May be set later: the same command then adds these runs to a finished
    sweep."""
    budget_s: float | None = None
    """Seconds for the search. Where a warm-up shows that all trials would take longer, only the first of them are run, as
    many as fit and 3 at least, each at full length, and it is said; the same command with null adds the others. null: run
    all. Range > 0. Only with search=random or tpe. What a sweep file says holds for its own recipe, search and num_trials:
    with others it is null unless it is given too. Decided when a sweep begins. No effect on a cluster."""
    share_start: bool = True
    """Train the epochs before the first term acts once for all trials that differ in their terms alone, and let each
    go on from there: the results are the same, bit for bit. No effect on short starts, with several workers per trial, nor
    with search=tpe or pbt."""
    stall_s: float = 300.0
    """Seconds of silence after which a run is ended and started again from its checkpoint; on one machine, also those after
    which the sweep gives up where no run begins. Range > 0."""

    def to_dict(self) -> Tree:
        """Returns the sweep as plain JSON values, with its space as people write it."""
        return plain(self) | {"space": {key: str(spec) for key, spec in self.space.items()}}

    def __post_init__(self) -> None:
        plain_name(name=self.name)
        at_least(1, seeds=self.seeds)
        one_of(SEARCHES, search=self.search)
        if (self.search == "variants") != bool(self.variants):
            raise ValueError(
                f"search={self.search} does not go with {counted(len(self.variants), 'variant')}: search=variants compares what "
                "variants names, and nothing else does"
            )
        if self.variants:
            self._check_variants()
        elif not self.space:
            raise ValueError("space is empty: a sweep needs at least one key to vary")
        both = sorted(set(self.space) & set(self.overrides))
        if both:
            raise ValueError(
                f"space and overrides both set {both[0]}; to fix it for all trials, take it out with "
                f"sweep.space.{both[0]}=null"
            )
        if nested := [(a, b) for a in self.space for b in self.space if b.startswith(f"{a}.")]:
            raise ValueError(
                f"space varies {nested[0][0]} and {nested[0][1]}, which is inside of it: where the one is off, the other would "
                "switch it on. Leave it to one of them"
            )
        for off in (key for key, value in self.overrides.items() if str(value).lower() in ("null", "none")):
            if inner := next((key for key in self.space if key.startswith(f"{off}.")), None):
                raise ValueError(
                    f"overrides switch {off} off and space varies {inner}, which would switch it on again; to leave it off for "
                    f"all trials, take it out with sweep.space.{inner}=null"
                )
            following = list(self.overrides).index(off) + 1
            later = itertools.islice(self.overrides, following, None)  # as they are applied in turn
            if inner := next((key for key in later if key.startswith(f"{off}.")), None):
                for_one = (
                    " For some rows alone, set it in theirs: sweep.variants.NAME." + inner if self.variants else ""
                )
                raise ValueError(
                    f"overrides switch {off} off and set {inner}, which would switch it on in every run.{for_one} To have it on "
                    f"everywhere, give {off}=on as well"
                )
        one_of(selectable(), metric=self.metric)
        within("(0, 1]", grace_fraction=self.grace_fraction)
        at_least(0, retrain_seeds=self.retrain_seeds)
        at_least(1, num_trials=self.num_trials)
        at_least(2, reduction_factor=self.reduction_factor)
        positive(budget_s=self.budget_s, stall_s=self.stall_s)
        self._check_search()

    def _check_variants(self) -> None:
        if self.space:
            raise ValueError(f"space varies {next(iter(self.space))}, but search=variants takes only variants")
        for name, changes in self.variants.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
                raise ValueError(f"variants has {name!r}, expected a name of letters, digits, '_' and '-'")
            if both := sorted(set(changes) & set(self.overrides)):
                raise ValueError(f"variants.{name} and overrides both set {both[0]}: leave it to one of them")
            self._check_start(name, changes)

    def _check_start(self, name: str, changes: Mapping[str, Any]) -> None:
        stage2 = [key for key in changes if key.startswith("stage2")]
        first = changes.get(STAGE1)
        if stage2 and (len(stage2) < len(changes) or first not in self.variants or STAGE1 in self.variants[str(first)]):
            raise ValueError(
                f"variants.{name} is a stage 2: it takes keys of stage2 alone, and {STAGE1} must be the name of a variant "
                f"of stage 1, got {first!r}"
            )
        seen, at = [name], self.parent(name)
        while at is not None:
            if at in seen:
                raise ValueError(f"variants start from each other: {', '.join([*seen, at])}")
            if not stage2 and STAGE1 in self.variants[at]:
                raise ValueError(
                    f"variants.{name} starts from {at}, a stage 2, whose network is that of its stage 1: set "
                    f"train.init_from={self.variants[at][STAGE1]}"
                )
            seen, at = [*seen, at], self.parent(at)

    def parent(self, variant: str) -> str | None:
        """Returns the variant from whose run this one starts; None where it starts from none."""
        changes = self.variants[variant]
        return next((str(changes[key]) for key in STARTS if changes.get(key) in self.variants), None)

    def started_from(self, variant: str, folder: str) -> dict[str, Any]:
        """Returns the changes of a variant with the run directory of its parent in place of the parent's name."""
        changes, parent = self.variants[variant], self.parent(variant)
        return {key: folder if key in STARTS and value == parent else value for key, value in changes.items()}

    def depth(self, variant: str) -> int:
        """Returns the number of variants that are trained before this one."""
        parent = self.parent(variant)
        return 0 if parent is None else 1 + self.depth(parent)

    def _check_search(self) -> None:
        if self.budget_s is not None and self.search not in ("random", "tpe"):
            raise ValueError(
                f"budget_s={self.budget_s:g} does not go with search={self.search}, of which a part says little: set "
                "budget_s=null, or take search=random"
            )
        if self.search == "grid":
            for key, spec in self.space.items():
                try:
                    spec.enumerate()
                except ValueError as error:
                    raise ValueError(f"space.{key}: {error}") from None
        elif grids := [key for key, spec in self.space.items() if spec.kind == "grid"]:
            raise ValueError(f"space.{grids[0]}: grid needs search=grid; with search={self.search} write choice")
        if self.size > MAX_TRIALS:
            what = "space" if self.search == "grid" else "variants and seeds" if self.variants else "num_trials"
            raise ValueError(f"{what} makes {self.size} trials, expected at most {MAX_TRIALS}")
        if self.search == "tpe" and self.num_trials < 20:
            raise ValueError(
                f"num_trials={self.num_trials} is too few for search=tpe, whose first 10 trials are random: give 20 or "
                "more, or take search=random"
            )
        if self.search == "pbt" and not self.mutable:
            raise ValueError("mutable is empty: search=pbt needs to know which keys it may change while training")
        foreign = sorted(set(self.mutable) - set(self.space))
        if foreign:
            raise ValueError(f"mutable names {', '.join(foreign)}, which space does not vary")

    @property
    def size(self) -> int:
        """Returns the number of trials: ``num_trials``, or that of combinations (grid), or of variants, seeds and protocols."""
        if self.variants:
            return len(self.variants) * self.seeds * (2 if self.alt else 1)
        return math.prod(len(s.enumerate()) for s in self.space.values()) if self.search == "grid" else self.num_trials
