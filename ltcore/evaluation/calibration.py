"""Calibration of the top-1 confidence: reliability bins, and the expected calibration error over them.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equations 2 and 3: M bins of equal width, bin m
holds the confidences in ((m - 1) / M, m / M], and ECE is the mean over samples of |accuracy - mean confidence| of their
bin. The confidence is the largest softmax probability of the logits that predict.

Confidences are summed as whole multiples of 2^-32, so that sums, and with them ECE, are the same for any split of the rows
over ranks; a confidence is rounded by 2^-33 at most. Up to 2^31 samples fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NUM_BINS = 15
SCALE = 2**32
"""Units of confidence in 1."""
Sums = Sequence[Sequence[int]]
"""[NUM_BINS][3]: samples, correct ones, and the confidences' sum in units of 1 / SCALE."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The samples whose confidence lies in one bin; their means are None where there is none."""

    count: int
    confidence: float | None = None
    """Mean confidence."""
    accuracy: float | None = None
    """Share of correct predictions."""


def reliability(sums: Sums) -> list[ReliabilityBin]:
    """Returns the bins, from the lowest confidence to the highest."""
    return [
        ReliabilityBin(count, confidence / (count * SCALE), correct / count) if count else ReliabilityBin(0)
        for count, correct, confidence in sums
    ]


def expected_calibration_error(sums: Sums) -> float | None:
    """Returns ECE, 0 for perfect calibration; None without samples."""
    total = sum(count for count, _, _ in sums)
    gaps = sum(abs(correct * SCALE - confidence) for _, correct, confidence in sums)
    return gaps / (total * SCALE) if total else None
