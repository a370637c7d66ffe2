"""Every metric beside scikit-learn's, or beside its definition in float64 where scikit-learn has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from ltcore.evaluation.calibration import NUM_BINS
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.confusion_file import ConfusionCells
from ltcore.evaluation.metrics import metrics, per_class, reliability_bins, support
from ltcore.evaluation.pairs import Pairs

CLASSES, SAMPLES = 9, 400
GROUPS = ("many", "many", "medium", "medium", "medium", "few", "few", "few", "few")


def unbalanced(seed: int, absent: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that know something of the labels, which are unbalanced."""
    gen = torch.Generator().manual_seed(seed)
    weights_C = 0.7 ** torch.arange(CLASSES)
    if absent is not None:
        weights_C[absent] = 0
    labels_B = torch.multinomial(weights_C, SAMPLES, replacement=True, generator=gen)
    logits_BC = 2 * torch.randn(SAMPLES, CLASSES, generator=gen)
    logits_BC[torch.arange(SAMPLES), labels_B] += 2
    return logits_BC, labels_B


def counted(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> Confusion:
    confusion = Confusion(Pairs.every(CLASSES, 0))
    for logits, labels in zip(logits_BC.split(37), labels_B.split(37), strict=True):
        confusion.update(logits, labels)
    return confusion


def ece(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> float:
    """Guo et al., equation 3, sample by sample."""
    probabilities_BC = logits_BC.double().softmax(1).numpy()
    confidence_B, right_B = probabilities_BC.max(1), probabilities_BC.argmax(1) == labels_B.numpy()
    total = 0.0
    for m in range(NUM_BINS):
        inside_B = (confidence_B > m / NUM_BINS) & (confidence_B <= (m + 1) / NUM_BINS)
        if inside_B.any():
            total += inside_B.mean() * abs(right_B[inside_B].mean() - confidence_B[inside_B].mean())
    return total


@pytest.mark.parametrize("absent", [None, 0, 8])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_an_unbalanced_split(seed: int, absent: int | None) -> None:
    logits_BC, labels_B = unbalanced(seed, absent)
    result = metrics(counted(logits_BC, labels_B), GROUPS)
    truth, predictions = labels_B.numpy(), logits_BC.argmax(1).numpy()
    present = np.unique(truth)
    assert len(present) == CLASSES - (absent is not None)
    macro = {"labels": present, "average": "macro", "zero_division": 0}
    recalls = sklearn_metrics.recall_score(truth, predictions, labels=present, average=None)
    expected = {
        "balanced_accuracy": sklearn_metrics.recall_score(truth, predictions, **macro),
        "top1": sklearn_metrics.accuracy_score(truth, predictions),
        "top5": sklearn_metrics.top_k_accuracy_score(truth, logits_BC.numpy(), k=5, labels=range(CLASSES)),
        "macro_f1": sklearn_metrics.f1_score(truth, predictions, **macro),
        "macro_precision": sklearn_metrics.precision_score(truth, predictions, **macro),
        "geometric_mean": recalls.prod() ** (1 / len(recalls)),
        "harmonic_mean": len(recalls) / (1 / recalls).sum() if recalls.all() else 0.0,
        "worst_class": recalls.min(),
        "ece": ece(logits_BC, labels_B),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    for group in ("many", "medium", "few"):
        classes = [c for c in present if GROUPS[c] == group]
        of_group = {"labels": classes, "average": "macro", "zero_division": 0}
        mine_B = np.isin(truth, classes)
        found = [result[group], result[f"{group}/macro_precision"], result[f"{group}/ece"]]
        assert found == pytest.approx(
            [
                sklearn_metrics.recall_score(truth, predictions, **of_group),
                sklearn_metrics.precision_score(truth, predictions, **of_group),
                ece(logits_BC[mine_B], labels_B[mine_B]),
            ],
            abs=1e-9,
        )


def test_with_every_class_present_scikit_learns_defaults_are_the_same() -> None:
    logits_BC, labels_B = unbalanced(0)
    result = metrics(counted(logits_BC, labels_B), GROUPS)
    truth, predictions = labels_B.numpy(), logits_BC.argmax(1).numpy()
    assert result["balanced_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(truth, predictions))
    assert result["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(truth, predictions, average="macro"))


def test_the_confusion_matrix_recalls_and_support() -> None:
    logits_BC, labels_B = unbalanced(1)
    counts = counted(logits_BC, labels_B)
    matrix = sklearn_metrics.confusion_matrix(labels_B, logits_BC.argmax(1), labels=range(CLASSES))
    assert ConfusionCells.of(counts).dense() == matrix.tolist()
    assert support(counts) == matrix.sum(1).tolist()
    assert per_class(counts) == pytest.approx((matrix.diagonal() / matrix.sum(1)).tolist())


def test_reliability_bins_beside_numpy() -> None:
    logits_BC, labels_B = unbalanced(2)
    bins = reliability_bins(counted(logits_BC, labels_B))
    confidence_B, predictions_B = logits_BC.double().softmax(1).max(1)
    edges = np.arange(NUM_BINS + 1) / NUM_BINS
    of_bin_B = np.digitize(confidence_B.numpy(), edges, right=True) - 1
    for m, found in enumerate(bins):
        inside_B = of_bin_B == m
        assert found.count == inside_B.sum()
        if found.count:
            assert found.confidence == pytest.approx(float(confidence_B[inside_B].mean()), abs=1e-9)
            assert found.accuracy == float((predictions_B == labels_B)[inside_B].double().mean())
        else:
            assert (found.confidence, found.accuracy) == (None, None)
