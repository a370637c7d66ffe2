"""PaCo, parametric contrastive learning: one softmax over learnable class centers and the contrast set.

    a_ic = (s_ic + log pi_c) / T_c      (centers: the rows of the linear head)
    a_ij = q_i . v_j / T                (contrast set: queries, keys, queue; never i itself)
    L_i  = -sum_m w_im (a_im - log(sum_c e^a_ic + gamma sum_j e^a_ij)) / sum_m w_im
    w    = beta at the own center, alpha at elements of the own class, 0 elsewhere

Source: Cui et al., Parametric Contrastive Learning, ICCV 2021, and its code.
Differs from the code: unfilled queue slots are masked instead of random; the own similarity is set to -inf before the
maximum is taken, so that nothing underflows; no 1e-12 and 1e-9 are added inside logarithms. The contrast set has the
queries and keys of all ranks; theirs has those of one rank (at 224 px 32 images on each of 4 GPUs; their scripts for CIFAR
ask for one GPU), and only the queue is shared.
This gives more positives per image, and the same value on any number of ranks. Keys are not shuffled between ranks
before batch norm, so the query and the key of an image share their batch statistics with the same neighbors. Differs
from the paper, as the code does: the sum is divided by its weights (``normalize_by_weight``).
Shapes: logits [B, C], queries and keys [B, d], contrast set A = 2WB + Q.
Cost: 2BAd + 2BCD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import at_least, positive
from ltcore.objective.contrast import ContrastSet
from ltcore.objective.dims import widened
from ltcore.objective.interface import Base, LossContext
from ltcore.objective.memory.base import MemorySpec
from ltcore.objective.memory.queue import Queue, QueueSpec


class Paco(Base):
    """Contrastive loss with class centers; balanced softmax where ``sample_weight`` and ``neg_weight`` are 0."""

    needs = frozenset({"query", "key"})
    label_mix = False
    contrasts = True
    learns_centers = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        sample_weight: float = 0.01
        """Weight of each positive in the contrast set (alpha), >= 0. The authors: 0.01 for CIFAR, 0.05 for ImageNet-LT.
        """
        center_weight: float = 1.0
        """Weight of the own class center (beta). > 0."""
        neg_weight: float = 1.0
        """Factor of the contrast set in the denominator (gamma), >= 0. 0 only together with sample_weight 0: positives
        missing from the denominator could be pulled without limit.
        """
        temperature: float = 0.05
        """Divides cosines. > 0. The authors: 0.05 for CIFAR, 0.07 or 0.2 for ImageNet-LT."""
        center_temperature: float = 1.0
        """Divides the logits and the prior. > 0."""
        queue_size: int = 1024
        """Keys of earlier steps in the contrast set; 0 is none. The authors: 1024 for CIFAR, 8192 otherwise."""
        normalize_by_weight: bool = True
        """Divide each sample's sum by its weights, as the code does. false is the paper's equation, in which samples of
        head classes weigh more because they have more positives.
        """

        def __post_init__(self) -> None:
            at_least(0, sample_weight=self.sample_weight, neg_weight=self.neg_weight, queue_size=self.queue_size)
            positive(
                center_weight=self.center_weight,
                temperature=self.temperature,
                center_temperature=self.center_temperature,
            )
            if self.neg_weight == 0 and self.sample_weight > 0:
                raise ValueError(
                    f"neg_weight may be 0 only where sample_weight is, got sample_weight={self.sample_weight}: "
                    "positives outside the denominator make the loss unbounded below"
                )

    cfg: Config

    @staticmethod
    def views(cfg: Config) -> int:
        """Returns 2: queries come from the first view, keys from the second."""
        return 2

    @staticmethod
    def gathers(cfg: Config) -> bool:
        """Returns True, since the contrast set is the global batch."""
        return True

    @staticmethod
    def balances(cfg: Config) -> str:
        return "adds the log class prior to the logits of its centers"

    def memories(self) -> dict[str, MemorySpec]:
        """Returns the queue of keys, unless its size is 0."""
        return {"queue": QueueSpec(self.cfg.queue_size)} if self.cfg.queue_size else {}

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample. A collective: the contrast set spans the global batch and the queue."""
        contrast = ContrastSet.of(out, labels_B, ctx, cast("Queue | None", ctx.memories.get("queue")))
        spared = ctx.shared.spared
        spared_BA = None if spared is None else spared(contrast.labels_A)
        return self.loss(contrast, widened(out.mean_logits_BC), labels_B, ctx, spared_BA)

    def loss(
        self,
        contrast: ContrastSet,
        logits_BC: Tensor,
        labels_B: Tensor,
        ctx: LossContext,
        spared_BA: Tensor | None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Returns the loss [B] of each anchor of the contrast set.

        ``spared_BA``, bool, are elements that are no negatives. ``label_smoothing`` is the share of the own center's weight that
        goes to all other centers in equal parts.
        """
        cfg = self.cfg
        centers_BC = (logits_BC + ctx.log_prior_C.to(logits_BC.dtype)) / cfg.center_temperature
        samples_BA = contrast.cosine_BA / cfg.temperature
        log_gamma = math.log(cfg.neg_weight) if cfg.neg_weight else -math.inf
        outside_BA = contrast.excluded_BA if spared_BA is None else contrast.excluded_BA | spared_BA
        in_sum_BA = (samples_BA + log_gamma).masked_fill(outside_BA, -math.inf)
        log_sum_B = torch.cat([centers_BC, in_sum_BA], 1).logsumexp(1)

        positive_BA = (labels_B[:, None] == contrast.labels_A) & ~contrast.excluded_BA
        num_positive_B = positive_BA.sum(1)
        own_B = centers_BC.gather(1, labels_B[:, None]).squeeze(1)
        if label_smoothing:
            others_B = (centers_BC.sum(1) - own_B) / (centers_BC.shape[1] - 1)
            own_B = (1 - label_smoothing) * own_B + label_smoothing * others_B
        center_B = own_B - log_sum_B
        sample_B = (samples_BA * positive_BA).sum(1) - num_positive_B * log_sum_B
        loss_B = -(cfg.center_weight * center_B + cfg.sample_weight * sample_B)
        if cfg.normalize_by_weight:
            loss_B = loss_B / (cfg.center_weight + cfg.sample_weight * num_positive_B.to(loss_B.dtype))
        return loss_B
