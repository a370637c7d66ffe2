"""A check, before training, that the metric for selection can have a value on the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltcore.config.sweep import SELECTABLE
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import ConfigError
from ltcore.evaluation.catalog import METRICS, NCM_METRICS, VALIDATION
from ltcore.evaluation.plugged import PLUGGED


def check_selection(wanted: Mapping[str, str], manifest: Manifest) -> None:
    """Raises ConfigError where a key names a validation metric that never has a value here.

    ``wanted`` maps keys to metrics. A run without a validation split may keep the default of ``train.select``: it then
    has no best epoch, only a last one.
    """
    reasons = _reasons(manifest)
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
            f"{key}={metric}: {reasons[metric]} in the validation split of {manifest.name}, so it never has a value. There "
            f"are {', '.join(there)}."
        )


def refuse_without_value(key: str, metrics: Mapping[str, Any], manifest: Manifest) -> None:
    """Raises ConfigError where a metric of the catalog had no value in an epoch: it depends on the data alone.

    ``check_selection`` sees the manifest only, which does not say which attributes a class has.
    """
    has_images = any(manifest.class_counts.get("val", ()))
    if has_images and key in metrics and metrics[key] is None and key.removeprefix(VALIDATION) in METRICS:
        raise ConfigError(
            f"train.select={key}: it has no value on the validation split of {manifest.name}, and never will. Choose another "
            "metric (ltcore keys train.select)."
        )


def available(manifest: Manifest) -> list[str]:
    """Returns the metrics of SELECTABLE that have a value on these data; [] without validation images."""
    if not any(manifest.class_counts.get("val", ())):
        return []
    return [metric for metric, reason in _reasons(manifest).items() if not reason]


def _reasons(manifest: Manifest) -> dict[str, str]:
    """Returns why each metric of SELECTABLE has no value; '' where it has one."""
    counts = manifest.class_counts.get("val", ())
    groups = {group for group, count in zip(manifest.shot_groups, counts, strict=False) if count}
    known = {**METRICS, **NCM_METRICS}
    sizes = (len(manifest.classes), len(manifest.attributes))
    reasons = {VALIDATION + name: metric.missing(groups, *sizes) for name, metric in known.items()}
    return reasons | {VALIDATION + name: "" for name in PLUGGED}  # which may lack a value, but nobody knows when
