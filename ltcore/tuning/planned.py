"""Every kind of run that a sweep trains, known and checked before the first of them starts.

A configuration that does not go with the data would otherwise end a sweep after its search, hours later.
"""

from __future__ import annotations

from collections.abc import Iterator

from ltcore.config.load import probed_runs
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import ConfigError
from ltcore.evaluation.protocols import TRAIN_BALANCED
from ltcore.text import counted
from ltcore.training.preflight import check_run
from ltcore.training.protocol_runs import refuse_seen_split
from ltcore.tuning.ablation import (
    MAX_SETTINGS,
    ablated,
    ablated_runs,
    has_ablation,
    has_retrains,
    setting_of,
    terms_off,
)

TRAIN_SPLIT = "data.train_split"


def has_alt(sweep: SweepConfig, base: RunConfig, manifest: Manifest) -> bool:
    """Tells whether the sweep trains runs on balanced classes besides its own.

    Raises an error for a comparison that asks for them on data without that split.
    """
    if not sweep.alt:
        return False
    if sweep.variants:
        manifest.split(TRAIN_BALANCED)
        return True
    has_split = TRAIN_BALANCED in manifest.splits and base.data.train_split != TRAIN_BALANCED
    return has_split and has_retrains(sweep)


def planned_runs(sweep: SweepConfig, base: RunConfig, manifest: Manifest) -> list[RunConfig]:
    """Returns the recipe's run and runs with every kind of value of trials, retrains, ALT and ablation; all are checked.

    Raises ConfigError or another error of the package for the first that could not be trained on these data.
    """
    trials = [base, *probed_runs(sweep, base)]
    if not sweep.variants:
        trials.append(base.replace(terms_off()))
    runs = [*trials, *ablated_runs(sweep, base)]
    for run in runs:
        check_run(run, manifest)
    if has_alt(sweep, base, manifest):
        for run in _on_balanced(trials, manifest.hash):
            check_run(run, manifest)
            runs.append(run)
    return runs


def _on_balanced(trials: list[RunConfig], data_hash: str) -> Iterator[RunConfig]:
    """Yields the runs as ALT trains them; those of stage 2 take their split from stage 1."""
    for run in trials:
        if run.stage2 is not None:
            continue
        run = run.replace({TRAIN_SPLIT: TRAIN_BALANCED})
        try:
            refuse_seen_split(run.to_flat(), data_hash)
        except ConfigError as error:
            raise ConfigError(
                f"sweep.alt=true trains on {TRAIN_BALANCED} too: {error} Or set sweep.alt=false."
            ) from None
        yield run


def count_words(sweep: SweepConfig, base: RunConfig, manifest: Manifest, concurrent: int) -> str:
    """Says how many runs a sweep has in all, part by part, where none of them is stopped early."""
    if sweep.variants:
        at_once = f"{concurrent} at a time" if concurrent > 1 else "one at a time"
        both = " x 2 training splits (ALT)" if sweep.alt else ""
        product = f"{counted(len(sweep.variants), 'variant')} x {counted(sweep.seeds, 'seed')}{both}"
        return f"The sweep has {counted(sweep.size, 'run')} ({product}), {at_once}"
    trials = "trial" if sweep.size == 1 else "trials"
    parts = {trials: sweep.size, "baseline": 1}
    if has_retrains(sweep):
        parts["retrains"] = 2 * sweep.retrain_seeds
        if has_alt(sweep, base, manifest):
            parts["for ALT"] = 2 * sweep.retrain_seeds
        if has_ablation(sweep):
            rows = list(ablated(base, {}))
            terms = [row.term for row in rows if not row.control]
            varied = sum(bool(setting_of(sweep.space, term)) for term in terms) if len(terms) > 1 else 0
            tried = varied * min(MAX_SETTINGS, sweep.size) if sweep.size > 1 else 0
            what = "of the ablation, or fewer as the winner has terms and the trials settings of them"
            parts[what] = len(rows) * sweep.retrain_seeds + tried
    listed = ", ".join(f"{count} {what}" for what, count in parts.items())
    return f"The sweep has {counted(sum(parts.values()), 'run')} ({listed}), {concurrent} at a time"
