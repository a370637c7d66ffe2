"""What pretrained weights expect images to be, put into the keys of ``data`` that were left null when a run starts.

From then on it stands in the configuration, so that whatever continues, evaluates or exports the run prepares images the
same way, wherever the weights have gone. A network of ``train.init_from`` expects what its own run had in these keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ltcore.config.schema import RunConfig
from ltcore.config.trained_with import InputRecord
from ltcore.data.augment.policies import LARGE_PX
from ltcore.data.config import DataConfig
from ltcore.data.prep import Prep
from ltcore.models.weights import WeightsInput, expected_input
from ltcore.training import checkpoint as ckpt
from ltcore.training.fetch import fetched_checkpoint

KEYS = tuple(f"data.{field.name}" for field in fields(WeightsInput))
"""Keys that weights fill."""
FRAMING_KEYS = ("interpolation", "crop_fraction", "crop_mode")
"""Those that say how whole images are brought to canvases."""
DECIDING = ("model.name", "model.weights", "train.init_from", "data.image_size")
"""Keys on which it depends what weights fill."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RunInput:
    """The same keys of a run that another starts from; None: it had what its data set says, or the default."""

    image_size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    interpolation: str | None
    crop_fraction: float | None
    crop_mode: str | None


def with_input(cfg: RunConfig, stored: Mapping[str, Any] | None = None) -> RunConfig:
    """Returns ``cfg`` with the keys that weights fill; doing it twice changes nothing.

    ``stored``: the flat configuration of a run that continues, which keeps what it began with; None where it begins.
    """
    if stored is not None and _same_start(cfg.to_flat(), stored):
        known = {key: stored.get(key) for key in KEYS if getattr(cfg.data, key.removeprefix("data.")) is None}
        known = {key: value for key, value in known.items() if value is not None}
        return cfg.replace(known) if known else cfg
    expected = expected_of(cfg)
    return cfg if expected is None else replace(cfg, data=as_expected(cfg.data, expected))


def _same_start(flat: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Tells whether a run starts where the stored one did; a start that failed may have been about other weights."""
    keys = ("model.name", "model.weights", "train.init_from")
    return all(flat.get(key) == stored[key] for key in keys if key in stored)


def still_prepared(cfg: RunConfig, stored: Mapping[str, Any]) -> bool:
    """Tells whether what the record with this flat configuration says of its images holds for a run of ``cfg``.

    It does not where a start that failed was about other weights or images.
    """
    flat = cfg.to_flat()
    return all(flat.get(key) == stored[key] for key in (*DECIDING, *KEYS) if key in stored)


def expected_of(cfg: RunConfig) -> WeightsInput | RunInput | None:
    """Returns what the weights that a run starts from expect; None where they expect nothing."""
    if cfg.train.init_from is None:
        return expected_input(cfg.model.name, cfg.model.weights)
    with fetched_checkpoint(cfg.train.init_from, weights=False) as path:
        if not path.exists():
            return None  # which is an error when it is read
        theirs = ckpt.read(path, cfg.train.init_from).config().data
    found = {field.name: getattr(theirs, field.name) for field in fields(WeightsInput)}
    return None if all(value is None for value in found.values()) else RunInput(**found)


def as_expected(data: DataConfig, expected: WeightsInput | RunInput) -> DataConfig:
    """Returns ``data`` with the keys that are null as the weights expect them.

    Canvases of at most 64 px hold images whole, as they were made: their framing stays. Where neither says a size, the framing
    is that of a run whose data set decided about it too.
    """
    side = data.image_size or expected.image_size
    large = side is None or side > LARGE_PX
    names = [field.name for field in fields(WeightsInput) if large or field.name not in FRAMING_KEYS]
    return replace(data, **{name: getattr(expected, name) for name in names if getattr(data, name) is None})


def differs_by_run(varied: Iterable[str]) -> bool:
    """Tells whether weights fill other values in each run of a sweep that varies these dotted keys."""
    return bool({*varied} & {*DECIDING})


def input_record(cfg: RunConfig, prep: Prep, expected: WeightsInput | RunInput | None) -> InputRecord:
    """Returns what is in force, and where each value comes from."""
    sources = {}
    for field in fields(WeightsInput):
        value, default = getattr(cfg.data, field.name), "default" if field.name in FRAMING_KEYS else "data set"
        of_weights = expected is not None and value == getattr(expected, field.name)
        sources[field.name] = default if value is None else "weights" if of_weights else "key"
    return InputRecord(
        image_size=prep.image_size,
        mean=prep.mean,
        std=prep.std,
        interpolation=prep.framing.interpolation,
        crop_fraction=prep.framing.crop_fraction,
        crop_mode=prep.framing.crop_mode,
        sources=sources,
    )
