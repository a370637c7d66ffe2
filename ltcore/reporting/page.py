"""Parts that the reports of sweeps and of plain runs share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ltcore.config.records import RunRecord, SweepRecord
from ltcore.config.trained_with import Hardware
from ltcore.evaluation.balance import remarks
from ltcore.evaluation.catalog import METRICS, title_of
from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting.figures import Curve
from ltcore.reporting.format import value_text
from ltcore.reporting.records import StoredRun
from ltcore.text import counted


def stored_curves(runs: Iterable[tuple[str, str, StoredRun]], metric: str) -> list[Curve]:
    """Returns a curve for each (label, role, run) that has logged the metric."""
    found = ((label, role, *run.curve(metric)) for label, role, run in runs)
    return [Curve(label, role, epochs, values) for label, role, epochs, values in found if epochs]


def table_of_tests(runs: Mapping[str, StoredRun]) -> list[dict[str, Any]]:
    """Returns one table per test split and protocol: a row per run, a column per metric, exact values."""
    tests = {name: run.tests() for name, run in runs.items()}
    trained_on = {name: run.record.train_split for name, run in runs.items() if run.record is not None}
    tables = []
    for split in ordered_splits({split for test in tests.values() for split in test}):
        found = dict.fromkeys(metric for test in tests.values() for metric in test.get(split, {}))
        metrics = sorted(found, key=lambda m: list(METRICS).index(m) if m in METRICS else len(METRICS))
        columns = [
            {"key": f"{split}/{m}", "name": title_of(m), "meaning": METRICS[m].meaning if m in METRICS else ""}
            for m in metrics
        ]
        protocols: dict[
            str, list[dict[str, Any]]
        ] = {}  # the same images test GLT or ALT, depending on the training split
        for name, test in tests.items():
            if split in test:
                row = {"name": name, "run": runs[name], "values": [test[split].get(m) for m in metrics]}
                protocols.setdefault(protocol_of(split, trained_on[name])[0], []).append(row)
        said = split_remarks(runs.values(), split)
        tables += [
            {"split": split, "name": name, "columns": columns, "rows": rows, "remarks": said}
            for name, rows in protocols.items()
        ]
    return tables


def split_remarks(runs: Iterable[StoredRun], split: str) -> list[str]:
    """Returns what has to be known of the classes of a test split to read its numbers."""
    supports = [(run.record.support or {}).get(split, ()) for run in runs if run.record is not None]
    return list(dict.fromkeys(remark for support in supports for remark in remarks(split, support)))


def config_rows(run: StoredRun | None, other: StoredRun | None) -> list[dict[str, Any]]:
    """Returns the configuration of ``run``, key by key, beside that of ``other``.

    A value is 'off' where a whole section is off in that run.
    """
    mine = run.record.config if run and run.record else {}
    theirs = mine if other is None else other.record.config if other.record else {}
    rows = []
    for key in mine:
        ours, others = value_text(mine[key]), _text_in(theirs, key)
        rows.append({"key": key, "value": ours, "other": others, "differs": ours != others and key not in IDENTITY})
    return rows


def _text_in(config: Mapping[str, Any], key: str) -> str:
    """Returns the value of a key as text.

    A section that is off is one key without a value.
    """
    words = key.split(".")
    for take in range(len(words), 0, -1):
        if (prefix := ".".join(words[:take])) in config:
            return value_text(config[prefix])
    return "—"


def loss_words(config: Mapping[str, Any]) -> str:
    """Returns the base loss and the terms that act on it; '' for a configuration without a loss."""
    if "objective.base" not in config:
        return ""
    names = {key.split(".")[2] for key in config if key.startswith("objective.terms.") and key.count(".") > 2}
    acting = [name for name in sorted(names) if _acts(config, f"objective.terms.{name}")]
    return " + ".join([value_text(config["objective.base"]), *acting])


def _acts(config: Mapping[str, Any], term: str) -> bool:
    """Tells whether a term is built: with a weight, or with environments that change the weights of images."""
    return config.get(f"{term}.weight", 1) != 0 or config.get(f"{term}.num_envs", 1) > 1


def initial_words(record: RunRecord) -> str:
    """Returns where the first weights came from; '' for random ones."""
    origin = record.started_from or {}
    return str(origin.get("checkpoint") or origin.get("weights") or "")


IDENTITY = ("name", "seed")
"""Keys that differ between any two runs and do not describe the method."""


def machine(runs: Sequence[StoredRun], sweep: SweepRecord | None) -> list[tuple[str, str]]:
    """Returns (label, value) of hardware, precision, threads, engine and versions.

    Where the runs differ, all their values are listed.
    """
    records = [run.record for run in runs if run.record is not None]
    hardware = [*([sweep.hardware] if sweep else []), *(record.hardware for record in records)]
    rows = {
        "machine": map(_hardware_text, hardware),
        "part of a GPU": [sweep.gpu_share.text] if sweep is not None and sweep.gpu_share is not None else [],
        "precision": (record.precision for record in records),
        "threads": (str(record.threads) for record in records),
        "workers": (", then ".join(map(str, record.worlds)) for record in records),
        "engine": (record.engine for record in records),
        "images": map(_input_words, records),
        "preemptions": [_preemption_words(records)],
    }
    found = [(label, " / ".join(dict.fromkeys(filter(None, values)))) for label, values in rows.items()]
    versions = dict.fromkeys(f"{name} {v}" for record in records for name, v in record.versions.items())
    return [(label, value) for label, value in [*found, ("versions", ", ".join(versions))] if value]


def _preemption_words(records: Sequence[RunRecord]) -> str:
    """Returns how often nodes were taken away after a notice, and what it cost; '' where none was."""
    lost = [images for record in records for images in record.preemptions]
    if not lost:
        return ""
    return f"{len(lost)} announced, {counted(sum(lost), 'image')} trained on again"


def _input_words(record: RunRecord) -> str:
    """Returns how images were prepared where weights or keys said so; '' where the data set alone did."""
    found = record.data.input
    return found.text if found is not None and {"weights", "key"} & {*found.sources.values()} else ""


def _hardware_text(hardware: Hardware) -> str:
    kinds = {gpu: hardware.gpus.count(gpu) for gpu in hardware.gpus}
    gpus = " + ".join(f"{count} x {gpu}" for gpu, count in kinds.items()) or "no GPU"
    return f"{hardware.cpu}, {hardware.cpus} cores, {hardware.memory_bytes / 2**30:.0f} GiB, {gpus}"
