"""The forward of a training step: network, key encoder and objective in the module that DDP wraps."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import Tensor, nn

from ltcore.batch import Batch, Mix, ModelOutput
from ltcore.models.ema import EmaCopy
from ltcore.models.net import LongTailNet
from ltcore.objective.objective import Objective


class TrainStep(nn.Module):
    """``net`` on view 1, the EMA key encoder or ``net`` itself on the last view where a loss needs it, then the objective.

    The key encoder is not a submodule: it has no gradient, and DDP would have to be told to ignore it. ``twin`` is one: it is
    trained by the same optimizer, but neither evaluated nor exported.
    """

    def __init__(
        self,
        net: LongTailNet,
        objective: Objective,
        key: EmaCopy | None,
        autocast: torch.dtype | None,
        twin: LongTailNet | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.twin = twin
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
        if self.objective.base.pairs:
            return self._of_pairs(batch, progress)
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
        if self.twin is not None:
            with self._precision(device):
                out = replace(out, twin_logits_BC=self.twin(batch.images_VBCHW[0]).logits_BC)
        if "second" in self.objective.needs:
            with self._precision(device):
                out = replace(out, second=self.net(batch.images_VBCHW[-1]))
        result = self.objective(out, batch, progress)
        loss = result.loss
        for query_Bd in (out.query_Bd, out.own_query_Bd):
            if query_Bd is not None:
                # DDP expects a gradient of every parameter; before its term starts, a projection gets a gradient of zero.
                loss = loss + 0.0 * query_Bd.sum()
        return loss, result.parts, out.detached()

    def _of_pairs(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor], ModelOutput]:
        """Trains on pairs of neighboring rows, whose features and labels are mixed by the base's share."""
        share = self.objective.base.pair_share(progress)
        first_BCHW, second_BCHW = batch.images_VBCHW[0, 0::2], batch.images_VBCHW[0, 1::2]
        with self._precision(first_BCHW.device):
            out = self.net.of_pairs(first_BCHW, second_BCHW, share)
        labels_B, index_B = batch.labels_B[0::2], batch.index_B[0::2]
        mix = Mix(batch.labels_B[1::2], torch.full_like(labels_B, share, dtype=torch.float32), batch.index_B[1::2])
        pairs = Batch(batch.images_VBCHW[:, 0::2], labels_B, index_B, batch.copy_B[0::2], mix)
        result = self.objective(out, pairs, progress)
        return result.loss, result.parts, out.detached()


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
