"""What a run keeps of its tests: fields of ``run.json``, confusion matrices in files, and tables and charts for its sinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltcore.config.records import Metrics, RunRecord
from ltcore.evaluation.calibration import NUM_BINS
from ltcore.evaluation.confusion_file import ConfusionCells, confusion_name, read_confusion, write_confusion
from ltcore.tracking.base import Tracker
from ltcore.training.evaluate import Tested

MAX_CHARTED_CLASSES = 100
"""Charts of W&B show 10,000 rows, a confusion matrix of 100 classes."""
MOST_CONFUSED = 50
"""Pairs of classes in the table of confusions."""


def keep_tests(last: Mapping[str, Tested], best: Mapping[str, Tested], run_dir: Path | None) -> dict[str, Any]:
    """Returns the fields of ``run.json`` for the tests with the last weights, and with those best on validation.

    The confusion matrices go to ``run_dir``, which rank 0 alone gives: they would bloat what is read often.
    """
    if run_dir is not None:
        for weights, tests in (("last", last), ("best", best)):
            for split, found in tests.items():
                write_confusion(str(run_dir / confusion_name(split, weights)), found.confusion)
    return {
        "test": {split: found.metrics for split, found in last.items()},
        "test_best": {split: found.metrics for split, found in best.items()},
        "per_class": {split: found.per_class for split, found in last.items()},
        "per_class_best": {split: found.per_class for split, found in best.items()},
        "support": {split: found.support for split, found in last.items()},
        "calibration": {split: found.calibration for split, found in last.items()},
        "calibration_best": {split: found.calibration for split, found in best.items()},
        "confused": {split: found.confused for split, found in last.items()},
    }


def log_tests(tracker: Tracker, record: RunRecord, run_dir: Path) -> None:
    """Shows the tests of a run to its sinks; nothing before it was tested."""
    for split, support in (record.support or {}).items():
        last, best = (record.test or {})[split], (record.test_best or {}).get(split, {})
        tracker.table(f"{split}/metrics", ["metric", "last", "best"], [[m, last[m], best.get(m)] for m in last])
        _log_per_class(tracker, record, split, support)
        _log_calibration(tracker, record, split)
        for weights in ("last", "best"):
            confusion = read_confusion(run_dir / confusion_name(split, weights), len(record.data.classes))
            if confusion is not None:
                _log_confusion(tracker, f"{split}/{weights}", record.data.classes, support, confusion)


def _log_per_class(tracker: Tracker, record: RunRecord, split: str, support: Sequence[int]) -> None:
    classes, untested = record.data.classes, [None] * len(record.data.classes)
    recalls = {
        "last": (record.per_class or {})[split],
        "best": (record.per_class_best or {}).get(split, untested),
    }
    rows = list(zip(classes, record.data.shot_groups, support, recalls["last"], recalls["best"], strict=True))
    tracker.table(f"{split}/per_class", ["class", "shot", "images", "recall, last", "recall, best"], rows)
    for weights, values in recalls.items():
        known = [(name, value) for name, value in zip(classes, values, strict=True) if value is not None]
        if known and len(classes) <= MAX_CHARTED_CLASSES:
            tracker.bars(f"{split}/{weights}/recall", "class", "recall", known)


def _log_calibration(tracker: Tracker, record: RunRecord, split: str) -> None:
    for weights, bins in (("last", record.calibration), ("best", record.calibration_best)):
        rows = [
            [m / NUM_BINS, (m + 1) / NUM_BINS, found.count, found.confidence, found.accuracy]
            for m, found in enumerate((bins or {}).get(split, ()))
        ]
        if rows:
            columns = ["above", "to", "images", "mean confidence", "accuracy"]
            tracker.table(f"{split}/{weights}/calibration", columns, rows)


def _log_confusion(
    tracker: Tracker, name: str, classes: Sequence[str], support: Sequence[int], confusion: ConfusionCells
) -> None:
    rows = [
        [classes[cell.label], classes[cell.prediction], cell.count, cell.count / support[cell.label]]
        for cell in confusion.confused(MOST_CONFUSED)
    ]
    tracker.table(f"{name}/most_confused", ["class", "taken for", "images", "share of the class"], rows)
    if len(classes) <= MAX_CHARTED_CLASSES:
        tracker.confusion(f"{name}/confusion", classes, confusion.dense())


def summary(record: RunRecord) -> dict[str, Any]:
    """Returns final values by flat key: of the last and the best epoch, and of the tests with the weights of both."""
    best: dict[str, Metrics] = {f"best/{split}": values for split, values in (record.test_best or {}).items()}
    sections = {"last": record.last, "best": record.best, **(record.test or {}), **best}
    return {f"{section}/{key}": value for section, values in sections.items() for key, value in values.items()}
