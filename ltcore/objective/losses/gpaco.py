"""GPaCo, generalized parametric contrastive learning: PaCo without a key encoder, whose two views are both trained.

    L_i = ( PaCo_i1 + PaCo_i2 ) / 2

over the queries of the two views of image i by the same network, both with gradient and each with logits of its own. The
contrast set are the queries of both views, never the anchor itself, and a queue of earlier queries of the second view. Label
smoothing spreads a share of the own center's weight over the other centers.

Source: Cui et al., "Generalized parametric contrastive learning", TPAMI 2023, and its code.
Differs: as ``ltcore.objective.losses.paco`` does; its notes on masks, numerics and ranks apply. As in the authors' code, each
view has batch statistics of its own. Their projection has two hidden layers without batch norm
(``model.projection_hidden=2``, ``model.projection_norm=false``).
Shapes: logits [B, C] and queries [B, d] of both views, contrast set A = 2WB + Q -> loss [B].
Cost: two trained views, twice the forward and backward of one; the loss 4BAd + 4BCD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import within
from ltcore.objective.contrast import ContrastSet
from ltcore.objective.dims import widened
from ltcore.objective.embedding import SECOND, second_of
from ltcore.objective.interface import LossContext
from ltcore.objective.losses.paco import Paco
from ltcore.objective.memory.base import MemorySpec
from ltcore.objective.memory.queue import Queue, QueueSpec


class Gpaco(Paco):
    """PaCo of both views, each an anchor and a contrast of the other, without a key encoder."""

    needs = frozenset({"query", "second"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Paco.Config):
        label_smoothing: float = 0.0
        """Share of the own center's weight that goes to the other centers in equal parts. Range [0, 1)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            within("[0, 1)", label_smoothing=self.label_smoothing)

    cfg: Config

    def memories(self) -> dict[str, MemorySpec]:
        """Returns the queue of the second view's queries, unless its size is 0."""
        return {"queue": QueueSpec(self.cfg.queue_size, SECOND)} if self.cfg.queue_size else {}

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample, the mean over its views. A collective, as PaCo's."""
        contrast = ContrastSet.of_both_views(out, labels_B, cast("Queue | None", ctx.memories.get("queue")))
        logits = torch.cat([widened(view.mean_logits_BC) for view in (out, second_of(out))])
        spared = ctx.shared.spared
        spared_BA = None if spared is None else spared(contrast.labels_A).repeat(2, 1)
        loss = self.loss(contrast, logits, labels_B.repeat(2), ctx, spared_BA, self.cfg.label_smoothing)
        return loss.view(2, -1).mean(0)
