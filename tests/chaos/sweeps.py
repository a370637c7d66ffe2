"""The small sweep and the small run that are struck: seconds of work, a checkpoint at every opportunity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ltcore.data.shards.source import Sample
from tests.conftest import png
from tests.shards import write_dataset
from tests.tuning.sweeps import arguments

COUNTS = {"train": (96, 40, 24), "train_cbl": (24, 24, 24), "val": (8, 8, 8), "test_cbl": (6, 6, 6)}
EPOCHS = 12
RANDOM = {
    "sweep__search": "random",
    "sweep__space__train__optim__lr": "log:0.01,0.1",
    "sweep__num_trials": "2",
    "sweep__retrain_seeds": "1",
    "sweep__train_engine_retrain": "false",
    "sweep__alt": "true",
    "sweep__grace_fraction": "1",
    "train__epochs": str(EPOCHS),
    "train__checkpoint_every_s": "0.01",
    "tracking__wandb": "false",
}
HALVING = {
    "sweep__space__train__optim__lr": "null",
    "sweep__space__objective__terms__lpa__weight": "log:0.05,1",
    "sweep__space__objective__terms__dro__radius": "log:0.5,2",
    "sweep__num_trials": "5",
    "sweep__grace_fraction": "0.5",
    "sweep__alt": "false",
}
"""Five trials, of which two end at a rung in the middle."""


def write_shards(uri: Path) -> None:
    """Writes noise in three classes; what is learned of it does not matter, only that it is always the same."""
    write_dataset(
        uri,
        name="noise",
        classes=["one", "two", "three"],
        attributes=["even", "odd"],
        splits={split: _samples(split) for split in COUNTS},
        image_size=16,
        shot_rule="rank",
        shard_size=40,
    )


def _samples(split: str) -> Iterator[Sample]:
    rng = np.random.default_rng(sorted(COUNTS).index(split))
    for label, count in enumerate(COUNTS[split]):
        for n in range(count):
            yield Sample(f"{split}_{label}_{n}", png(rng), "png", label, n % 2)


def sweep_words(shards: str, folder: Path, **changes: str) -> list[str]:
    """Returns the words of the sweep's command, with results below ``folder``."""
    return arguments(shards, folder / "runs", **{**RANDOM, **changes})


def impatient_words(shards: str, folder: Path, **changes: str) -> list[str]:
    """Returns the words of a sweep that waits for less than a minute for a sign of life."""
    return sweep_words(shards, folder, sweep__stall_s="45", **changes)


def halving_words(shards: str, folder: Path, **changes: str) -> list[str]:
    """Returns the words of a sweep that decides while it runs."""
    return sweep_words(shards, folder, **{**HALVING, **changes})


def driven_words(shards: str, folder: Path, **changes: str) -> list[str]:
    """Returns the words of a sweep of which each trial is a group of two workers with a driver, without retrains."""
    searched = {"sweep__retrain_seeds": "0", "sweep__alt": "false"}
    return [*sweep_words(shards, folder, **searched, **changes), "--engine", "train", "--workers", "2"]


def run_words(shards: str, folder: Path, *flags: str, **changes: str) -> list[str]:
    """Returns the words of a single run of the same configuration."""
    words = sweep_words(shards, folder, **changes)
    return ["cifar100_lt_ce", *(word for word in words if not word.startswith("sweep.")), *flags]


def group_words(shards: str, folder: Path, *flags: str, **changes: str) -> list[str]:
    """Returns the words of the same run by a fixed group of two workers."""
    return run_words(shards, folder, "--engine", "train", "--workers", "2", *flags, **changes)


LONG = 300
"""Epochs that last some minutes: Ray looks once a minute whether a group has room to grow."""


def long_words(shards: str, folder: Path, *flags: str, **changes: str) -> list[str]:
    """Returns the words of a long run whose losses tell of the images that it saw, and of little else.

    Its steps are too small to move a weight: the sums of two workers are rounded otherwise than those of one.
    """
    still = {"train__optim__lr": "1e-12", "train__optim__weight_decay": "0", "train__epochs": str(LONG)}
    rare = {"train__checkpoint_every_s": "1", "train__eval_every": str(LONG), "train__precision": "fp32"}
    return run_words(shards, folder, *flags, **still, **rare, **changes)


def elastic_words(shards: str, folder: Path, **changes: str) -> list[str]:
    """Returns the words of the same run by one or two workers."""
    return long_words(shards, folder, "--engine", "train", "--workers", "1-2", **changes)
