"""Every configuration key with type, default and documentation, read from the source text of the dataclasses.

Why from the text: ``--show``, ``keys`` and ``methods`` must answer at once, but the dataclasses live beside the code
they configure, and importing that code imports torch (seconds). A generated table would be a second truth that goes
stale with every new method. The documentation of a field exists in the text alone anyway, so this module parses the few
files on which ``ltcore/config/schema.py`` rests, executes nothing, and needs some 50 ms. A test holds the result
against the imported dataclasses, field by field. The parts of plugins are read in the same way.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltcore.config.reader import PACKAGE, REGISTRY, REQUIRED, Allowed, Leaf, Module, Section, leaves
from ltcore.evaluation.catalog import METRICS, NCM_METRICS, VALIDATION
from ltcore.plugins.loading import known, known_parts, without_broken
from ltcore.plugins.source import Plugin

__all__ = ["PACKAGE", "REQUIRED", "Allowed", "Leaf", "Section", "leaves"]

OPTIONS = (
    "objective.base_options.",
    "stage2.options.",
    "model.options.",
    "augment.options.",
    "train.sampling_options.",
)
"""Beginnings of keys that say something about one row of a registry."""
TEXT = "model.text."
"""Beginning of the keys of ``model.head_init=text``."""

FREE_TO_CHANGE = (
    "tracking.",
    "callbacks.",
    "name",
    "data.loader",
    "data.resident",
    "data.uri",
    "data.images",
    "data.annotations",
    "data.cache_bytes",
    "data.prefetch_steps",
    "train.checkpoint_every_s",
    "train.threads",
)
"""Keys that do not change what is trained, so a run may be continued with other values of them."""
STAGE2_OWN = (
    "name",
    "seed",
    "tracking.",
    "plugins",
    "metrics.",
    "callbacks.",
    "stage2.",
    "data.uri",
    "data.images",
    "data.annotations",
    "data.loader",
    "data.resident",
    "data.cache_bytes",
    "data.max_bad_samples",
    "data.prefetch_steps",
    "train.precision",
    "train.threads",
    "train.eval_batch_size",
    "train.select",
)
"""Keys that belong to a run of stage 2 itself; all others are those of its stage 1. A dot at the end stands for a section."""


@dataclass(frozen=True)
class Method:
    """One registry row, without what it builds."""

    kind: str
    """'base', 'term', 'stage2', 'head', 'model', 'data', 'augmentation', 'sampler',
    'callback' or 'metric'."""
    name: str
    summary: str
    paper: str


def run_keys() -> Section:
    """Returns the tree of all keys of a run, with those of all known plugins."""
    return without_broken(lambda: _run_keys(known()))


@functools.cache
def _run_keys(_plugins: tuple[Plugin, ...]) -> Section:
    module = Module.read("ltcore.config.schema")
    return module.section(module.names["RunConfig"])


@functools.cache
def sweep_keys() -> Section:
    """Returns the keys of a sweep file."""
    module = Module.read("ltcore.config.sweep")
    return module.section(module.names["SweepConfig"])


def methods() -> tuple[Method, ...]:
    """Returns all rows of the registries.

    These are base losses, terms, methods of stage 2, classifiers, networks, sources of data, augmentations, samplings,
    and callbacks and metrics of plugins.
    """
    return without_broken(lambda: _methods(known()))


@functools.cache
def _methods(_plugins: tuple[Plugin, ...]) -> tuple[Method, ...]:
    own = (("base", REGISTRY, "BASES"), ("term", REGISTRY, "TERMS"), ("stage2", REGISTRY, "STAGE2"))
    networks = (("head", "ltcore.models.heads", "HEADS"), ("model", "ltcore.models.registry", "MODELS"))
    others = (
        ("data", "ltcore.data.datasets.registry", "DATASETS"),
        ("augmentation", "ltcore.data.augment.policies", "AUGMENTS"),
        ("sampler", "ltcore.data.loading.class_sampling", "SAMPLINGS"),
        ("callback", "ltcore.callbacks", "CALLBACKS"),
        ("metric", "ltcore.evaluation.plugged", "PLUGGED"),
    )
    return tuple(
        Method(kind, name, summary, paper)
        for kind, module, table in (*own, *networks, *others)
        for name, (_, _, summary, paper) in Module.read(module).rows(table).items()
    )


def selectable() -> tuple[str, ...]:
    """Returns the validation metrics that may choose a checkpoint or a trial, those of known plugins last."""
    own = (name for kind, name in known_parts() if kind == "metric")
    return tuple(VALIDATION + name for name in (*METRICS, *NCM_METRICS, *own))


def find(pattern: str | None) -> list[tuple[str, Leaf]]:
    """Returns the leaves of runs and sweeps whose key contains ``pattern``.

    A pattern with a ``*`` has to match the whole key. Without a pattern all leaves are returned.
    """
    table = [*leaves(run_keys()), *leaves(sweep_keys(), "sweep.")]
    if not pattern:
        return table
    glob = pattern if any(c in pattern for c in "*?") else f"*{pattern}*"
    return [(key, leaf) for key, leaf in table if fnmatch.fnmatchcase(key, glob)]


def effective(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the dotted keys of a run that have an effect.

    The options of parts that are not chosen, such as losses, are left out, and those of a text encoder that is not
    asked: they have no effect, and another version may have other defaults for them, or none.
    """
    chosen = {
        f"objective.base_options.{keys.get('objective.base')}.",
        f"stage2.options.{keys.get('stage2.method')}.",
        f"model.options.{keys.get('model.name')}.",
        f"augment.options.{keys.get('augment.view1')}.",
        f"augment.options.{keys.get('augment.view2')}.",
        f"train.sampling_options.{keys.get('train.sampling')}.",
    }
    if keys.get("model.head_init") == "text":
        chosen.add(TEXT)
    return {k: v for k, v in keys.items() if not k.startswith((*OPTIONS, TEXT)) or k.startswith(tuple(chosen))}


def comes_from_stage1(key: str) -> bool:
    """Tells whether a run of stage 2 takes this key from its run of stage 1."""
    return not any(key == own or (own.endswith(".") and key.startswith(own)) for own in STAGE2_OWN)
