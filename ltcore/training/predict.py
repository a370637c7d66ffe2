"""From a checkpoint to predictions and metrics, without the training code's state."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ltcore.batch import Batch
from ltcore.config.json_record import encode
from ltcore.config.schema import RunConfig
from ltcore.data.augment.augment import Augment
from ltcore.data.images.boxes import centered_square
from ltcore.data.images.decode import Pixels, decode_canvas, pixels_of, resample, size_of
from ltcore.data.loading.loader import ThreadedLoader
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import CheckpointError, ConfigError, DataError, NumericError
from ltcore.evaluation.protocols import split_of
from ltcore.models.net import PROJECTIONS, LongTailNet
from ltcore.objective.losses.logit_adjust import posthoc_logits
from ltcore.objective.registry import BASES
from ltcore.storage import is_plain
from ltcore.training import checkpoint as ckpt
from ltcore.training.evaluate import Evaluator
from ltcore.training.fetch import fetched_checkpoint

ImageLike = str | Path | bytes | Image.Image
IMAGES = "a path, the bytes of a file or a PIL image"
BATCH_BYTES = 64 * 2**20
"""Of the float32 images of one forward pass of ``predict``."""


@dataclass(frozen=True)
class Predictor:
    """A trained classifier. Call it with images; it returns probabilities."""

    net: LongTailNet
    config: RunConfig
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shot_groups: tuple[str, ...]
    """[C] many, medium or few, by the images that it was trained on."""
    place: str
    """Path or URI of the checkpoint."""
    data_hash: str
    """Hash of the data that it was trained on."""
    posthoc_tau: float = 0.0
    """Strength of post-hoc logit adjustment; 0 is none."""
    log_prior_C: Tensor | None = None
    """[C] log class shares that the classifier was trained on; only where it is adjusted."""

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Returns float32 [B, C] probabilities for uint8 RGB images [B, 3, S, S].

        Raises DataError for other shapes.
        """
        if images_BCHW.dtype != torch.uint8 or images_BCHW.shape[1:] != (3, self.image_size, self.image_size):
            raise DataError(
                f"Expected uint8 images of shape [B, 3, {self.image_size}, {self.image_size}], got {images_BCHW.dtype} "
                f"{list(images_BCHW.shape)}. Predictor.read(files) makes them."
            )
        device = next(self.net.parameters()).device  # an evaluation moved it
        logits_BC = self.net(self._normalize(images_BCHW).to(device)).mean_logits_BC
        return self.adjusted(self._finite(logits_BC)).softmax(1).to(images_BCHW.device)

    def adjusted(self, logits_BC: Tensor) -> Tensor:
        """Returns the [B, C] logits to predict with.

        They are lowered by ``posthoc_tau`` times the log prior where the classifier is adjusted.
        """
        if self.log_prior_C is None:
            return logits_BC
        return posthoc_logits(logits_BC, self.log_prior_C.to(logits_BC.device), self.posthoc_tau)

    def _finite(self, logits_BC: Tensor) -> Tensor:
        """Returns the logits. Raises NumericError where some are not finite.

        Finite weights may be too large to compute with.
        """
        if not bool(torch.isfinite(logits_BC).all()):
            raise NumericError(f"{self.place} predicts numbers that are not finite. Use another checkpoint.")
        return logits_BC

    def _normalize(self, images_BCHW: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (images_BCHW.float() / 255 - mean) / std

    def read(self, images: Iterable[ImageLike] | ImageLike) -> Tensor:
        """Reads images as uint8 [B, 3, S, S]: paths of files, bytes of files, or PIL images."""
        canvases = list(self._canvases(images))
        return (
            torch.from_numpy(np.stack(canvases))
            if canvases
            else torch.empty(0, 3, self.image_size, self.image_size).byte()
        )

    def _canvases(self, images: Iterable[ImageLike] | ImageLike) -> Iterator[Pixels]:
        listed = [images] if isinstance(images, str | Path | bytes | Image.Image) else images
        if not isinstance(listed, Iterable):
            raise DataError(f"Expected {IMAGES}, or several of them, got a {type(images).__name__}.")
        for number, image in enumerate(listed):
            yield _canvas(image, self.image_size, number)

    def predict(self, images: Iterable[ImageLike] | ImageLike) -> list[tuple[str, float]]:
        """Returns (class name, probability) of the most probable class of each image; see ``predict_each``."""
        return list(self.predict_each(images))

    def predict_each(self, images: Iterable[ImageLike] | ImageLike) -> Iterator[tuple[str, float]]:
        """Yields the same as ``predict`` one by one, for any number of images.

        They are read and computed in batches of ``BATCH_BYTES``. One image counts as a list of it. Raises DataError for
        what is missing or no image, NumericError where the network computes numbers that are not finite.
        """
        canvases = self._canvases(images)
        size = max(1, BATCH_BYTES // (3 * self.image_size**2 * 4))
        while batch := list(itertools.islice(canvases, size)):
            values_B, classes_B = self(torch.from_numpy(np.stack(batch))).max(1)
            for c, value in zip(classes_B.tolist(), values_B.tolist(), strict=True):
                yield self.classes[c], value


def load(checkpoint: str | Path, posthoc_tau: float = 0.0) -> Predictor:
    """Loads the classifier in a checkpoint or run directory (its best checkpoint), from a path or a URI.

    ``posthoc_tau`` > 0 predicts with logits less that multiple of the log prior it was trained under (post-hoc logit
    adjustment, Menon et al., ICLR 2021; 1 is the balanced optimum). Raises CheckpointError where there is none or it is
    damaged, ConfigError where the run balanced its classes in training.
    """
    with fetched_checkpoint(str(checkpoint), weights=True) as path:
        if not path.exists():
            raise CheckpointError(f"{checkpoint} does not exist: expected a checkpoint directory or a run directory.")
        return predictor_of(ckpt.read(path, str(checkpoint)), posthoc_tau)


def predictor_of(found: ckpt.Checkpoint, posthoc_tau: float = 0.0) -> Predictor:
    """Returns the classifier in a checkpoint that is at hand; the rest as for ``load``."""
    found.require("config", "classes", "shot_groups", "image_size", "mean", "std", "data_hash")
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
    )
    if not posthoc_tau:
        return predictor
    return replace(predictor, posthoc_tau=posthoc_tau, log_prior_C=_posthoc_prior(found, config, posthoc_tau))


def _network(found: ckpt.Checkpoint, config: RunConfig) -> LongTailNet:
    weights = {name: value for name, value in found.model_state().items() if not name.startswith(PROJECTIONS)}
    net = LongTailNet(config.model, len(found.meta["classes"]), frozenset(), config.seed)
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
    if balances:
        raise ConfigError(
            f"posthoc_tau={tau:g} does not go with {key} of {found.place}, which {balances}: the classes would be balanced "
            "twice, and that costs accuracy (ImageNet-LT: balanced softmax 51.2, adjusted on top 46.6; Zhang et al., TPAMI "
            "2023). Predict with it as it is, or adjust a run with objective.base=cross_entropy and no class_weights."
        )
    if "class_prior" not in found.meta:
        raise CheckpointError(
            f"{found.place}/meta.json does not say under which class prior it was trained (it is of an earlier version). Train "
            "the run anew to adjust it."
        )
    return torch.tensor(found.meta["class_prior"], dtype=torch.float64).log().float()


def evaluate(predictor: Predictor, data_uri: str, splits: Sequence[str], protocols: Sequence[str]) -> dict[str, Any]:
    """Computes the metrics of every split asked for.

    Returns ``{"checkpoint", "data", "name", "data_hash", "posthoc_tau", "classes": names, "splits": {split: {metric:
    value}}, "classes_present": {split: number of classes with images}}``, and per split, in the order of ``classes``,
    ``per_class`` (recalls) and ``support`` (images), ``calibration`` (reliability bins) and ``confusion`` (its cells above
    0). Size of the images and shot groups are those of training, also on other data. Classes go by name: the data may
    have fewer, or the same in another order. Raises ConfigError for a split that does not exist or a protocol that does
    not fit, CheckpointError for classes that the checkpoint does not know.
    """
    # Threads, not the cache: it would decode the training split first.
    data = replace(predictor.config.data, image_size=predictor.image_size, loader="threads")
    with contextlib.closing(ThreadedLoader(data, data_uri, batch_size=1, seed=0, trains=False)) as loader:
        manifest = loader.store.manifest
        evaluator = _evaluator(predictor, loader, _classes_by_name(predictor, manifest.classes, data_uri))
        tested = {split: evaluator.tested(split) for split in _wanted(predictor, manifest, data_uri, splits, protocols)}
        return {
            "checkpoint": predictor.place,
            "data": data_uri,
            "name": manifest.name,
            "data_hash": manifest.hash,
            "posthoc_tau": predictor.posthoc_tau,
            "classes": list(predictor.classes),
            "splits": {split: found.metrics for split, found in tested.items()},
            "classes_present": {split: sum(map(bool, found.support)) for split, found in tested.items()},
            "per_class": {split: found.per_class for split, found in tested.items()},
            "support": {split: found.support for split, found in tested.items()},
            "calibration": {split: encode(found.calibration) for split, found in tested.items()},
            "confusion": {split: found.confusion.columns() for split, found in tested.items()},
        }


def _evaluator(predictor: Predictor, loader: ThreadedLoader, to_network_K: Tensor) -> Evaluator:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    augment = Augment(predictor.config.augment, seed=0, mean=predictor.mean, std=predictor.std, num_views=1)

    def normalize(batch: Batch) -> Batch:
        return replace(augment.evaluate(batch), labels_B=to_network_K.to(batch.labels_B.device)[batch.labels_B])

    return Evaluator(
        net=predictor.net.to(device),
        loader=loader,
        device=device,
        batch_size=512,
        normalize=normalize,
        adjust=lambda logits_BC: predictor.adjusted(predictor._finite(logits_BC)),
        num_classes=len(predictor.classes),
        shot_groups=predictor.shot_groups,
    )


def _wanted(
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


def _classes_by_name(predictor: Predictor, names: Sequence[str], data_uri: str) -> Tensor:
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


def _canvas(image: ImageLike, image_size: int, number: int) -> Pixels:
    if isinstance(image, Image.Image):
        pixels_3HW = pixels_of(image, f"image {number}, given as a PIL image")
        return resample(pixels_3HW, centered_square(size_of(pixels_3HW)), (image_size, image_size))
    if isinstance(image, bytes):
        return decode_canvas(image, image_size, f"image {number}, given as bytes")
    if not isinstance(image, str | Path):
        raise DataError(f"Image {number} is a {type(image).__name__}, expected {IMAGES}.")
    try:
        if not is_plain(Path(image).stat()):
            raise DataError(f"{image} is no plain file. Give the path of an image file.")
        return decode_canvas(Path(image).read_bytes(), image_size, str(image))
    except OSError as error:
        raise DataError(f"{image} cannot be read: {error.strerror}. Give the path of an image file.") from error
