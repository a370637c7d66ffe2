"""What the sources with a chosen imbalance share: the name and the provenance of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ltcore.data.config import DataConfig
from ltcore.data.datasets.longtail import Subset
from ltcore.data.shards.remarks import SELECTED_FROM


def tail_name(base: str, cfg: DataConfig) -> str:
    """``cifar100-if100-keyed``; the base alone where the data are used as they are."""
    return base if cfg.imbalance_factor is None else f"{base}-if{cfg.imbalance_factor:g}-{cfg.subset}"


def tail_provenance(cfg: DataConfig, carved: Subset, classes: Sequence[str], *, val_given: bool) -> dict[str, Any]:
    """How train and val were chosen, and which classes have fewer validation images than was asked for."""
    chosen: dict[str, Any] = {}
    if cfg.imbalance_factor is not None:
        chosen |= {"subset": cfg.subset, SELECTED_FROM: carved.available}
    chosen |= {"imbalance_factor": cfg.imbalance_factor, "subset_seed": cfg.subset_seed}
    if val_given:
        return {**chosen, "val": "as given"}
    spare = "training images, at most a fifth of a class" if cfg.imbalance_factor is None else "unused training images"
    return {
        **chosen,
        "val": f"{cfg.val_per_class} per class of {spare}",
        "val_short": {classes[c]: count for c, count in carved.val_short.items()},
    }
