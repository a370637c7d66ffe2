"""From a checkpoint to predictions and metrics, without the training code's state."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ltcore.config.json_record import encode
from ltcore.config.schema import RunConfig
from ltcore.data.augment.augment import Augment
from ltcore.data.loading.five_crop import FiveCropLoader
from ltcore.data.loading.loader import ThreadedLoader
from ltcore.data.prep import framing_of
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import CheckpointError, ConfigError, DataError
from ltcore.evaluation.attributes import AttributeRanks
from ltcore.evaluation.pairs import AttributeCounts
from ltcore.evaluation.plugged import metrics_of
from ltcore.evaluation.protocols import split_of
from ltcore.models.net import PROJECTIONS, LongTailNet
from ltcore.objective.registry import BASES
from ltcore.plugins.loading import given
from ltcore.training import checkpoint as ckpt
from ltcore.training.evaluate import Evaluator
from ltcore.training.fetch import fetched_checkpoint
from ltcore.training.init_from import whole_weights
from ltcore.training.predictor import FLIP, TTA, Mirrored, Predictor


def load(
    checkpoint: str | Path, posthoc_tau: float = 0.0, *, device: str | torch.device = "cpu", tta: str = "none"
) -> Predictor:
    """Loads the classifier in a checkpoint or run directory (its best checkpoint), from a path or a URI.

    ``posthoc_tau`` > 0 predicts with logits less that multiple of the log prior it was trained under (post-hoc logit
    adjustment, Menon et al., ICLR 2021; 1 is the balanced optimum); labels that Remix moved to rarer classes do not count
    there. ``device`` may be 'auto', the GPU where there is one.
    ``tta='flip'`` predicts with the mean of the logits of each image and its mirror image, ``'five_crop'`` with that of its
    four corners and its center, cut out of a larger copy (LIFT; sizes: ``ltcore.data.images.five_crop``). Raises
    CheckpointError where there is none or it is damaged, ConfigError where the run balanced its classes in training.
    """
    with fetched_checkpoint(str(checkpoint), weights=True) as path:
        if not path.exists():
            raise CheckpointError(f"{checkpoint} does not exist: expected a checkpoint directory or a run directory.")
        predictor = predictor_of(ckpt.read(path, str(checkpoint)), posthoc_tau)
    if tta not in TTA:
        raise ConfigError(f"tta={tta!r} is unknown. Known: {', '.join(TTA)}.")
    net = Mirrored(predictor.net).eval() if tta == FLIP else predictor.net
    return replace(predictor, net=net, tta=tta).to(device)


def predictor_of(found: ckpt.Checkpoint, posthoc_tau: float = 0.0) -> Predictor:
    """Returns the classifier in a checkpoint that is at hand; the rest as for ``load``."""
    found.require(
        "config", "classes", "shot_groups", "attributes", "attribute_counts", "image_size", "mean", "std", "data_hash"
    )
    meta, config = found.meta, found.config()
    predictor = Predictor(
        net=_network(found, config).eval(),
        config=config,
        classes=tuple(meta["classes"]),
        image_size=config.data.image_size or meta["image_size"],
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        shot_groups=tuple(meta["shot_groups"]),
        place=found.place,
        data_hash=meta["data_hash"],
        attributes=tuple(meta["attributes"]),
        attribute_counts=AttributeCounts.of_rows(meta["attribute_counts"], len(meta["attributes"])),
        framing=framing_of(config.data, tuple(meta["mean"])),
    )
    if not posthoc_tau:
        return predictor
    return replace(predictor, posthoc_tau=posthoc_tau, log_prior_C=_posthoc_prior(found, config, posthoc_tau))


def _network(found: ckpt.Checkpoint, config: RunConfig) -> LongTailNet:
    net = LongTailNet(config.model, len(found.meta["classes"]), frozenset(), config.seed)
    weights = {n: value for n, value in whole_weights(found, config, net).items() if not n.startswith(PROJECTIONS)}
    ckpt.refuse_other_network(f"{found.place}/model.pt", weights, net.state_dict())
    net.load_state_dict(weights)
    return net


def _posthoc_prior(found: ckpt.Checkpoint, config: RunConfig, tau: float) -> Tensor:
    """Returns the float32 [C] log prior of the stream that the checkpoint was trained on."""
    if not 0 < tau < math.inf:
        raise ConfigError(f"posthoc_tau must be a finite number >= 0, got {tau:g}.")
    base = config.objective.base
    balances = BASES[base].build.balances(getattr(config.objective.base_options, base))
    if config.stage2 is not None:
        balances, key = "balances the classifier", f"stage2.method={config.stage2.method}"
    else:
        key = f"objective.base={base}"
    if config.model.head == "tde" and config.model.tde.alpha > 0:
        key, balances = (
            "model.head=tde",
            f"takes away what model.tde.alpha={config.model.tde.alpha:g} says, when it predicts",
        )
    if balances:
        raise ConfigError(
            f"posthoc_tau={tau:g} does not go with {key} of {found.place}, which {balances}: the classes would be balanced "
            "twice, and that costs accuracy (ImageNet-LT: balanced softmax 51.2, adjusted on top 46.6; Zhang et al., TPAMI "
            "2023). Predict with it as it is, or adjust a run with objective.base=cross_entropy, no class_weights and no "
            "model.head=tde."
        )
    if "class_prior" not in found.meta:
        raise CheckpointError(
            f"{found.place}/meta.json does not say under which class prior it was trained (it is of an earlier version). Train "
            "the run anew to adjust it."
        )
    return torch.tensor(found.meta["class_prior"], dtype=torch.float64).log().float()


def evaluate(
    predictor: Predictor,
    data_uri: str,
    splits: Sequence[str],
    protocols: Sequence[str],
    *,
    intervals: bool = False,
) -> dict[str, Any]:
    """Computes the metrics of every split asked for.

    Returns ``{"checkpoint", "data", "name", "data_hash", "posthoc_tau", "tta", "classes": names, "splits": {split: {metric:
    value}}, "classes_present": {split: number of classes with images}}``, and per split, in the order of ``classes``,
    ``per_class`` (recalls) and ``support`` (images), ``calibration`` (reliability bins) and ``confusion`` (its cells above
    0); with ``intervals`` also ``intervals`` (metric: both ends, 95%, by resampling the images). Size of the images, shot
    groups and ranks of attributes are those of training, also on other data. Classes and attributes go by name: the data
    may have fewer, or the same in another order; an attribute that training did not have has no rank. Raises ConfigError
    for a split that does not exist or a protocol that does not fit, CheckpointError for classes that the checkpoint does
    not know.
    """
    # Threads, not the cache: it would decode the training split first.
    data = replace(
        predictor.config.data, image_size=predictor.image_size, mean=predictor.mean, std=predictor.std, loader="threads"
    )
    make_loader = FiveCropLoader if predictor.views > 1 else ThreadedLoader
    with contextlib.closing(make_loader(data, data_uri, batch_size=1, seed=0, trains=False)) as loader:
        manifest = loader.store.manifest
        evaluator = _evaluator(predictor, loader, classes_by_name(predictor, manifest.classes, data_uri))
        tested = {
            split: evaluator.tested(split, intervals=intervals)
            for split in wanted_splits(predictor, manifest, data_uri, splits, protocols)
        }
        result = {
            "checkpoint": predictor.place,
            "data": data_uri,
            "name": manifest.name,
            "data_hash": manifest.hash,
            "posthoc_tau": predictor.posthoc_tau,
            "tta": predictor.tta,
            "classes": list(predictor.classes),
            "splits": {split: found.metrics for split, found in tested.items()},
            "classes_present": {split: sum(map(bool, found.support)) for split, found in tested.items()},
            "per_class": {split: found.per_class for split, found in tested.items()},
            "support": {split: found.support for split, found in tested.items()},
            "calibration": {split: encode(found.calibration) for split, found in tested.items()},
            "confusion": {split: found.confusion.columns() for split, found in tested.items()},
        }
        if intervals:
            result["intervals"] = {split: encode(found.intervals) for split, found in tested.items()}
        return result


def _evaluator(predictor: Predictor, loader: ThreadedLoader, to_network_K: Tensor) -> Evaluator:
    device = predictor.to("auto").device
    plugins = (*predictor.config.plugins, *given())  # also those that the run did not know
    augment = Augment(predictor.config.augment, seed=0, mean=predictor.mean, std=predictor.std, num_views=1)
    return Evaluator(
        net=cast(LongTailNet, predictor.net),  # or Mirrored, whose output has the same logits
        loader=loader,
        device=device,
        batch_size=512 // predictor.views,
        normalize=augment.evaluate,
        adjust=lambda logits_BC: predictor.adjusted(predictor.finite(logits_BC)),
        num_classes=len(predictor.classes),
        to_network_K=to_network_K.numpy(),
        shot_groups=predictor.shot_groups,
        ranks=_ranks_by_name(predictor, loader.store.manifest.attributes),
        plugged=metrics_of(plugins, predictor.config.metrics),
    )


def _ranks_by_name(predictor: Predictor, names: Sequence[str]) -> AttributeRanks:
    """Returns the ranks of the data's attributes in training's classes; those of unknown names have none."""
    known = {name: a for a, name in enumerate(predictor.attributes)}
    return AttributeRanks(predictor.attribute_counts, np.array([known.get(name, -1) for name in names], np.int64))


def wanted_splits(
    predictor: Predictor, manifest: Manifest, data_uri: str, splits: Sequence[str], protocols: Sequence[str]
) -> list[str]:
    """Returns the splits to evaluate, each once. Raises ConfigError or DataError where one is missing or empty."""
    wanted = (
        list(splits)
        or [split_of(p, predictor.config.data.train_split) for p in protocols]
        or [s for s in manifest.splits if s.startswith("test")]
    )
    missing = [split for split in wanted if split not in manifest.splits]
    if missing or not wanted:
        what = f"split {missing[0]!r} is not in {data_uri}" if missing else f"{data_uri} has no test split"
        raise ConfigError(f"{what}: there are {', '.join(manifest.splits)}. Choose one with --split, or other data.")
    empty = [split for split in wanted if not manifest.splits[split].num_samples]
    if empty:
        raise DataError(
            f"{data_uri}: split {empty[0]!r} holds no image, so there is nothing to measure. Choose another with --split, or "
            "add images."
        )
    return list(dict.fromkeys(wanted))


def classes_by_name(predictor: Predictor, names: Sequence[str], data_uri: str) -> Tensor:
    """Returns int64 [K]: the checkpoint's class for each of the data's classes."""
    known = {name: c for c, name in enumerate(predictor.classes)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CheckpointError(
            f"{predictor.place} does not know {len(unknown)} of the {len(names)} classes of {data_uri}, the first is "
            f"{unknown[0]!r}; it knows {', '.join(predictor.classes[:3])}{', ...' if len(known) > 3 else ''}. Name the classes "
            "as in training, or leave them out."
        )
    return torch.tensor([known[name] for name in names])
