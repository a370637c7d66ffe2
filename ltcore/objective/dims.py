"""Sizes of the features that losses and memories see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureDims:
    """Sizes that losses and memories allocate by."""

    features: int
    """D, channels of the last feature map and length of the pooled feature."""
    projection: int
    """d, length of query and key."""
    num_samples: int
    """N, samples of the training split."""
    stages: Mapping[str, int] = field(default_factory=dict)
    """Length of the pooled features of each earlier stage, by its name."""


def widened(tensor: Tensor) -> Tensor:
    """float32 for half types, the tensor itself otherwise: losses are never computed below float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
