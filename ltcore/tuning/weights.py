"""Do all runs of a sweep start from the same weights? Hashes of their files and checkpoints are in ``sweep.json``.

A name says nothing about the content, and trials that have finished are not started again, so that they cannot
notice themselves that it is another one by now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ltcore.config.load import probed_runs
from ltcore.config.records import RunRecord, SweepRecord
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.errors import ConfigError
from ltcore.models.weights import AUTO
from ltcore.training.same_start import hashes_at_hand, settings


def starting_hashes(sweep: SweepConfig, base: RunConfig) -> dict[str, str]:
    """Returns setting -> sha256 of the weights that runs of the sweep start from, as far as they are at hand.

    Nothing that is published is downloaded for it: what such a file was, the runs note.
    """
    starts = {}
    for run in (base, *probed_runs(sweep, base)):
        if run.stage2 is None:
            words = settings(run.to_flat())
            starts[tuple(words.values()), run.model.head_init] = words, run
    return {words[key]: found for words, run in starts.values() for key, found in hashes_at_hand(run).items()}


def check_same_weights(stored: SweepRecord, sweep: SweepConfig, base: RunConfig, uri: str) -> None:
    """Raises ConfigError where a file of weights or a checkpoint is another one than the runs of the stored sweep started from.

    What is gone, or not at hand, is no other one.
    """
    before = stored.weights_sha256
    if not before:
        return
    if base.model.weights == AUTO:
        base = base.replace({"model.weights": stored.weights})
    for setting, now in starting_hashes(sweep, base).items():
        if before.get(setting, now) != now:
            raise ConfigError(
                f"{uri} holds a sweep that started from {setting} with hash {before[setting][:12]}, which leads to "
                f"{now[:12]} now. Restore it, give this sweep another --name, or replace it with --fresh."
            )


def noted_hashes(uri: str, known: Mapping[str, str], runs: Iterable[RunRecord]) -> dict[str, str]:
    """Returns ``known`` with what the runs themselves have noted of the weights that they started from.

    Those that runs of the sweep itself made are compared, and not returned: they go, and are trained anew, with their runs.
    Raises ConfigError where they are not all the same, because some were replaced while the sweep went on.
    """
    found, own = dict(known), f"train.init_from={uri}/"
    for run in runs:
        origin = run.started_from or {}
        for key, setting in settings(run.config).items():
            if key in origin and found.setdefault(setting, origin[key]) != origin[key]:
                raise ConfigError(
                    f"{run.name} started from {setting} with hash {origin[key][:12]}, other runs of {uri} from "
                    f"{found[setting][:12]}: it was replaced meanwhile. Give the sweep another --name, or replace it with "
                    "--fresh."
                )
    return {setting: value for setting, value in found.items() if not setting.startswith(own)}
