"""Two metrics: one of what was counted, one of a score of each sample."""

from __future__ import annotations

from torch import Tensor

from ltcore import Counted, Metric, plugins


@plugins.metric("neg_log_loss", summary="mean log-probability of the true class")
class NegLogLoss(Metric):
    """Minus the cross-entropy of the split."""

    def score(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Returns log-probabilities."""
        return logits_BC.log_softmax(1).gather(1, labels_B[:, None])[:, 0]

    def value(self, counted: Counted) -> float | None:
        """Returns their mean over the samples."""
        total = counted.samples_C.sum()
        return counted.scores_C.sum() / total if total else None


@plugins.metric("kappa", summary="agreement beyond chance", paper="Cohen, 1960")
class Kappa(Metric):
    """Cohen's kappa."""

    def value(self, counted: Counted) -> float | None:
        """Returns (observed - expected) / (1 - expected)."""
        counts_CC = counted.counts_CC
        total = counts_CC.sum()
        expected = (counts_CC.sum(0) / max(total, 1)) @ (counts_CC.sum(1) / max(total, 1))
        return (counts_CC.trace() / total - expected) / (1 - expected) if total and expected < 1 else None
