"""A finished run on images of its own, whose colors tell the classes apart."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.source import Sample
from ltcore.evaluation.calibration import NUM_BINS, ReliabilityBin
from ltcore.shots import shot_groups_by_count
from tests.confusions import pairs_of
from tests.records import DATA, run_record
from tests.shards import write_dataset

CLASSES = ("plain", '<b onerror="x">&', "a very long name of a class of some rare alpine butterflies", "no_test_image")
TRAINED, TESTED = (120, 40, 9, 2), (30, 8, 5, 0)
RECOGNIZED = (24, 5, 0, 0)
COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30))
PROVENANCE = {"source": "images of <alps>", "test": "1/5 of each class by keyed hash", "val": "as given"}


class Rows:
    """Images in the color of their class, some broad and some high."""

    def __init__(self, split: str, counts: Sequence[int]) -> None:
        self._split, self._counts = split, counts

    def __len__(self) -> int:
        return sum(self._counts)

    def __iter__(self) -> Iterator[Sample]:
        for label, count in enumerate(self._counts):
            for n in range(count):
                encoded = io.BytesIO()
                size = (300, 200) if n % 2 else (40, 48)
                Image.new("RGB", size, COLORS[label % len(COLORS)]).save(encoded, "PNG")
                yield Sample(f"{self._split}/{label}-{n}", encoded.getvalue(), "png", label)


def predictions(labels_N: np.ndarray, num_classes: int, recognized: Sequence[int]) -> np.ndarray:
    """The first samples of each class are recognized, the others taken for the class after it."""
    seen_C, found = [0] * num_classes, []
    for label in labels_N.tolist():
        found.append(label if seen_C[label] < recognized[label] else (label + 1) % num_classes)
        seen_C[label] += 1
    return np.array(found, np.int64)


def write(folder: Path, *, classes: Sequence[str] = CLASSES, **changes: Any) -> dict[str, Any]:
    """Writes shards and a run tested on them; returns the content of its run.json."""
    uri = str(folder.parent / "shards")
    splits = {"train": Rows("train", TRAINED), "test": Rows("test", TESTED)}
    manifest = write_dataset(uri, classes=classes, splits=splits, image_size=32, provenance=PROVENANCE)
    labels_N = ShardStore(uri).labels("test")
    predictions_N = predictions(labels_N, len(classes), RECOGNIZED)
    recalls = [hits / count if count else None for hits, count in zip(RECOGNIZED, TESTED, strict=True)]
    bins = [ReliabilityBin(m, (m + 0.5) / NUM_BINS, 0.5) if m else ReliabilityBin(0) for m in range(NUM_BINS)]
    metrics = {"balanced_accuracy": 0.475, "top1": 29 / 43, "few": 0.0, "worst_class": 0.0, "ece": 0.125}
    record = run_record(
        status="finished",
        kind="run",
        config={"objective.base": "balanced_softmax", "model.name": "resnet8", "data.train_split": "train"},
        data=replace(
            DATA,
            name="alps",
            hash=manifest.hash,
            uri=uri,
            num_train=sum(TRAINED),
            classes=tuple(classes),
            shot_groups=shot_groups_by_count(TRAINED),
            class_counts=TRAINED,
        ),
        test={"test": metrics},
        per_class={"test": recalls},
        support={"test": TESTED},
        calibration={"test": bins},
        confused={"test": pairs_of(labels_N, predictions_N, len(classes))},
        **changes,
    )
    record.write(folder)
    rows = [{"epoch": n, "step": 10 * n, "val/balanced_accuracy": 0.1 * n, "val/top1": 0.12 * n} for n in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def many_classes(folder: Path, number: int) -> dict[str, Any]:
    """Turns the run into one of so many classes, whose data are gone."""
    file = folder / "run.json"
    info: dict[str, Any] = json.loads(file.read_text())
    counts = [max(1, round(500 * 0.98**c)) for c in range(number)][::-1]
    names = [f"species {c}" for c in range(number)]
    groups = list(shot_groups_by_count(counts))
    info["data"] |= {"classes": names, "class_counts": counts, "shot_groups": groups, "uri": str(folder / "gone")}
    info["per_class"] = {"test": [None if c % 10 == 9 else (c % 5) / 4 for c in range(number)]}
    info["support"] = {"test": [0 if c % 10 == 9 else 4 for c in range(number)]}
    info["confused"] = {"test": [{"label": 0, "prediction": 1, "count": 3, "examples": [0, 1, 2]}]}
    file.write_text(json.dumps(info))
    return info
