"""Class statistics of the training split: counts and priors, indexed by the integer class id.

They are built once, from the manifest, so no loss ever sorts class names (the published GLT code sorts them as strings,
which permutes the prior of every data set with more than ten classes; ``ClassStats.in_text_order`` is that).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassStats:
    """Counts of the training split. All tensors are [C]."""

    counts_C: Tensor
    """int64 images per class in the training split (or, while tuning, in what is left of it)."""
    shot_groups: tuple[str, ...]
    """Per class: 'many', 'medium' or 'few'."""
    stream_counts_C: Tensor | None = None
    """float64 expected images per class and epoch that the model really sees; None means ``counts_C``."""

    def __post_init__(self) -> None:
        if len(self.shot_groups) != len(self.counts_C):
            raise ValueError(f"{len(self.shot_groups)} shot groups for {len(self.counts_C)} classes")

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.counts_C)

    @property
    def num_samples(self) -> int:
        """N, images of the training split."""
        return int(self.counts_C.sum())

    def in_text_order(self) -> ClassStats:
        """Counts as GLT's code hands them to a loss: class c gets those of the c-th class number in the order of text.

        With twelve classes that is 0, 1, 10, 11, 2, ..., 9; up to ten classes nothing moves. Shot groups stay, and the
        stream is the data set's, which is all that code knows.
        """
        order_C = torch.tensor(sorted(range(self.num_classes), key=str), device=self.counts_C.device)
        return replace(self, counts_C=self.counts_C[order_C], stream_counts_C=None)

    def log_prior_C(self, which: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """[C] log prior of the ``dataset``, or of the ``stream`` (after resampling or re-weighting).

        A class without a sample gets the prior of half a sample, so that its logit stays finite. Raises ValueError for
        another ``which``.
        """
        if which not in ("dataset", "stream"):
            raise ValueError(f"prior must be 'dataset' or 'stream', got {which!r}")
        counts = self.counts_C if which == "dataset" or self.stream_counts_C is None else self.stream_counts_C
        counts = counts.double().clamp_min(0.5)
        return (counts / counts.sum()).log().to(dtype)
