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
    """What the maps of these layers ask of the network."""
    return frozenset("fmap" if layer == FINAL else f"fmap/{layer}" for layer in layers)


def channels_of(layers: Sequence[str], dims: FeatureDims) -> int:
    """D of ``local_vectors``. Raises ConfigError where the network has no such stage."""
    return sum(dims.features if layer == FINAL else pick(dims.stages, layer, "layers") for layer in layers)


def local_vectors(out: ModelOutput, layers: Sequence[str], scales: Sequence[int]) -> Tensor:
    """[B, P, D], float32 at least.

    Of several layers the maps are averaged down to the coarsest grid and put side by side, each at unit length, so that
    they weigh the same. For each scale s, non-overlapping windows of s x s locations (at most the whole map) are averaged; a
    rest at the border is left out. Their means follow one another along P.
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


def _map(out: ModelOutput, layer: str) -> Tensor:
    fmap_BDhw = out.fmap_BDhw if layer == FINAL else (out.stage_fmaps_BDhw or {}).get(layer)
    assert fmap_BDhw is not None, f"whoever looks at local features of {layer} needs {set(needs_of([layer]))}"
    return widened(fmap_BDhw)


def _windows(fmap_BDhw: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return fmap_BDhw
    height, width = fmap_BDhw.shape[2:]
    return F.avg_pool2d(fmap_BDhw, (min(scale, height), min(scale, width)))
