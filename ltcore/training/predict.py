"""From a checkpoint to predictions and metrics, without the training code's state."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcore.config.load import from_flat
from ltcore.config.schema import RunConfig
from ltcore.data.decode import decode_canvas
from ltcore.data.feed import open_feed
from ltcore.data.storage import is_local, open_fs
from ltcore.errors import CheckpointError, ConfigError, DataError
from ltcore.models.net import PROJECTIONS, LongTailNet
from ltcore.objective.bases.logit_adjust import posthoc_logits
from ltcore.objective.registry import BASES
from ltcore.training import checkpoint as ckpt
from ltcore.training.evaluate import confusion, split_metrics

PROTOCOLS = {"clt": "test_cbl", "alt": "test_gbl", "glt": "test_gbl"}
"""Test split of each GLT protocol (Tang et al., ECCV 2022): ALT for models trained on ``train_cbl``, else CLT and GLT."""


@dataclass(frozen=True)
class Predictor:
    """A trained classifier. Call it with images; it returns probabilities."""

    net: LongTailNet
    config: RunConfig
    classes: tuple[str, ...]
    canvas: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shot_groups: tuple[str, ...]
    """[C] many, medium or few, by the images that it was trained on."""
    path: Path
    posthoc_tau: float = 0.0
    """Strength of post-hoc logit adjustment; 0 is none."""
    log_prior_C: Tensor | None = None
    """[C] log class shares that the classifier was trained on; only where it is adjusted."""

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """float32 [B, C] probabilities for uint8 RGB images [B, 3, canvas, canvas]. Raises DataError for other shapes."""
        if images_BCHW.dtype != torch.uint8 or images_BCHW.shape[1:] != (3, self.canvas, self.canvas):
            raise DataError(
                f"Expected uint8 images of shape [B, 3, {self.canvas}, {self.canvas}], got {images_BCHW.dtype} "
                f"{list(images_BCHW.shape)}. Predictor.read(files) makes them."
            )
        return self.adjusted(self.net(self._normalize(images_BCHW)).mean_logits_BC).softmax(1)

    def adjusted(self, logits_BC: Tensor) -> Tensor:
        """[B, C] logits to predict with: less ``posthoc_tau`` times the log prior where the classifier is adjusted."""
        if self.log_prior_C is None:
            return logits_BC
        return posthoc_logits(logits_BC, self.log_prior_C.to(logits_BC.device), self.posthoc_tau)

    def _normalize(self, images_BCHW: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (images_BCHW.float() / 255 - mean) / std

    def read(self, files: Sequence[str | Path]) -> Tensor:
        """uint8 [B, 3, canvas, canvas] out of image files."""
        return torch.from_numpy(np.stack([decode_canvas(_image(f), self.canvas, str(f)) for f in files]))

    def predict(self, files: Sequence[str | Path]) -> list[tuple[str, float]]:
        """(class name, probability) of the most probable class of each image file."""
        values, classes = self(self.read(files)).max(1)
        return [(self.classes[c], float(v)) for c, v in zip(classes.tolist(), values, strict=True)]


def load(checkpoint: str | Path, posthoc_tau: float = 0.0) -> Predictor:
    """The classifier in a checkpoint or run directory (its best checkpoint), from a path or a URI.

    ``posthoc_tau`` > 0 predicts with logits less that multiple of the log prior it was trained under (post-hoc logit
    adjustment, Menon et al., ICLR 2021; 1 is the balanced optimum). Raises CheckpointError where there is none or it is
    damaged, ConfigError where the run balanced its classes in training.
    """
    path = local_copy(str(checkpoint))
    found = ckpt.read(path)
    meta = found.meta
    missing = sorted({"config", "classes", "shot_groups", "canvas", "mean", "std"} - meta.keys())
    if missing:
        raise CheckpointError(f"{found.path}/meta.json has no {missing[0]!r}. It is damaged: use another checkpoint.")
    config = from_flat(meta["config"])
    net = LongTailNet(config.model, len(meta["classes"]), frozenset(), config.seed)
    weights = found.model_state()
    net.load_state_dict({name: value for name, value in weights.items() if not name.startswith(PROJECTIONS)})
    predictor = Predictor(
        net=net.eval(),
        config=config,
        classes=tuple(meta["classes"]),
        canvas=config.data.canvas or meta["canvas"],
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        shot_groups=tuple(meta["shot_groups"]),
        path=found.path,
    )
    if not posthoc_tau:
        return predictor
    return replace(predictor, posthoc_tau=posthoc_tau, log_prior_C=_posthoc_prior(found, config, posthoc_tau))


def _posthoc_prior(found: ckpt.Checkpoint, config: RunConfig, tau: float) -> Tensor:
    """float32 [C] log prior of the stream that the checkpoint was trained on."""
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
            f"posthoc_tau={tau:g} does not go with {key} of {found.path}, which {balances}: the classes would be balanced "
            "twice, and that costs accuracy (ImageNet-LT: balanced softmax 51.2, adjusted on top 46.6; Zhang et al., TPAMI "
            "2023). Predict with it as it is, or adjust a run with objective.base=cross_entropy."
        )
    if "class_prior" not in found.meta:
        raise CheckpointError(
            f"{found.path}/meta.json does not say under which class prior it was trained (it is of an earlier version). Train "
            "the run anew to adjust it."
        )
    return torch.tensor(found.meta["class_prior"], dtype=torch.float64).log().float()


def evaluate(predictor: Predictor, data_uri: str, splits: Sequence[str], protocols: Sequence[str]) -> dict[str, Any]:
    """Metrics of every asked split: ``{"checkpoint", "data", "data_hash", "posthoc_tau", "splits": {split: {metric:
    value}}}``. Size of the images and shot groups are those of training, also on other data.

    Raises ConfigError for a split that is not there or a protocol that does not fit, CheckpointError for other classes.
    """
    # Threads, not the cache: it would decode the training split first.
    data = replace(predictor.config.data, canvas=predictor.canvas, tier="threads")
    feed = open_feed(data, data_uri, batch_size=1, seed=0)
    try:
        manifest = feed.store.manifest
        if manifest.classes != predictor.classes:
            raise CheckpointError(
                f"{predictor.path} knows {len(predictor.classes)} classes ({', '.join(predictor.classes[:3])}, ...), {data_uri} "
                f"has {len(manifest.classes)} ({', '.join(manifest.classes[:3])}, ...): they must be the same, in the same order."
            )
        wanted = (
            list(splits)
            or [_test_of(p, predictor.config.data.train_split) for p in protocols]
            or [s for s in manifest.splits if s.startswith("test")]
        )
        missing = [split for split in wanted if split not in manifest.splits]
        if missing:
            raise ConfigError(f"split {missing[0]!r} is not in {data_uri}, which has {', '.join(manifest.splits)}.")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        net = predictor.net.to(device)
        from ltcore.data.augment import Augment

        augment = Augment(predictor.config.augment, seed=0, mean=predictor.mean, std=predictor.std, num_views=1)
        result = {}
        for split in dict.fromkeys(wanted):
            counts = confusion(
                net,
                feed,
                split,
                batch_size=512,
                device=device,
                autocast=None,
                normalize=augment.evaluate,
                adjust=predictor.adjusted,
            )
            result[split] = split_metrics(counts, feed, predictor.shot_groups)
        return {
            "checkpoint": str(predictor.path),
            "data": data_uri,
            "data_hash": manifest.hash,
            "posthoc_tau": predictor.posthoc_tau,
            "splits": result,
        }
    finally:
        feed.close()


def _image(file: str | Path) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Give the path of an image file.") from error


def _test_of(protocol: str, train_split: str) -> str:
    if (protocol == "alt") != (train_split == "train_cbl"):
        fits = "alt" if train_split == "train_cbl" else "clt, glt"
        raise ConfigError(
            f"--protocol {protocol} does not go with a model trained on split {train_split!r} (use {fits}): ALT is for "
            "models trained with data.train_split=train_cbl, CLT and GLT for those trained on the long-tailed classes."
        )
    return PROTOCOLS[protocol]


def local_copy(uri: str) -> Path:
    """A checkpoint or run directory as a path: itself, or a copy of what an object store has. CheckpointError where it
    does not exist."""
    if is_local(uri):
        path = Path(open_fs(uri)[1])
        if not path.exists():
            raise CheckpointError(f"{uri} does not exist: expected a checkpoint directory or a run directory.")
        return path
    from ltcore.training.mirror import Mirror

    mirror = Mirror(uri, Path(tempfile.mkdtemp(prefix="ltcore-")))
    mirror.pull()
    return mirror.local
