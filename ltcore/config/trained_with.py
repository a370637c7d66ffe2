"""What a run was trained with, as its record says it: the machine, the data, and the images as the network saw them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltcore.config.json_record import JsonRecord


@dataclass(frozen=True, kw_only=True)
class Hardware(JsonRecord):
    """The machine that something was computed on."""

    cpu: str
    """Name of the processor."""
    cpus: int
    """CPUs that the process may use."""
    gpus: tuple[str, ...]
    memory_bytes: int
    """Of the machine."""
    host: str
    cluster: str | None = None
    """Of a sweep: the cluster in words."""


@dataclass(frozen=True, kw_only=True)
class InputRecord(JsonRecord):
    """How images are prepared for the network; fields as the keys of ``data``."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str | None
    """None: bilinear."""
    crop_fraction: float
    crop_mode: str
    sources: Mapping[str, str]
    """Field -> 'key' (a key says otherwise than the weights), 'weights', 'data set' or 'default'."""

    @property
    def text(self) -> str:
        """Returns all values in one line, grouped by where they come from."""
        groups: dict[str, list[str]] = {}
        for name, source in self.sources.items():
            groups.setdefault(source, []).append(f"data.{name}={_value_text(getattr(self, name))}")
        return ", ".join(f"{' '.join(values)} ({source})" for source, values in groups.items())


def _value_text(value: Any) -> str:
    if value is None:
        return "bilinear"
    if isinstance(value, tuple):
        return ",".join(map(_value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class TrainedData(JsonRecord):
    """The data that a run was trained on."""

    name: str
    hash: str
    uri: str
    """Where the shards were, as the nodes saw it."""
    num_train: int
    classes: tuple[str, ...]
    shot_groups: tuple[str, ...]
    """'many', 'medium' or 'few' of each class."""
    class_counts: tuple[int, ...]
    """Training images of each class."""
    image_size: int
    """Side in pixels at which images are decoded."""
    loader: str
    loader_reason: str
    input: InputRecord | None = None
    """None of runs that began before it was recorded."""

    def __post_init__(self) -> None:
        for name, values in (("shot_groups", self.shot_groups), ("class_counts", self.class_counts)):
            if len(values) != len(self.classes):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.classes)} classes")
