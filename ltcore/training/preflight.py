"""Checks, before training, that what a configuration says of classes and splits can be done with the data."""

from __future__ import annotations

from ltcore.config.schema import RunConfig
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import ConfigError
from ltcore.objective.class_weights import AUTO, own_weights
from ltcore.training.selection import available


def check_run(cfg: RunConfig, manifest: Manifest) -> None:
    """Raises ConfigError where early stopping has nothing to judge by, or class weights are for other classes."""
    if cfg.stage2 is None and cfg.train.patience is not None and not available(manifest):
        raise ConfigError(
            f"train.patience={cfg.train.patience}: {manifest.name} has no validation image, so training cannot stop by it. Set "
            "train.patience=null, or make the data again with a validation split (data.val_per_class above 0, or val/<class>/)."
        )
    base = cfg.objective.base
    weights = getattr(getattr(cfg.objective.base_options, base), "class_weights", None)
    if weights not in (None, AUTO):
        try:
            own_weights(weights, manifest.stats(cfg.data.train_split))
        except ConfigError as error:
            raise ConfigError(f"objective.base_options.{base}.{error}") from None
