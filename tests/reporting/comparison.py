"""A finished comparison of methods, as its record says it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ltcore.config.records import SweepRecord, VariantRecord
from ltcore.evaluation.paired import compare
from tests.records import trial_record
from tests.reporting.fake_sweep import begun

VALUES = {
    "lpa": (0.60, 0.62, 0.61),
    "ce": (0.30, 0.31, 0.32),
    "dro": (0.58, 0.66, 0.57),
    "balanced_softmax": (0.70, 0.72, 0.71),
}
"""Test top-1 by seed; the first was chosen on validation."""


def variant(name: str, seeds: int) -> VariantRecord:
    tests = {
        who: {seed: {"test": {"top1": value, "few": None}} for seed, value in enumerate(values[:seeds])}
        for who, values in VALUES.items()
    }
    values = VALUES[name][:seeds]
    return VariantRecord(
        name=name,
        changes={"objective.base": name},
        trials=tuple(f"{name}-seed{seed}" for seed in range(seeds)),
        seconds=tuple(10.0 + len(name) for _ in values),
        val={"val/top1": values, "val/many": values},
        test={"test": {"top1": values, "few": (None,) * seeds}},
        difference=None if name == "lpa" else compare(tests["lpa"], tests[name]),
    )


def comparison(seeds: int, **fields: Any) -> SweepRecord:
    nothing: dict[str, Any] = {"seconds": (), "val": {}, "test": None, "difference": None}
    broken = replace(variant("ce", seeds), name="paco", reason="NumericError: nan", **nothing)
    record = SweepRecord.from_json({**begun(), "search": "variants", "space": {}, "metric": "val/top1"}, "sweep.json")
    variants = (*(variant(name, seeds) for name in VALUES), broken)
    trials = tuple(trial_record(name) for variant in variants for name in variant.trials)
    return replace(record, **{"variants": variants, "winner": "lpa", "trials": trials, **fields})
