"""A check, before training, that the metric for selection can have a value on the data."""

from __future__ import annotations

from collections.abc import Mapping

from ltcore.config.sweep import SELECTABLE
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import ConfigError
from ltcore.shots import SHOT_GROUPS


def check_selection(wanted: Mapping[str, str], manifest: Manifest) -> None:
    """Raises ConfigError where a key names a validation metric that never has a value here.

    ``wanted`` maps keys to metrics. A run without a validation split may keep the default of ``train.select``: it then
    has no best epoch, only a last one.
    """
    there = available(manifest)
    for key, metric in wanted.items():
        if metric in there or (not there and (key, metric) == ("train.select", SELECTABLE[0])):
            continue
        if not there:
            raise ConfigError(
                f"{key}={metric}: {manifest.name} has no validation image, so nothing can be chosen by it. Make the data again "
                "with a validation split (data.val_per_class above 0 and classes with enough images, or val/<class>/)."
            )
        raise ConfigError(
            f"{key}={metric}: no {metric.removeprefix('val/')}-shot class of {manifest.name} has a validation image, so it never "
            f"has a value. There are {', '.join(there)}."
        )


def available(manifest: Manifest) -> list[str]:
    """Returns the metrics of SELECTABLE that have a value on these data; [] without validation images."""
    counts = manifest.class_counts.get("val", ())
    groups = {group for group, count in zip(manifest.shot_groups, counts, strict=False) if count}
    absent = {f"val/{group}" for group in SHOT_GROUPS if group not in groups}
    return [metric for metric in SELECTABLE if metric not in absent] if groups else []
