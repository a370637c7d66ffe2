"""Small prototypes of LPA, and windows of maps for them."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore.batch import Batch, ModelOutput
from ltcore.objective.terms.lpa.prototypes import Prototypes, PrototypesSpec
from ltcore.stats import ClassStats

SPEC = PrototypesSpec(
    layers=None,
    scales=(1,),
    num_attributes=4,
    neighbors=2,
    threshold=0.0,
    shrink=1.0,
    centering="centered",
    similarity="cosine",
    score="hard",
    score_temperature=0.1,
    metric="cosine",
    reservoir="class",
    reservoir_per_class=6,
    locations_per_image=2,
    start=0.1,
    refresh_fraction=0.2,
    freeze_fraction=0.6,
    online_rate=0.0,
    iterations=10,
)


CLASSES, DIM = 3, 5


STATS = ClassStats(torch.tensor([8, 4, 2]), ("many", "medium", "few"))


def memory(spec: PrototypesSpec = SPEC, seed: int = 0) -> Prototypes:
    return Prototypes(spec, STATS, DIM, seed)


def observe(into: Prototypes, fmap_BDhw: Tensor, labels_B: Tensor, index_B: Tensor) -> None:
    num = len(labels_B)
    out = ModelOutput(torch.zeros(num, CLASSES), torch.zeros(num, DIM), fmap_BDhw=fmap_BDhw)
    into.observe(out, Batch(torch.zeros(1, num, 3, 1, 1), labels_B, index_B, torch.zeros_like(index_B)))


def window(seed: int, num: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [num, D, 2, 3], labels (every class) and indices."""
    gen = torch.Generator().manual_seed(seed)
    return torch.rand(num, DIM, 2, 3, generator=gen), torch.arange(num) % CLASSES, torch.arange(num)
