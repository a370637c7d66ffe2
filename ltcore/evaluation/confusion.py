"""Confusion counts: the one integer table from which every metric of an evaluation follows.

Integer sums are exact, so the counts, and with them every metric, are the same for any split of the data over ranks.
Shapes: A attributes + 1 slot for 'unknown', C classes (rows: label, columns: prediction), B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore import dist


class Confusion:
    """Prediction counts of one evaluation. Memory: 8 (A + 1) C^2 bytes."""

    def __init__(self, num_classes: int, num_attributes: int = 0, device: torch.device | str = "cpu") -> None:
        self.counts_ACC = torch.zeros(
            num_attributes + 1, num_classes, num_classes, dtype=torch.int64, device=torch.device(device)
        )
        """int64; the last slot of axis 0 counts samples without an attribute."""

    def update(self, logits_BC: Tensor, labels_B: Tensor, attributes_B: Tensor | None = None) -> None:
        """Counts one batch. Equal logits go to the lower class id; an attribute of -1, or none at all, is 'unknown'.

        Raises IndexError where a label or an attribute is outside the table.
        """
        device = self.counts_ACC.device
        if attributes_B is None:
            attributes_B = torch.full_like(labels_B, -1)
        cells = (attributes_B.to(device), labels_B.to(device), logits_BC.argmax(-1).to(device))
        self.counts_ACC.index_put_(cells, torch.ones_like(cells[1]), accumulate=True)  # -1 is the last slot

    def reduce(self) -> Tensor:
        """Sums over ranks in place, once, after the last ``update``; returns ``counts_ACC``."""
        return dist.all_reduce_sum_(self.counts_ACC)

    @property
    def total(self) -> int:
        """Returns the number of samples counted so far.

        After ``reduce`` it must equal the size of the split; otherwise rows were lost or counted twice.
        """
        return int(self.counts_ACC.sum())
