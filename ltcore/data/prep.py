"""What is done to every image before the network sees it, apart from augmentation: its canvas and its normalization."""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.data.config import DataConfig
from ltcore.data.shards.manifest import Manifest
from ltcore.framing import Framing


@dataclass(frozen=True)
class Prep:
    """How images are prepared."""

    image_size: int
    """S, the side of a canvas."""
    mean: tuple[float, ...]
    """Per channel, of pixel values in [0, 1]."""
    std: tuple[float, ...]
    framing: Framing


def prep_of(cfg: DataConfig, manifest: Manifest) -> Prep:
    """Returns what the keys say, and where they are null what the data set says."""
    mean = cfg.mean or manifest.mean
    return Prep(cfg.image_size or manifest.image_size, mean, cfg.std or manifest.std, framing_of(cfg, mean))


def framing_of(cfg: DataConfig, mean: tuple[float, ...]) -> Framing:
    """Returns how whole images are brought to canvases; borders are filled with the mean color."""
    return Framing.of(cfg.interpolation, cfg.crop_fraction, cfg.crop_mode, mean)
