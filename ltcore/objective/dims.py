"""Feature sizes for losses and memories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureDims:
    """Sizes by which losses and memories allocate their tensors."""

    features: int
    """D, length of the pooled feature."""
    projection: int
    """d, length of query and key."""
    num_samples: int
    """N, samples of the training split."""
    stages: Mapping[str, int] = field(default_factory=dict)
    """Length of the pooled features of each earlier stage, by stage name."""
    fmap: int | None = None
    """Channels of the last feature map; None: D."""


def widened(tensor: Tensor) -> Tensor:
    """Converts half types to float32 and returns other tensors as they are: losses are never computed below float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
