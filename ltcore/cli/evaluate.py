"""``evaluate``: metrics of a checkpoint as a table and as JSON. Needs no Ray."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from ltcore.cli.args import EvaluateArgs
from ltcore.cli.class_table import attribute_table, class_table
from ltcore.cli.console import percent_cell
from ltcore.cli.output import COMMAND_LINE, Output
from ltcore.config.schema import RunConfig
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import prepare
from ltcore.data.datasets.registry import on_other_data
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.remarks import file_remarks
from ltcore.errors import ConfigError, DataError
from ltcore.evaluation.balance import remarks
from ltcore.evaluation.catalog import METRICS, of_plugin, title_of
from ltcore.reporting.terminal import Terminal
from ltcore.storage import join, write_bytes_atomic
from ltcore.text import printable
from ltcore.training import predict
from ltcore.training.predictor import Predictor

PER_SPLIT = ("splits", "classes_present", "per_class", "support", "calibration", "confusion")
"""Fields of an evaluation that map splits."""


def run(args: EvaluateArgs) -> None:
    """Evaluates the checkpoint and stores its metrics."""
    predictor = predict.load(args.checkpoint, args.posthoc_tau, tta=args.tta)
    result = measured(predictor, args.data, args.splits, args.protocols, reading=args.reading)
    _print(result)
    if args.output:
        _write(args.output, result)
    else:
        for file, part in _files(args.checkpoint, result):
            _write(file, part)


def measured(
    predictor: Predictor,
    data: str | None,
    splits: Sequence[str],
    protocols: Sequence[str],
    out: Output = COMMAND_LINE,
    *,
    reading: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates on the given data, or on those of training. Returns what ``predict.evaluate`` does."""
    return predict.evaluate(predictor, find_data(predictor, data, out, reading=reading), splits, protocols)


def find_data(
    predictor: Predictor,
    given: str | None,
    out: Output = COMMAND_LINE,
    doing: str = "evaluating on",
    *,
    reading: Mapping[str, Any] | None = None,
) -> str:
    """Returns the URI of the shards to evaluate on or to predict: those of ``--data``, else those of training, and no others.

    ``reading`` are keys that say how ``--data`` is read, such as data.label_column.
    """
    data = predictor.config.data
    if given:
        uri = _prepared(other_data(data, given, reading), out, doing)
        manifest = read_manifest(uri)
        if str(share := manifest.provenance.get("test")).startswith("1/"):
            held, whole = (
                manifest.split("test").num_samples,
                sum(split.num_samples for split in manifest.splits.values()),
            )
            out.say(
                f"{given} came without a test folder: its test split is {share}, {held:,} of {whole:,} images. To measure all of "
                "them, put the folders of classes into one that is called test"
            )
        return uri
    try:
        uri = _prepared(data, out, doing)
    except DataError as error:
        raise DataError(f"{error} It is what the checkpoint was trained on: give the data with --data.") from error
    found = read_manifest(uri).hash
    if found != predictor.data_hash:
        raise ConfigError(
            f"data.uri={data.uri} leads to data {found[:12]}, but {predictor.place} was trained on "
            f"{predictor.data_hash[:12]}: they have changed since. To evaluate on them as they are, give --data {data.uri}."
        )
    return uri


def other_data(data: DataConfig, uri: str, reading: Mapping[str, Any] | None) -> DataConfig:
    """Points a ``data`` section at other data, read as ``reading`` says."""
    found = on_other_data(data, uri)
    return RunConfig(name="data", data=found).replace(reading).data if reading else found


def _prepared(data: Any, out: Output, doing: str) -> str:
    out.say(f"{doing} {data.uri}")
    uri = prepare(data, progress=out.say, needs_train=False)
    for remark in file_remarks(read_manifest(uri)):
        out.say(remark)
    return uri


def _files(checkpoint: str, result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields one file for each data set, split and adjustment, so that none replaces another's."""
    for split in result["splits"]:
        part = {name: {split: found[split]} for name, found in result.items() if name in PER_SPLIT}
        yield join(checkpoint, "metrics", metrics_name(result, split[:60])), {**result, **part}


def metrics_name(result: Mapping[str, Any], what: str) -> str:
    """Returns the name of a file of metrics: of which data, of what, and with which adjustment."""
    tau = f"-tau{result['posthoc_tau']:g}" if result["posthoc_tau"] else ""
    tau += f"-{result['tta']}" if result["tta"] != "none" else ""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{result['name'][:60]}-{result['data_hash'][:8]}-{what}{tau}.json")


def _write(file: str, result: dict[str, Any]) -> None:
    write_bytes_atomic(file, json.dumps(result, indent=1).encode())
    print(f"Metrics: {printable(file)}")


def _print(result: dict[str, Any]) -> None:
    tta = f", {result['tta']}" if result["tta"] != "none" else ""
    table = Table(title=f"{result['checkpoint']} on {json.dumps(result['data'])}{tta}")
    table.add_column("metric, %")
    for split in result["splits"]:
        table.add_column(split, justify="right")
    names = dict.fromkeys(name for values in result["splits"].values() for name in values)
    for name in names:
        if name in METRICS or of_plugin(name):
            table.add_row(title_of(name), *(percent_cell(values.get(name)) for values in result["splits"].values()))
    terminal = Terminal()
    terminal.print(table)
    if attributes := attribute_table(result):
        terminal.print(attributes)
    for split, support in result["support"].items():
        terminal.print(class_table(result, split))
        for remark in remarks(split, support):
            terminal.print(remark)
