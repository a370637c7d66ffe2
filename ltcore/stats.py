"""Class statistics of the training split: counts and priors, indexed by the integer class id.

They are built once, from the manifest, so no loss ever sorts class names. The published GLT code sorts them as strings,
which permutes the prior of every data set with more than ten classes; ``ClassStats.in_text_order`` reproduces that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassStats:
    """Counts of the training split. All tensors are [C]."""

    counts_C: Tensor
    """int64 images per class in the training split; while tuning, without the images held out for validation."""
    shot_groups: tuple[str, ...]
    """Per class: 'many', 'medium' or 'few'."""
    stream_counts_C: Tensor | None = None
    """float64 expected images per class and epoch that the model really sees; None means ``counts_C``."""

    class_names: tuple[str, ...] = ()
    """[C], or () where nobody gave them."""

    def __post_init__(self) -> None:
        if len(self.shot_groups) != len(self.counts_C):
            raise ValueError(f"{len(self.shot_groups)} shot groups for {len(self.counts_C)} classes")

    @property
    def num_classes(self) -> int:
        """Returns C."""
        return len(self.counts_C)

    @property
    def num_samples(self) -> int:
        """Returns N, the number of images of the training split."""
        return int(self.counts_C.sum())

    def in_text_order(self) -> ClassStats:
        """Returns the counts as GLT's code passes them to a loss.

        Class c gets the count of the c-th class number in text order. With twelve classes that order is 0, 1, 10, 11,
        2, ..., 9; up to ten classes nothing changes. Shot groups are kept, and the stream is that of the data set,
        which is all that code considers.
        """
        order_C = torch.tensor(sorted(range(self.num_classes), key=str), device=self.counts_C.device)
        return replace(self, counts_C=self.counts_C[order_C], stream_counts_C=None)

    def log_prior_C(self, which: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the log prior [C] of the ``dataset`` or of the ``stream`` (after resampling or re-weighting).

        A class without samples gets the prior of half a sample, so that its logit stays finite. Raises ValueError for
        another ``which``.
        """
        if which not in ("dataset", "stream"):
            raise ValueError(f"prior must be 'dataset' or 'stream', got {which!r}")
        counts = self.counts_C if which == "dataset" or self.stream_counts_C is None else self.stream_counts_C
        counts = counts.double().clamp_min(0.5)
        return (counts / counts.sum()).log().to(dtype)
