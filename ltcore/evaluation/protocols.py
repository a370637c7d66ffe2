"""Protocols of generalized long-tailed recognition: the split that a model is trained on, and the one that tests it.

Source: Tang et al., Invariant Feature Learning for Generalized Long-Tailed Classification, ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ltcore.errors import ConfigError

TRAIN_BALANCED = "train_cbl"
"""Training split with balanced classes and natural attributes."""
ALT = "alt"
"""Stands beside the names of test splits for the tests of runs on ``TRAIN_BALANCED`` where both kinds are in one record."""
TRAIN_LONG_TAILED = "train"
"""Training split with long-tailed classes and attributes."""
TEST_AS_TRAINED = "test_glt"
"""Test split of the same distribution as ``TRAIN_LONG_TAILED``; no protocol of the paper, and few data have it."""


@dataclass(frozen=True)
class Protocol:
    """A combination of training split and test split."""

    name: str
    test_split: str
    class_balanced_training: bool
    summary: str


PROTOCOLS = {
    "glt": Protocol("GLT", "test_gbl", False, "tested with classes and attributes balanced"),
    "clt": Protocol("CLT", "test_cbl", False, "tested with classes balanced, attributes as they come"),
    "alt": Protocol(
        "ALT", "test_gbl", True, "trained with classes balanced, tested with classes and attributes balanced"
    ),
}


def split_of(protocol: str, train_split: str) -> str:
    """Returns the split that tests a model of ``train_split``.

    Raises ConfigError where the protocol does not apply to models of that split.
    """
    balanced = train_split == TRAIN_BALANCED
    if PROTOCOLS[protocol].class_balanced_training != balanced:
        fits = [key for key, row in PROTOCOLS.items() if row.class_balanced_training == balanced]
        raise ConfigError(
            f"--protocol {protocol} does not go with a model trained on split {train_split!r} (use {', '.join(sorted(fits))}): "
            f"ALT is for models trained with data.train_split={TRAIN_BALANCED}, CLT and GLT for those trained on the long-tailed "
            "classes."
        )
    return PROTOCOLS[protocol].test_split


def protocol_of(split: str, train_split: str) -> tuple[str, str]:
    """Returns (name, meaning) of a test on ``split`` after training on ``train_split``."""
    if split == ALT:
        return PROTOCOLS[ALT].name, PROTOCOLS[ALT].summary
    balanced = train_split == TRAIN_BALANCED
    for row in PROTOCOLS.values():
        if (row.test_split, row.class_balanced_training) == (split, balanced):
            return row.name, row.summary
    if balanced:
        return split, "trained with classes balanced"
    if split == TEST_AS_TRAINED:
        return "Test-GLT", "tested with classes and attributes long-tailed as in training"
    return split, "the test split" if split == "test" else ""


def ordered_splits(splits: Iterable[str]) -> list[str]:
    """Sorts test splits: GLT's first, then CLT's, then ALT, then the one as in training, then the others by name."""
    known = [*dict.fromkeys(row.test_split for row in PROTOCOLS.values()), ALT, TEST_AS_TRAINED, "test"]
    return sorted(splits, key=lambda split: (known.index(split) if split in known else len(known), split))
