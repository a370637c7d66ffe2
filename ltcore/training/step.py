"""The forward of a training step: network, key encoder and objective in the module that DDP wraps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.batch import Batch, Mix, ModelOutput
from ltcore.models.ema import EmaCopy
from ltcore.models.net import LongTailNet
from ltcore.objective.objective import Objective


class TrainStep(nn.Module):
    """``net`` on view 1, the EMA key encoder on the last view where a loss needs keys, then the objective.

    The key encoder is not a submodule: it has no gradient, and DDP would have to be told to ignore it.
    """

    def __init__(
        self, net: LongTailNet, objective: Objective, key: EmaCopy | None, autocast: torch.dtype | None
    ) -> None:
        super().__init__()
        self.net = net
        self.objective = objective
        self._key = (key,)
        self._autocast = autocast

    @property
    def key(self) -> EmaCopy | None:
        """Returns the key encoder; None where no loss needs keys."""
        return self._key[0]

    def _precision(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self._autocast)

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor], ModelOutput]:
        """Returns the loss with gradient, detached parts, and the detached output.

        ``batch`` is augmented, float32.
        """
        device = batch.labels_B.device
        with self._precision(device):
            out: ModelOutput = self.net(batch.images_VBCHW[0])
        if self.key is not None:
            with torch.no_grad(), self._precision(device):
                keyed: ModelOutput = self.key.net(batch.images_VBCHW[-1])
            out = replace(
                out,
                key_Bd=keyed.query_Bd,
                own_key_Bd=keyed.own_query_Bd,
                key_features_BD=keyed.features_BD,
                fmap_BDhw=keyed.fmap_BDhw,
                stage_fmaps_BDhw=keyed.stage_fmaps_BDhw,
            )
        result = self.objective(out, batch, progress)
        loss = result.loss
        for query_Bd in (out.query_Bd, out.own_query_Bd):
            if query_Bd is not None:
                # DDP expects a gradient of every parameter; before its term starts, a projection gets a gradient of zero.
                loss = loss + 0.0 * query_Bd.sum()
        return loss, result.parts, detached(out)


def detached(out: ModelOutput) -> ModelOutput:
    """Returns the output without its graph, for memories to observe."""

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: cut(tensor) for name, tensor in value.items()}
        return None if value is None else value.detach()

    return ModelOutput(**{field.name: cut(getattr(out, field.name)) for field in fields(out)})


def micro_batches(batch: Batch, parts: int) -> list[Batch]:
    """Splits the batch into ``parts`` equal consecutive pieces, for gradient accumulation."""
    if parts == 1:
        return [batch]
    size = len(batch) // parts
    mixes = (
        [None] * parts
        if batch.mix is None
        else [
            Mix(
                batch.mix.labels_B[i * size : (i + 1) * size],
                batch.mix.lam_B[i * size : (i + 1) * size],
                batch.mix.index_B[i * size : (i + 1) * size],
            )
            for i in range(parts)
        ]
    )
    return [
        Batch(
            batch.images_VBCHW[:, i * size : (i + 1) * size],
            batch.labels_B[i * size : (i + 1) * size],
            batch.index_B[i * size : (i + 1) * size],
            batch.copy_B[i * size : (i + 1) * size],
            mixes[i],
            None if batch.boxes_VB4 is None else batch.boxes_VB4[:, i * size : (i + 1) * size],
        )
        for i in range(parts)
    ]
