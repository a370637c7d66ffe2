"""Local feature vectors of an image, which LPA clusters and counts: the columns of one or several feature maps.

Shapes: P locations, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from ltcore.batch import ModelOutput
from ltcore.errors import pick
from ltcore.objective.dims import FeatureDims, widened

FINAL = "final"


def needs_of(layers: Sequence[str]) -> frozenset[str]:
    """Returns the network outputs that the maps of these layers require."""
    return frozenset("fmap" if layer == FINAL else f"fmap/{layer}" for layer in layers)


def channels_of(layers: Sequence[str], dims: FeatureDims) -> int:
    """Returns D of ``local_vectors``. Raises ConfigError where the network has no such stage."""
    last = dims.features if dims.fmap is None else dims.fmap
    return sum(last if layer == FINAL else pick(dims.stages, layer, "layers") for layer in layers)


def local_vectors(out: ModelOutput, layers: Sequence[str], scales: Sequence[int]) -> Tensor:
    """Returns local vectors [B, P, D], float32 at least.

    Maps of several layers are averaged down to the coarsest grid and concatenated, each at unit length, so that they
    have equal weight. For each scale s, non-overlapping windows of s x s locations (at most the whole map) are
    averaged; an incomplete window at the border is left out. The scales follow one another along P.
    """
    fmaps = [_map(out, layer) for layer in layers]
    if len(fmaps) == 1:
        fmap_BDhw = fmaps[0]
    else:
        height, width = min((fmap.shape[2:] for fmap in fmaps), key=lambda size: size[0] * size[1])
        pooled = [F.adaptive_avg_pool2d(fmap, (height, width)) for fmap in fmaps]
        fmap_BDhw = torch.cat([F.normalize(fmap, dim=1) for fmap in pooled], 1)
    vectors = [_windows(fmap_BDhw, scale).flatten(2).transpose(1, 2) for scale in scales]
    return torch.cat(vectors, 1) if len(vectors) > 1 else vectors[0]


def location_boxes(out: ModelOutput, layers: Sequence[str], scales: Sequence[int]) -> Tensor:
    """Returns the place of each of the P locations in the image, float64 [P, 4]: top, left, height, width, all in [0, 1].

    It is the cell of the grid, from which the network's receptive field extends in all directions.
    """
    height, width = min((_map(out, layer).shape[2:] for layer in layers), key=lambda size: size[0] * size[1])
    boxes = []
    for scale in scales:
        tall, wide = min(scale, height), min(scale, width)
        rows, columns = torch.arange(height // tall).double() * tall, torch.arange(width // wide).double() * wide
        top_hw, left_hw = torch.meshgrid(rows / height, columns / width, indexing="ij")
        sides = torch.ones_like(top_hw) * tall / height, torch.ones_like(top_hw) * wide / width
        boxes.append(torch.stack([top_hw, left_hw, *sides], 2).flatten(0, 1))
    return torch.cat(boxes)


def _map(out: ModelOutput, layer: str) -> Tensor:
    fmap_BDhw = out.fmap_BDhw if layer == FINAL else (out.stage_fmaps_BDhw or {}).get(layer)
    assert fmap_BDhw is not None, (
        f"a loss that reads the map of {layer} must list {set(needs_of([layer]))} in its needs"
    )
    return widened(fmap_BDhw)


def _windows(fmap_BDhw: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return fmap_BDhw
    height, width = fmap_BDhw.shape[2:]
    return F.avg_pool2d(fmap_BDhw, (min(scale, height), min(scale, width)))
