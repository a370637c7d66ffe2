"""The contrast set and the supervised contrastive loss that PaCo and LPA share.

Shapes: B anchors of this rank, A = 2WB + Q contrast elements (WB + Q without keys), d projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import ModelOutput
from ltcore.objective.embedding import QUERY, key_of, query_of, second_of
from ltcore.objective.interface import LossContext
from ltcore.objective.memory.queue import Queue


@dataclass(frozen=True)
class ContrastSet:
    """Similarities of this rank's queries to the queries and keys of the global batch and to the queue.

    Built once per forward for all losses that ask for the same set.
    """

    labels_A: Tensor
    """int64; -1 in unfilled queue slots."""
    cosine_BA: Tensor
    """float32 (float64 for float64 input); the gradient flows to the queries on both sides, of all ranks."""
    excluded_BA: Tensor
    """bool; True for the anchor itself and for unfilled queue slots."""

    @classmethod
    def of(
        cls,
        out: ModelOutput,
        labels_B: Tensor,
        ctx: LossContext,
        queue: Queue | None,
        space: str = QUERY,
        *,
        keys: bool = True,
    ) -> ContrastSet:
        """Returns the contrast set of this forward, with or without ``keys``.

        Losses that ask with the same arguments get the same object. The first call is a collective.
        """
        key = ("contrast", queue, space, keys)

        def build() -> ContrastSet:
            return cls._build([query_of(out, space)], [key_of(out, space)] if keys else [], labels_B, queue)

        contrast: ContrastSet = ctx.once(key, build)
        return contrast

    @classmethod
    def of_both_views(cls, out: ModelOutput, labels_B: Tensor, queue: Queue | None) -> ContrastSet:
        """Returns the contrast set whose anchors are the queries of both views, first those of view 1. A collective.

        Its rows are [2B], and the gradient flows to both views.
        """
        return cls._build([query_of(out, QUERY), query_of(second_of(out), QUERY)], [], labels_B, queue)

    @classmethod
    def _build(
        cls, anchors_Bd: list[Tensor], keys_Bd: list[Tensor], labels_B: Tensor, queue: Queue | None
    ) -> ContrastSet:
        """Compares each of the anchors with all anchors and keys of all ranks and with the queue."""
        size, gathered = len(labels_B), dist.gather(labels_B)
        contrast_Ad = [*map(dist.gather_with_grad, anchors_Bd), *map(dist.gather, keys_Bd)]
        labels_A = [gathered] * len(contrast_Ad)
        valid_A = [torch.ones_like(gathered, dtype=torch.bool)] * len(contrast_Ad)
        if queue is not None:
            contrast_Ad.append(queue.keys_Qd.to(anchors_Bd[0].dtype))
            labels_A.append(queue.labels_Q)
            valid_A.append(queue.valid_Q)
        excluded_BA = (~torch.cat(valid_A)).repeat(size * len(anchors_Bd), 1)
        own = torch.arange(size, device=labels_B.device)
        for view in range(len(anchors_Bd)):
            excluded_BA[view * size + own, view * len(gathered) + dist.rank() * size + own] = True
        # queue.merge overwrites its tensors after the step; torch.cat copies them, so the graph keeps this step's keys
        return cls(torch.cat(labels_A), torch.cat(anchors_Bd) @ torch.cat(contrast_Ad).T, excluded_BA)


def supcon(cosine_BA: Tensor, weights_BA: Tensor, excluded_BA: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns the loss [B] of each anchor, and bool [B], whether it has a positive.

        L_i = -(1 / sum_j M_ij) sum_j M_ij log softmax_{j not excluded}(cos_ij / T)

    The loss of an anchor without a positive is 0. ``weights_BA`` is M >= 0; entries at excluded elements are ignored.
    The logarithm is inside the sum ("out" form of Khosla et al., Supervised Contrastive Learning, 2020, with their base
    temperature equal to T, so that no factor remains).
    """
    # Mask before the maximum is taken: the self cosine (1/T = 20 at T = 0.05) would make all other terms underflow.
    logits_BA = (cosine_BA / temperature).masked_fill(excluded_BA, float("-inf"))
    log_prob_BA = logits_BA.log_softmax(1).masked_fill(excluded_BA, 0.0)
    weights_BA = weights_BA.masked_fill(excluded_BA, 0.0)
    total_B = weights_BA.sum(1)
    valid_B = total_B > 0
    loss_B = -(weights_BA * log_prob_BA).sum(1) / total_B.where(valid_B, 1.0)
    return loss_B, valid_B


def mean_over_valid(loss_B: Tensor, valid_B: Tensor) -> Tensor:
    """Returns the mean over the valid anchors of all ranks, 0 where no rank has one.

    Scaled such that averaging the returned values over ranks gives that mean.
    """
    count = dist.all_reduce_sum_(valid_B.sum().to(loss_B.dtype))
    return (loss_B * valid_B).sum() * dist.world() / count.clamp_min(1)
