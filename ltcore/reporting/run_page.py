"""What the report of one run shows of its classes, their confusions, its calibration, and what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from ltcore.config.records import RunRecord
from ltcore.data.shards.manifest import Manifest
from ltcore.evaluation.catalog import METRICS, headline, title_of
from ltcore.evaluation.intervals import wilson
from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting import run_figures
from ltcore.reporting.data_page import data_section
from ltcore.reporting.format import percent, value_text
from ltcore.reporting.page import initial_words, loss_words
from ltcore.reporting.pictures import Picture, Pictures
from ltcore.reporting.rank_table import RankTable, is_rank_metric, rank_table
from ltcore.reporting.records import StoredRun
from ltcore.reporting.svg import WINNER
from ltcore.shots import SHOT_GROUPS
from ltcore.text import duration, printable

MAX_ROWS = 60
"""Classes that are shown by name; more are drawn by rank."""
MAX_LISTED = 1000
"""Classes that a table lists below the drawing."""
PAIRS, TESTED_PICTURES, TRAINING_PICTURES = 6, 4, 2
WIDTHS_PX = {"wide": 1000, "narrow": 370}
"""Figures for desktops and phones; the page shows one of them."""


@dataclass(frozen=True)
class ClassRow:
    """One class: how much of it was trained on, and how it was recognized."""

    name: str
    group: str
    trained: int
    tested: int
    recall: float | None
    low: float | None
    high: float | None

    @property
    def hits(self) -> int:
        """Returns how many of the test images were recognized."""
        return round((self.recall or 0.0) * self.tested)


@dataclass(frozen=True)
class PairView:
    """Two classes that were confused, with pictures."""

    label: str
    prediction: str
    count: int
    tested: int
    examples: list[Picture]
    references: list[Picture]
    """Of the class it was taken for, as the run was taught it."""


def run_sections(run: StoredRun) -> dict[str, Any]:
    """Returns what ``run_parts.html.j2`` shows; nothing for a run that has written no record."""
    record = run.record
    if record is None:
        return {}
    pictures = Pictures(record.data, record.train_split)
    manifest = pictures.store.manifest if pictures.store else None
    samples = data_section(pictures, record.train_split)
    splits = ordered_splits(record.test or {})
    confused = {split: _pairs(record, split, pictures) for split in splits}
    return {
        "samples": samples,
        "tiles": _tiles(record, splits),
        "weights": _weights(record, splits),
        "tests": _tests(record, splits),
        "ranks": _ranks(record, splits),
        "classes": [
            _classes(record, split, manifest.repeats(split) if manifest else 1)
            for split in splits
            if split in (record.per_class or {})
        ],
        "confused": [
            {"split": split, "title": _title(record, split), "pairs": found}
            for split, found in confused.items()
            if found
        ],
        "no_pictures": pictures.problem,
        "calibration": [_calibration(record, split) for split in splits if split in (record.calibration or {})],
        "trained": _trained(record, manifest),
        "splits": _splits(record, manifest),
    }


def _title(record: RunRecord, split: str) -> str:
    name = protocol_of(split, record.train_split)[0]
    return name if name == split else f"{name} ({split})"


def _tiles(record: RunRecord, splits: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the numbers to read first, those of the first test split."""
    if not splits:
        return []
    values = (record.test or {})[splits[0]]
    names = [*headline(values), *SHOT_GROUPS, "worst_class", "ece"]
    of_split = f"{protocol_of(splits[0], record.train_split)[0]} " if len(splits) > 1 else ""
    return [
        {
            "metric": f"{splits[0]}/{name}",
            "title": of_split + title_of(name),
            "meaning": METRICS[name].meaning,
            "value": values[name],
        }
        for name in names
        if values.get(name) is not None
    ]


def _weights(record: RunRecord, splits: Sequence[str]) -> str:
    """Says which weights the page is about, and what those came to that ``load`` takes, where they are others."""
    said = f"Tested with the weights of the last epoch ({record.epochs_done})."
    best, epoch = record.test_best or {}, record.best.get("epoch")
    if not splits or splits[0] not in best or epoch in (None, record.last.get("epoch")):
        return said
    values = best[splits[0]]
    found = ", ".join(f"{title_of(name)} {percent(values.get(name))}" for name in headline(values))
    return f"{said} Predictions take those of epoch {epoch:.0f}, the best on validation: {found}."


