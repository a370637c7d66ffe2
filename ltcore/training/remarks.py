"""What a person should know of a run before it is trained, though nothing in it is wrong."""

from __future__ import annotations

import math

from ltcore.config.schema import RunConfig
from ltcore.data.shards.manifest import Manifest
from ltcore.training import key_encoder


def remarks(cfg: RunConfig, manifest: Manifest) -> list[str]:
    """Returns sentences about parts that will do little or nothing in a training of this length."""
    if cfg.stage2 is not None:
        return []
    found = (key_encoder.remark(cfg, manifest), *(_too_late(cfg, name) for name in ("ifl", "lpa")))
    return [text for text in found if text]


def _too_late(cfg: RunConfig, name: str) -> str:
    """Says that what a term finds at the end of an epoch is found after the last one; '' where it is not so."""
    term, epochs = cfg.objective.active_terms().get(name), cfg.train.epochs
    if term is None or (term.num_envs < 2 if name == "ifl" else not term.neighbor_mass):
        return ""
    if math.ceil(term.start * epochs - 1e-9) < epochs and epochs > 1:
        return ""
    what = "environments" if name == "ifl" else "pseudo-attributes"
    better = f"objective.terms.{name}.start={(epochs - 1) / epochs:.2g} or less" if epochs > 1 else "more epochs"
    return (
        f"objective.terms.{name}.start={term.start:g}: {what} are found at the end of the epoch that reaches it, which is the "
        f"last of {epochs}, so they never act; take {better}"
    )
