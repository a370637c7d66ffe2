"""What a recipe leaves to the start of a run: weights that are at hand, what they expect, and batches that the data fill.

The process that starts runs decides, before anything is placed, so that all workers, trials and nodes do the same, and the
stored configuration says what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ltcore.config.schema import RunConfig
from ltcore.data.loading.class_sampling import CLASS_AWARE
from ltcore.data.prep import prep_of
from ltcore.data.shards.manifest import Manifest
from ltcore.models.weights import AUTO, DEFAULT, at_hand, download_command, published_file
from ltcore.text import counted
from ltcore.training.class_words import check_words
from ltcore.training.weights_input import KEYS, differs_by_run, expected_of, input_record, with_input

SMALLEST_BATCH = 8
_SETTLED = (None, DEFAULT)
"""What ``model.weights=auto`` comes to."""
Say = Callable[[str], None]


def settled(
    cfg: RunConfig,
    manifest: Manifest,
    say: Say,
    *,
    typed: Mapping[str, Any],
    stored: Mapping[str, Any] | None,
    varied: Iterable[str] = (),
) -> RunConfig:
    """Returns ``cfg`` with nothing left open, and says what was decided.

    Doing it twice changes nothing.

    Args:
        typed: dotted keys that the person gave; a batch size among them stays.
        stored: the configuration, flat, of a run or sweep that continues; None where it begins.
        varied: dotted keys in which the runs of a sweep differ.
    """
    if cfg.stage2 is not None:
        return cfg
    if stored is None and (warning := check_words(cfg.model, manifest.classes)):
        say(warning)
    cfg = _with_weights(cfg, say, stored)
    if not differs_by_run(varied):
        cfg = _with_input(cfg, manifest, say, typed, stored)
    return cfg if "train.batch_size" in typed else _with_full_batches(cfg, manifest, say)


def _with_weights(cfg: RunConfig, say: Say, stored: Mapping[str, Any] | None) -> RunConfig:
    """Replaces ``model.weights=auto`` by what it means here; what continues keeps the weights that it began with."""
    if cfg.model.weights != AUTO:
        return cfg
    name, here = cfg.model.name, at_hand(cfg.model.name)
    if stored is not None and (stored.get("model.name", name) != name or stored.get("model.weights") not in _SETTLED):
        stored = None  # a start that failed: what it had was not decided for this network, or not by us
    weights = stored.get("model.weights") if stored is not None else DEFAULT if here else None
    if weights is not None:
        say(f"{name} starts from its published ImageNet weights (model.weights={AUTO}: {published_file(name)})")
    elif stored is not None and here:
        say(f"{name} began from random weights; ImageNet's are at hand by now: --fresh starts anew, from them")
    elif (file := published_file(name)) is None:
        say(f"{name} starts from random weights: none are published for it")
    else:
        say(
            f"{name} starts from random weights, which costs accuracy on small data: {file} is not there. To start from "
            f"ImageNet's, run {download_command(name)}, then this command with --fresh"
        )
    return cfg.replace({"model.weights": weights})


def _with_input(
    cfg: RunConfig, manifest: Manifest, say: Say, typed: Mapping[str, Any], stored: Mapping[str, Any] | None
) -> RunConfig:
    """Fills the keys of ``data`` that weights fill, and says what is in force where they do, or where a key was typed."""
    filled = with_input(cfg, stored)
    if filled != cfg or typed.keys() & {*KEYS}:
        found = input_record(filled, prep_of(filled.data, manifest), expected_of(filled))
        say(f"images as the network sees them: {found.text}")
    return filled


def _with_full_batches(cfg: RunConfig, manifest: Manifest, say: Say) -> RunConfig:
    """Halves batch size and learning rate until the training images fill ``train.least_batches`` batches."""
    train, num_train = cfg.train, manifest.split(cfg.data.train_split).num_samples
    size, unit = train.batch_size, train.accumulate * (cfg.model.ghost_batch or 1)
    of_class = train.images_per_class if train.sampling == CLASS_AWARE else 1
    while (
        train.least_batches is not None
        and num_train < train.least_batches * size
        and size >= 2 * SMALLEST_BATCH
        and size % (2 * unit) == size % (2 * of_class) == 0
    ):
        size //= 2
    if size == train.batch_size:
        return cfg
    lr = train.optim.lr * size / train.batch_size
    say(
        f"{num_train} training images: batches of {size} instead of {train.batch_size}, and train.optim.lr={lr:g} in "
        f"proportion, make {counted(num_train // size, 'step')} per epoch (train.batch_size=N is kept)"
    )
    return cfg.replace({"train.batch_size": size, "train.optim.lr": lr})