def _tests(record: RunRecord, splits: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a row per metric that has a value, with its values on all test splits."""
    tests = {split: (record.test or {})[split] for split in splits}
    found = dict.fromkeys(m for values in tests.values() for m in values if not is_rank_metric(m))
    metrics = sorted(found, key=lambda m: list(METRICS).index(m) if m in METRICS else len(METRICS))
    return [
        {
            "name": metric,
            "title": title_of(metric),
            "meaning": METRICS[metric].meaning if metric in METRICS else "",
            "values": {split: values.get(metric) for split, values in tests.items()},
        }
        for metric in metrics
        if any(values.get(metric) is not None for values in tests.values())
    ]


def _ranks(record: RunRecord, splits: Sequence[str]) -> list[RankTable]:
    """Returns a table of accuracies by attribute rank for each test split that has them."""
    tables = []
    for split in splits:
        values = {metric: (value,) for metric, value in (record.test or {})[split].items()}
        tables.append(rank_table(split, _title(record, split), {record.name: values}, {record.name: WINNER}))
    return [table for table in tables if table is not None]


def _classes(record: RunRecord, split: str, repeats: int) -> dict[str, Any]:
    """Returns the classes by shot group and training images, the most first, by name or as a drawing for many.

    A run on balanced classes has the groups of the split train, whose counts are others.
    """
    rows = sorted(_rows(record, split, repeats), key=lambda row: (SHOT_GROUPS.index(row.group), -row.trained))
    few = len(rows) <= MAX_ROWS
    return {
        "split": split,
        "title": _title(record, split),
        "few": few,
        "groups": [_group(name, list(some)) for name, some in groupby(rows, key=lambda row: row.group)]
        if len(rows) <= MAX_LISTED
        else [],
        "most": max([1, *(row.trained for row in rows)]),
        "number": len(rows),
        "window": run_figures.window_of(sum(row.recall is not None for row in rows)),
        "figures": {} if few or not any(row.tested for row in rows) else _drawn(rows, split),
    }


def _rows(record: RunRecord, split: str, repeats: int) -> list[ClassRow]:
    """Lists the classes with their recalls; ``repeats`` images of the split show the same picture."""
    data, recalls = record.data, (record.per_class or {})[split]
    supports = (record.support or {}).get(split, [0] * len(recalls))
    rows = []
    for name, group, trained, tested, recall in zip(
        data.classes, data.shot_groups, data.class_counts, supports, recalls, strict=True
    ):
        interval = (
            (None, None) if recall is None or not tested else wilson(round(recall * tested) / repeats, tested / repeats)
        )
        rows.append(ClassRow(printable(name), group, trained, tested, recall, *interval))
    return rows


def _group(name: str, rows: Sequence[ClassRow]) -> dict[str, Any]:
    recalls = [row.recall for row in rows if row.recall is not None]
    return {"name": name, "rows": rows, "mean": fmean(recalls) if recalls else None}


def _drawn(rows: Sequence[ClassRow], split: str) -> dict[str, str]:
    columns = [row.trained for row in rows], [row.recall for row in rows], [row.group for row in rows]
    return {
        kind: run_figures.recall_by_rank(*columns, f"rank-{kind}-{split}", width_px)
        for kind, width_px in WIDTHS_PX.items()
    }


def _pairs(record: RunRecord, split: str, pictures: Pictures) -> list[PairView]:
    names, supports = record.data.classes, (record.support or {}).get(split, ())
    return [
        PairView(
            printable(names[pair.label]),
            printable(names[pair.prediction]),
            pair.count,
            supports[pair.label],
            pictures.of(split, pair.examples[:TESTED_PICTURES]),
            pictures.of_training(pair.prediction, TRAINING_PICTURES),
        )
        for pair in (record.confused or {}).get(split, ())[:PAIRS]
        if supports and supports[pair.label]
    ]


def _calibration(record: RunRecord, split: str) -> dict[str, Any]:
    bins = (record.calibration or {})[split]
    return {
        "split": split,
        "title": _title(record, split),
        "ece": (record.test or {})[split].get("ece"),
        "svg": run_figures.reliability(bins, f"calibration-{split}"),
    }


def _trained(record: RunRecord, manifest: Manifest | None) -> list[tuple[str, str]]:
    """Returns (label, value) of data and method in the words of the configuration."""
    config = record.config
    provenance = manifest.provenance if manifest else {}
    counts = record.data.class_counts
    rows = {
        "data": record.data.name,
        "source": provenance.get("source", ""),
        "sha256 of the manifest": record.data.hash,
        "classes": f"{len(counts)}, with {max(counts):,} to {min(counts):,} training images",
        "objective": loss_words(config),
        "network": value_text(config.get("model.name", "")),
        "initial weights": initial_words(record),
        "environments": _environments(record),
        "stage 1": f"{record.stage1.run}, epoch {record.stage1.epoch}" if record.stage1 else "",
        "epochs": f"{record.epochs_done} of {record.epochs_planned}",
        "batch size": value_text(config.get("train.batch_size", "")),
        "seed": str(record.seed),
        "time of training": duration(record.seconds) if record.seconds else "",
    }
    return [(label, printable(str(value))) for label, value in rows.items() if value != ""]


def _environments(record: RunRecord) -> str:
    """Says how well IFL's weights found the minority attributes; '' where there are none or they are unknown."""
    auc = record.last.get("ifl/attribute_auc")
    if auc is None:
        return ""
    return f"minority attributes outweigh the majority one of their class in {percent(auc)} of pairs (chance: 50%)"


def _splits(record: RunRecord, manifest: Manifest | None) -> list[dict[str, Any]]:
    """Returns a row per split; of data that are gone, those that the record itself knows."""
    counts = {record.train_split: record.data.class_counts, **(record.support or {})}
    if manifest is not None:
        order = {record.train_split: 0, "val": 1}
        counts = {
            split: manifest.class_counts[split] for split in sorted(manifest.splits, key=lambda s: order.get(s, 2))
        }
    provenance = manifest.provenance if manifest else {}
    return [
        {
            "split": split,
            "images": sum(of_class),
            "classes": sum(map(bool, of_class)),
            "origin": printable(str(provenance.get(split, ""))),
        }
        for split, of_class in counts.items()
    ]
