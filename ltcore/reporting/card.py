"""The model card of a run: what the classifier is, knows and does not know, in Markdown, from its ``run.json`` alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltcore.config.records import RunRecord
from ltcore.errors import DataError
from ltcore.evaluation.balance import remarks
from ltcore.evaluation.catalog import title_of
from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.framing import OWN_WAY, Framing
from ltcore.reporting.format import moment, percent, value_text
from ltcore.reporting.page import initial_words, loss_words, machine
from ltcore.reporting.records import StoredRun
from ltcore.reporting.results_table import command
from ltcore.shots import SHOT_GROUPS
from ltcore.text import counted, duration, markdown_cell, printable, storable, storable_json

MOST_NAMES = 20
"""Class names in one sentence."""


def model_card(run_uri: str, file: Mapping[str, Any] | None = None) -> str:
    """Returns the model card of the run at a path or URI, in Markdown with all foreign text escaped.

    ``file``: what an exported file says of itself, with its ``name``. Raises DataError where there is no finished run.
    """
    record = RunRecord.read(run_uri)
    if record is None:
        raise DataError(f"{run_uri} has no run.json, from which the card is made. Give the directory of a run.")
    if record.status != "finished":
        raise DataError(f"{run_uri} is {record.status}, not finished. Let the same command continue it first.")
    record = RunRecord.from_json(storable_json(record.to_json()), f"{run_uri}/run.json")
    return _render(
        {
            "record": record,
            "prepared": _framing(record).of_canvas(record.data.image_size),
            "use": _use(run_uri, file),
            "file": file and {"name": file["name"], "rows": _file_rows(file)},
            "changed": _changed(file or {}),
            "tests": (tests := _tests(record)),
            "limitations": _limitations(record, tests),
            "training": _training(record),
            "command": command(record),
            "groups": ", ".join(f"{count} {group}" for group, count in _groups(record).items()),
            "classes": _classes(record, [test["split"] for test in tests]),
        }
    )


def _framing(record: RunRecord) -> Framing:
    found = record.data.input
    if found is None:
        return OWN_WAY
    return Framing.of(found.interpolation, found.crop_fraction, found.crop_mode, found.mean)


def _render(context: Mapping[str, Any]) -> str:
    """Fills the template. Every value in it is escaped for Markdown, unless a filter says how else to write it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup  # marks what is written already

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else markdown_cell(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # for HTML, which this is not
    )
    environment.filters |= {
        "raw": lambda text: Markup(printable(text)),
        "join_cells": lambda cells: Markup(" | ".join(map(markdown_cell, cells))),
    }
    return storable(environment.get_template("card.md.j2").render(context))


def _use(run_uri: str, file: Mapping[str, Any] | None) -> list[str]:
    """Returns lines of Python that predict an image with ltcore, or with the exported file alone."""
    read = [f"model = ltcore.load({run_uri!r})", "model.predict(['image.jpg'])"]
    if file is None:
        return ["import ltcore", *read]
    name, size = str(file["name"]), file["image_size"]
    batch = f"# images: uint8 [B, 3, {size}, {size}], RGB"
    if name.endswith(".onnx"):
        run = ["import onnxruntime", f"session = onnxruntime.InferenceSession({name!r})"]
        return [*run, f"(logits,) = session.run(['logits'], {{'images': images}})  {batch}"]
    return ["import torch", f"model = torch.export.load({name!r}).module()", f"logits = model(images)  {batch}"]


def _file_rows(file: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, value_text(value)) for name, value in file.items() if name not in ("name", "classes")]


def _changed(file: Mapping[str, Any]) -> str:
    """Says in what the file differs from the network whose results are shown; '' where it does not."""
    tau = f"post-hoc adjustment of {file['posthoc_tau']:g}" if file.get("posthoc_tau") else ""
    flip = "the mean over mirror images" if file.get("tta") == "flip" else ""
    changes = " and ".join(filter(None, (tau, flip)))
    return f"These are of the checkpoint itself; the file has {changes} on top." if changes else ""


