"""One size at which losses are measured: artificial network outputs, filled memories, and our form of every loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ltcore.batch import Batch, ModelOutput
from ltcore.data.datasets.longtail import profile
from ltcore.objective.memory.centroids import ClassCentroids
from ltcore.objective.memory.queue import Queue
from ltcore.objective.objective import Objective, make_objective
from ltcore.objective.terms.lpa.prototypes import Prototypes

PROGRESS = 0.5
"""A time when every term acts, and LPA still collects vectors for its next clustering."""
RESERVOIR_ROWS = 65_536
"""Limit of LPA's vectors: with 8142 classes and 2048 features its default of 128 per class would be 8.5 GB."""
NAMES = (
    *("cross_entropy", "balanced_softmax", "logit_adjust", "class_balanced", "focal", "ldam", "paco", "ride", "sade"),
    *("lpa", "dro", "ifl"),
)
NUM_EXPERTS = 3


@dataclass(frozen=True)
class Size:
    """Sizes of a case."""

    batch: int
    classes: int
    features: int
    largest: int
    """Images of the largest class; class sizes fall exponentially."""
    imbalance: float
    map_px: int
    """Side of the last feature map."""
    projection: int
    queue: int
    bank: int
    """Rows of the feature bank that the authors' DRO-LT averages."""
    prototypes: int
    """Prototypes of LPA, as in the recipe for such data."""

    def __str__(self) -> str:
        return f"({self.batch}, {self.classes}, {self.features})"


SIZES = (
    Size(128, 100, 64, 500, 100, 8, 32, 1024, 50_000, 128),  # CIFAR-100-LT
    Size(256, 1000, 2048, 1280, 256, 7, 128, 8192, 50_000, 512),  # as ImageNet-LT
    Size(256, 8142, 2048, 1000, 500, 7, 128, 8192, 50_000, 1024),  # as iNaturalist 2018
)
QUICK_SIZES = (Size(16, 10, 8, 60, 6, 4, 8, 32, 200, 8),)


class Case:
    """Random outputs and a bank of features, from a fixed seed."""

    def __init__(self, size: Size) -> None:
        self.size = size
        gen = torch.Generator().manual_seed(0)
        self.counts_C = torch.tensor(profile(size.largest, size.classes, size.imbalance))

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=gen)

        self.bank_ND = normal(size.bank, size.features).relu_()
        self.bank_labels_N = torch.multinomial(self.counts_C.double(), size.bank, replacement=True, generator=gen)
        self.rows_B = torch.randint(size.bank, (size.batch,), generator=gen)
        labels_B = self.bank_labels_N[self.rows_B]
        self.index_B = torch.randint(int(self.counts_C.sum()), (size.batch,), generator=gen)
        self.batch = Batch(torch.empty(1, size.batch, 3, 1, 1), labels_B, self.index_B, torch.zeros_like(labels_B))
        self.out = ModelOutput(
            normal(size.batch, size.classes).requires_grad_(),
            normal(size.batch, size.features).relu_().requires_grad_(),
            normal(size.batch, size.features, size.map_px, size.map_px)
            .relu_()
            .contiguous(memory_format=torch.channels_last),
            F.normalize(normal(size.batch, size.projection), dim=1).requires_grad_(),
            F.normalize(normal(size.batch, size.projection), dim=1),
        )
        expert_logits = normal(size.batch, NUM_EXPERTS, size.classes).requires_grad_()
        self.expert_out = replace(self.out, logits_BC=expert_logits)
        self._copies = itertools.count()

    def objective(self, name: str) -> Objective:
        """Returns the loss alone, or the term on top of cross-entropy.

        Its memories are filled as in the middle of training.
        """
        size = self.size
        options: dict[str, dict[str, Any]] = {
            "paco": {"queue_size": size.queue},
            "lpa": {
                "start": 0.0,
                "num_attributes": size.prototypes,
                "queue_size": size.queue,
                "embedding": "query",  # as PaCo's, so that both are timed on the same vectors
                "reservoir_per_class": max(1, min(128, RESERVOIR_ROWS // size.classes)),
            },
            "dro": {"start": 0.0},
            "ifl": {"start": 0.1, "milestones": (0.2,)},
        }
        chosen = options.get(name, {})
        is_term = name in ("lpa", "dro", "ifl")
        objective = make_objective(
            "cross_entropy" if is_term else name,
            {name: chosen} if is_term else None,
            class_counts=self.counts_C.tolist(),
            features=size.features,
            projection=size.projection,
            **({} if is_term else chosen),
        )
        self._fill(objective)
        return objective

    def _fill(self, objective: Objective) -> None:
        """Fills the memories: centroids of the bank, full queues, prototypes and environments of the batch."""
        memories = objective.memories().values()
        with torch.no_grad():
            for memory in memories:
                if isinstance(memory, ClassCentroids):
                    self._observe_bank(memory)
                elif isinstance(memory, Queue):
                    while int(memory.count) < len(memory.labels_Q):
                        memory.observe(self.out, self.batch)
                        memory.merge(0.0)
                else:
                    memory.observe(self.out, self.batch)
        objective.merge(PROGRESS)

    def _observe_bank(self, centroids: ClassCentroids) -> None:
        for features, labels in zip(self.bank_ND.split(4096), self.bank_labels_N.split(4096), strict=True):
            out = ModelOutput(features[:, :1], features)
            centroids.observe(out, Batch(torch.empty(1, len(labels), 3, 1, 1), labels, labels, labels))

    def out_for(self, objective: Objective) -> ModelOutput:
        """Returns the output that the objective expects: of one head or of several experts."""
        return self.expert_out if objective.base.expert_head else self.out

    def ours(self, objective: Objective, attributes: bool = True) -> Callable[[], Tensor]:
        """Returns a call of all that the loss costs in a step: forward, backward and memories, without the network.

        Without ``attributes``, LPA's assignment of locations to prototypes, their counts and its reservoir are left
        out.
        """
        out = self.out_for(objective)
        memories = [m for m in objective.memories().values() if attributes or not isinstance(m, Prototypes)]

        def call() -> Tensor:
            loss = objective(out, self.batch, PROGRESS).loss
            loss.backward()
            with torch.no_grad():
                batch = self._fresh_batch()
                for memory in memories:
                    memory.observe(out, batch)
                    if memory.merge_every_step:
                        memory.merge(PROGRESS)
            return loss.detach()

        return call

    def attributes(self, objective: Objective) -> Callable[[], None]:
        """Returns a call of LPA's assignment of locations to prototypes, their counts and its reservoir."""
        prototypes = next(m for m in objective.memories().values() if isinstance(m, Prototypes))

        @torch.no_grad()
        def call() -> None:
            prototypes.observe(self.out, self._fresh_batch())

        return call

    def _fresh_batch(self) -> Batch:
        """Returns the batch as further copies of its images, which no reservoir has seen."""
        return replace(self.batch, copy_B=torch.full_like(self.batch.labels_B, next(self._copies)))
