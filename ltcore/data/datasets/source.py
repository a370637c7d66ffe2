"""Where data sets come from: one file per kind of source, each returning a :class:`Source`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ltcore.data.shards.writer import Sample


class Rows(Protocol):
    """The samples of one split, read while they are iterated; every iteration gives the same ones."""

    def __iter__(self) -> Iterator[Sample]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set before it is written; fields as in ``ltcore.data.shards.manifest.Manifest``."""

    name: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    splits: Mapping[str, Rows]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shot_rule: str
    provenance: Mapping[str, Any]
