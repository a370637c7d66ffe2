"""What a person should know of a run before it is trained, though nothing in it is wrong."""

from __future__ import annotations

import math

from ltcore.config.schema import RunConfig
from ltcore.data.shards.manifest import Manifest
from ltcore.evaluation.catalog import MAX_NAMED_ATTRIBUTES
from ltcore.models.excess import excess_of
from ltcore.models.net import ModelConfig
from ltcore.models.tune import FULL, HEAD
from ltcore.training import key_encoder
from ltcore.training.idle import idle_options


def remarks(cfg: RunConfig, manifest: Manifest) -> list[str]:
    """Returns sentences about parts that will do little or nothing in a training of this length."""
    if cfg.stage2 is not None:
        return []
    late = (_too_late(cfg, name) for name in ("ifl", "lpa"))
    too_wide = _excess(cfg.model, len(manifest.classes))
    found = (key_encoder.remark(cfg, manifest), *late, *idle_options(cfg), _random_base(cfg), _unmoved(cfg), too_wide)
    return [text for text in (*found, _unnamed(manifest)) if text]


def _unnamed(manifest: Manifest) -> str:
    """Says that metrics of single attributes are left out; '' where they are not."""
    number = len(manifest.attributes)
    if number <= MAX_NAMED_ATTRIBUTES:
        return ""
    return (
        f"{manifest.name} has {number:,} attributes, more than {MAX_NAMED_ATTRIBUTES}: metrics of single ones "
        "(attribute/NAME) are left out; attribute_rank/*, attribute_gap and worst_group judge them by class"
    )


def _random_base(cfg: RunConfig) -> str:
    """Says that what stays frozen was drawn at random; '' where nothing is frozen, or it is not so."""
    model = cfg.model
    if model.tune == FULL or model.weights is not None or cfg.train.init_from is not None:
        return ""
    return (
        f"model.tune={model.tune} freezes a part of a backbone that was drawn at random, as model.weights is null; take "
        f"model.weights=default or a file, or model.tune={FULL}"
    )


def _unmoved(cfg: RunConfig) -> str:
    """Says that terms have no features to move; '' where they have, or there are none."""
    terms = [f"objective.terms.{name}" for name in ("lpa", "dro") if name in cfg.objective.active_terms()]
    if cfg.model.tune != HEAD or not terms:
        return ""
    return f"model.tune={HEAD} trains nothing in the backbone, so {' and '.join(terms)} cannot move its features"


def _excess(model: ModelConfig, num_classes: int) -> str:
    """Says that some layers are no larger than what is trained beside them; '' where all are larger."""
    if model.tune not in ("lora", "adaptformer"):
        return ""
    found = excess_of(model, num_classes)
    return "" if found is None else found.text


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
