"""Checks before training: of the network before the data are made, which may take long, and of what is said of the data."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from ltcore.config.schema import RunConfig
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import CapacityError, ConfigError, DataError
from ltcore.models.clip_text import TEXT, text_clip
from ltcore.models.excess import excess_of
from ltcore.models.net import ModelConfig
from ltcore.models.timm_backbone import FMAP, NO_MAP, has_map, with_tag
from ltcore.models.timm_names import is_tag, is_timm
from ltcore.models.tune import FULL
from ltcore.models.weights import AUTO, DEFAULT
from ltcore.objective.class_weights import BY_COUNT, own_weights
from ltcore.training.build import build_modules
from ltcore.training.compiled import check_compiles
from ltcore.training.hardware import choose_precision
from ltcore.training.selection import available
from ltcore.training.weights_file import check_exists


def check_network(cfg: RunConfig, varied: Collection[str] = ()) -> None:
    """Raises an error where the network cannot be what the configuration says, whatever the data are.

    ConfigError where timm has no such network or weights, or nothing of the network can be trained as ``model.tune`` says,
    or more would be trained beside each layer than the layer has;
    CheckpointError where a file of weights does not exist. ``varied``: dotted keys in which the runs of a sweep differ.
    """
    if cfg.stage2 is not None or {"model.name", "model.weights", "model.tune"} & {*varied}:
        return
    model = cfg.model
    if is_timm(model.name):
        with_tag(model.name, model.weights)
    if model.weights not in (None, AUTO, DEFAULT) and not (is_timm(model.name) and is_tag(model.weights)):
        check_exists(model.weights)
    if model.tune != FULL:
        _refuse_excess(model, 2)


def _refuse_excess(model: ModelConfig, num_classes: int) -> None:
    """Raises ConfigError where more would be trained beside each layer than the layer has."""
    found = excess_of(model, num_classes)
    if found is not None and found.everywhere:
        raise ConfigError(f"{found.text}. Set that, or model.tune={FULL}.")


def _refuse_unmapped(cfg: RunConfig, manifest: Manifest) -> None:
    """Raises ConfigError where the objective reads a feature map and the network of timm has none."""
    name, split = cfg.model.name, cfg.data.train_split
    if not is_timm(name) or not cfg.objective.active_terms() or has_map(name, cfg.model.weights):
        return
    net, _ = build_modules(cfg, len(manifest.classes), manifest.stats(split), manifest.split(split).num_samples)
    if FMAP in net.needs:
        raise ConfigError(f"model.name={name} {NO_MAP}")


def check_device(cfg: RunConfig, device: torch.device, varied: Collection[str] = ()) -> None:
    """Raises ConfigError where a run cannot compute on this device of this machine as its configuration says.

    ``varied``: dotted keys in which the runs of a sweep differ.
    """
    if "train.precision" not in varied:
        choose_precision(cfg.train.precision, device)
    if cfg.stage2 is None and "train.compile" not in varied:  # stage 2 compiles nothing; it repeats the key of stage 1
        check_compiles(cfg.train.compile, device)


def check_run(cfg: RunConfig, manifest: Manifest) -> None:
    """Raises an error where the data cannot carry the run.

    ConfigError where early stopping has nothing to judge by, class weights are for other classes, the text encoder of
    ``model.head_init`` is not known, a term reads a feature map that the network lacks, or bottlenecks for so many classes are
    no bottlenecks; DataError where a class has no
    training image; CapacityError where these do not fill a batch.
    """
    if cfg.stage2 is None and cfg.train.patience is not None and not available(manifest):
        raise ConfigError(
            f"train.patience={cfg.train.patience}: {manifest.name} has no validation image, so training cannot stop by it. Set "
            "train.patience=null, or make the data again with a validation split (data.val_per_class above 0, or val/<class>/)."
        )
    if cfg.stage2 is None and cfg.model.head_init == TEXT:
        text_clip(cfg.model.name, cfg.model.weights, cfg.model.text)
    if cfg.stage2 is None and cfg.model.tune == "adaptformer" and cfg.model.adaptformer.bottleneck is None:
        _refuse_excess(cfg.model, len(manifest.classes))  # its width follows from the number of classes
    if cfg.stage2 is None:
        _refuse_unmapped(cfg, manifest)
    base = cfg.objective.base
    weights = getattr(getattr(cfg.objective.base_options, base), "class_weights", None)
    if weights not in (None, *BY_COUNT):
        try:
            own_weights(weights, manifest.stats(cfg.data.train_split))
        except ConfigError as error:
            raise ConfigError(f"objective.base_options.{base}.{error}") from None
    num_train = manifest.split(cfg.data.train_split).num_samples
    refuse_empty_classes(manifest.class_counts[cfg.data.train_split], manifest.classes, cfg.data.train_split)
    if cfg.stage2 is None and num_train < cfg.train.batch_size:
        raise CapacityError(
            f"train.batch_size={cfg.train.batch_size} exceeds the {num_train} training images of split {cfg.data.train_split}: "
            f"an epoch has no batch. Set it to {num_train} or less."
        )


def refuse_empty_classes(counts_C: Sequence[int], classes: Sequence[str], split: str) -> None:
    """Raises DataError where a class has no image in the training split.

    A class without one has no centroid and no prior, and cannot be learned.
    """
    empty = [name for name, count in zip(classes, counts_C, strict=True) if count == 0]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(classes)} classes have no training sample in split {split} ({', '.join(empty[:5])}): every "
            "class needs one. Remove the classes or add images."
        )
