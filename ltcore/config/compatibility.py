"""What goes with what, found by building the configurations: base losses and terms against everything they may meet.

``ltcore composition`` prints the table; a reason is the message that the combination is refused with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltcore.config.schema import RunConfig
from ltcore.errors import ConfigError
from ltcore.objective.registry import BASES, TERMS

Keys = Mapping[str, Any]

UNDER_TERMS = {"experts": "sade", "stage 2": "cross_entropy", "class-balanced sampling": "cross_entropy"}
"""The base over which terms are asked what they go with, by the column; elsewhere balanced softmax."""


NOTE = "With default options: weight_norm=batch_sum, as in the recipes of LDAM-DRW and RIDE, takes no accumulation."


@dataclass(frozen=True)
class Pair:
    """One combination."""

    row: str
    """Base or term."""
    column: str
    """What it is combined with."""
    reason: str
    """Why it is refused, without the advice; '' where it goes."""


def columns() -> dict[str, Keys]:
    """Returns name -> keys of everything that a row may be combined with."""
    terms: dict[str, Keys] = {name: {f"objective.terms.{name}": "on"} for name in TERMS}
    return {
        **terms,
        " + ".join(terms): {key: value for keys in terms.values() for key, value in keys.items()},
        "mixup": {"augment.mixup_alpha": 1.0},
        "mixup + ifl": {"augment.mixup_alpha": 1.0, **terms["ifl"]},
        "cutmix + remix": {"augment.cutmix_alpha": 1.0, "augment.remix_kappa": 3.0},
        "class-balanced sampling": {"train.sampling": "class_balanced"},
        "progressive sampling": {"train.sampling": "progressive"},
        "accumulation": {"train.accumulate": 2},
        "experts": {"model.num_experts": 3},
        "classifier tde": {"model.head": "tde"},
        "frozen classifier": {"train.init_from": "/run", "train.freeze": "classifier"},
        "stage 2": {"stage2": "on"},
    }


def pairs() -> list[Pair]:
    """Returns every base, then every term, paired with every column but itself, with default options."""
    plain = RunConfig(name="plain")
    return [
        Pair(row, column, _reason(plain, {**_row(row, column), **others}))
        for row in (*BASES, *TERMS)
        for column, others in columns().items()
        if row != column
    ]


def markdown() -> str:
    """Returns a table of 'yes' and the numbers of reasons, followed by the reasons."""
    found = {(pair.row, pair.column): _general(pair) for pair in pairs()}
    numbers = {reason: number for number, reason in enumerate(dict.fromkeys(filter(None, found.values())), 1)}
    header = ["", *columns()]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in (*BASES, *TERMS):
        cells = []
        for column in columns():
            reason = found.get((row, column))
            cells.append("·" if reason is None else f"no ({numbers[reason]})" if reason else "yes")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", *(f"{number}. {reason.rstrip('.')}." for reason, number in numbers.items()), "", NOTE]
    )


def _row(name: str, column: str) -> Keys:
    if name in BASES:
        return _base(name)
    return {**_base(UNDER_TERMS.get(column, "balanced_softmax")), f"objective.terms.{name}": "on"}


def _base(name: str) -> dict[str, Any]:
    """Returns the keys of the base with the network that it needs."""
    row = BASES[name]
    keys: dict[str, Any] = {"objective.base": name}
    if row.build.expert_head:
        keys |= {"model.num_experts": row.num_experts or 3}
    if row.build.pairs:
        keys |= {"model.bilateral": True}
    scale = row.build.cosine_scale(row.build.Config())
    return keys | ({"model.head": "cosine", "model.cosine_scale": scale} if scale is not None else {})


def _reason(plain: RunConfig, keys: Keys) -> str:
    try:
        plain.replace(keys)
    except ConfigError as error:
        return str(error).partition(". ")[0]
    return ""


def _general(pair: Pair) -> str:
    """Returns the reason in words that hold for every row with this reason."""
    of_base = pair.reason.replace(f"objective.base={pair.row}", "this base")
    return of_base.replace(f"objective.terms.{pair.row}", "this term")
