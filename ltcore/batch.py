"""Types that data, models and objective exchange.

Shape legend, used as suffixes everywhere: V views, B batch (rank-local), C classes, E experts or environments, D pooled
features, d projection, h w feature-map size, H W image size, N samples of the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copies ``tensor`` to a device, to a GPU by way of pinned memory.

    The host then does not wait for work on the GPU.
    """
    pin = torch.device(device).type == "cuda" and not tensor.is_cuda
    return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=True)


def device_index(device: torch.device) -> int:
    """Returns the number of a GPU; of 'cuda' without one, that of the GPU which this process uses."""
    return torch.cuda.current_device() if device.index is None else device.index


@dataclass(frozen=True, slots=True)
class Mix:
    """The second image of mixed samples.

    Of the image a share ``lam`` of the light (mixup) or of the pixels (CutMix) is the sample's own, unless Remix gave the
    label to one of the two.
    """

    labels_B: Tensor
    """int64, label of the partner."""
    lam_B: Tensor
    """float32 in [0, 1], share of the sample's own label."""
    index_B: Tensor
    """int64, the partner's number in its split; the sample's own where it has no partner."""

    def to(self, device: torch.device | str) -> Mix:
        """Copies to another device."""
        return Mix(*(to_device(tensor, device) for tensor in (self.labels_B, self.lam_B, self.index_B)))


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch."""

    images_VBCHW: Tensor
    """uint8 from the reader: the stored image with V = 1, or V views where the reader crops. Normalized float32 with V
    views after augmentation.
    """
    labels_B: Tensor
    """int64 in 0..C-1."""
    index_B: Tensor
    """int64 in 0..N-1: the sample's number in its split (first index of its shard + row)."""
    copy_B: Tensor
    """int64, which repetition of the sample in this epoch; part of the augmentation key."""
    mix: Mix | None = None
    boxes_VB4: Tensor | None = None
    """int64 (top, left, height, width), the crop of each view in pixels of the original image. None where the stored
    image shows the whole original and the augmentation crops.
    """

    def __len__(self) -> int:
        return self.labels_B.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """Copies to another device."""
        return Batch(
            to_device(self.images_VBCHW, device),
            to_device(self.labels_B, device),
            to_device(self.index_B, device),
            to_device(self.copy_B, device),
            self.mix and self.mix.to(device),
            None if self.boxes_VB4 is None else to_device(self.boxes_VB4, device),
        )

    def with_images(self, images_VBCHW: Tensor, mix: Mix | None = None) -> Batch:
        """Replaces the images by augmented ones, float32 [V, B, 3, H, W], mixed as in ``mix``."""
        return replace(self, images_VBCHW=images_VBCHW, mix=mix)


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Outputs of a network for one batch; a field that no loss needs is None."""

    logits_BC: Tensor
    """float32 without any prior added; [B, E, C] for a head with E experts."""
    features_BD: Tensor
    """Pooled features of view 1, not normalized."""
    fmap_BDhw: Tensor | None = None
    """Last feature map before pooling: of view 1, or, where a key encoder exists, of its view (no gradient)."""
    query_Bd: Tensor | None = None
    """Unit-norm projection of view 1."""
    key_Bd: Tensor | None = None
    """Unit-norm projection of the last view by the key encoder; no gradient."""
    stage_features_BD: Mapping[str, Tensor] | None = None
    """Pooled features of view 1 after earlier stages of the network, by stage name ('stage1', ...); not normalized."""
    stage_fmaps_BDhw: Mapping[str, Tensor] | None = None
    """Feature maps after earlier stages, by stage name; of the same view as ``fmap_BDhw``."""
    own_query_Bd: Tensor | None = None
    """Unit-norm projection of view 1 by a second projection, which a single term uses."""
    own_key_Bd: Tensor | None = None
    """Unit-norm second projection of the last view by the key encoder; no gradient."""
    key_features_BD: Tensor | None = None
    """Pooled features of the last view by the key encoder, not normalized; no gradient."""
    twin_logits_BC: Tensor | None = None
    """Logits of view 1 by a second network, which is trained beside the first and never evaluated."""
    second: ModelOutput | None = None
    """Output for the last view by the network itself, with gradient."""

    @property
    def mean_logits_BC(self) -> Tensor:
        """Returns logits [B, C], averaged over experts where there are any, for predictions and scores."""
        return self.logits_BC.mean(1) if self.logits_BC.dim() == 3 else self.logits_BC

    def with_each(self, change: Callable[[Tensor], Tensor]) -> ModelOutput:
        """Returns the output with each of its tensors changed."""

        def changed(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: changed(tensor) for name, tensor in value.items()}
            if isinstance(value, ModelOutput):
                return value.with_each(change)
            return None if value is None else change(value)

        return ModelOutput(**{field.name: changed(getattr(self, field.name)) for field in fields(self)})

    def detached(self) -> ModelOutput:
        """Returns the output without its graph, for memories to observe."""
        return self.with_each(Tensor.detach)