def _tests(record: RunRecord) -> list[dict[str, Any]]:
    """Returns a table for each test split, with the weights that ``load`` takes: the best on validation, else the last."""
    best = record.test_best or {}
    tests = {**(record.test or {}), **best}
    found = []
    for split in ordered_splits(tests):
        name, meaning = protocol_of(split, record.train_split)
        found.append(
            {
                "split": split,
                "title": name if name == split else f"{name} ({split}, {meaning})",
                "weights": _weights(record, split in best),
                "rows": [(title_of(m), percent(value)) for m, value in tests[split].items() if _is_shown(m)],
                "remarks": remarks(split, (record.support or {}).get(split, ())),
            }
        )
    return found


def _is_shown(metric: str) -> bool:
    """Tells whether a metric is of all images, of a shot group or of an attribute rank, and not of parts of these."""
    return metric.removeprefix("attribute_rank/").count("/") == 0


def _weights(record: RunRecord, tested_best: bool) -> str:
    """Says which weights were tested, and whether they are those that ``load`` takes."""
    best = record.best.get("epoch")
    if tested_best:
        return f"weights of epoch {best}, the best on validation"
    if best in (None, record.last.get("epoch")):
        return "weights of the last epoch"
    return f"weights of the last epoch; ltcore.load takes those of epoch {best}, which were not tested"


def _limitations(record: RunRecord, tests: Sequence[Mapping[str, Any]]) -> list[str]:
    data = record.data
    found = [f"It knows these {len(data.classes)} classes and answers with one of them for any image."]
    for split in (test["split"] for test in tests):
        values = (record.per_class or {}).get(split, ())
        if names := [name for name, value in zip(data.classes, values, strict=False) if value is None]:
            found.append(
                f"{split} has no image of these classes, of which nothing is known: {_listed(names)}. Its numbers are of "
                "the other classes alone."
            )
    if few := _groups(record).get("few"):
        least = min(data.class_counts)
        classes = "class is" if few == 1 else "classes are"
        found.append(f"{few} {classes} few-shot; the smallest has {counted(least, 'training image')}.")
    found.append(f"One run with seed {record.seed}: another seed gives other numbers.")
    if record.bad_samples:
        found.append(
            f"{record.bad_samples} training images could not be decoded; others of their classes took their place."
        )
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} others" if len(names) > MOST_NAMES else ""
    return f"{', '.join(names[:MOST_NAMES])}{more}"


def _training(record: RunRecord) -> list[tuple[str, str]]:
    rows = [
        ("data", record.data.name),
        ("hash of the data", record.data.hash),
        ("training split", record.train_split),
        ("network", str(record.config.get("model.name", "—"))),
        ("loss", loss_words(record.config) or "—"),
        ("initial weights", initial_words(record) or "random"),
        ("epochs", str(record.epochs_done)),
        ("seed", str(record.seed)),
        ("trained", f"{moment(record.started_at)}, {duration(record.seconds)}"),
    ]
    if record.stage1 is not None:
        method = record.config.get("stage2.method")
        rows.insert(5, ("stage 2", f"{method}, from run {record.stage1.name} at epoch {record.stage1.epoch}"))
    return [*rows, *machine([StoredRun(Path(), record, [])], None)]


def _groups(record: RunRecord) -> dict[str, int]:
    """Returns how many classes there are of each shot group that has any."""
    counts = Counter(record.data.shot_groups)
    return {group: counts[group] for group in SHOT_GROUPS if counts[group]}


def _classes(record: RunRecord, splits: Sequence[str]) -> list[list[str]]:
    recalls = {**(record.per_class or {}), **(record.per_class_best or {})}
    accuracies = [recalls.get(split) or [None] * len(record.data.classes) for split in splits]
    data = zip(record.data.classes, record.data.class_counts, record.data.shot_groups, *accuracies, strict=True)
    return [[name, f"{count:,}", group, *map(percent, values)] for name, count, group, *values in data]
