"""``evaluate``: metrics of a checkpoint as a table and as JSON, or predictions for image files. Needs no Ray."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ltcore.cli.args import EvaluateArgs
from ltcore.cli.entry import say
from ltcore.data.datasets.prepare import prepare
from ltcore.data.datasets.registry import on_other_data
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.remarks import file_remarks
from ltcore.errors import ConfigError, DataError
from ltcore.reporting.terminal import Terminal
from ltcore.storage import join, write_bytes_atomic
from ltcore.text import printable
from ltcore.training import predict


def run(args: EvaluateArgs) -> None:
    """Prints predictions for the given images, else evaluates the checkpoint and stores its metrics."""
    predictor = predict.load(args.checkpoint, args.posthoc_tau)
    if args.images:
        for file, (name, probability) in zip(args.images, predictor.predict_each(args.images), strict=True):
            print(f"{printable(file)}\t{printable(name)}\t{probability:.4f}", flush=True)
        return
    result = predict.evaluate(predictor, _data(predictor, args.data), args.splits, args.protocols)
    _print(result, len(predictor.classes))
    if args.output:
        _write(args.output, result)
    else:
        for file, part in _files(args.checkpoint, result):
            _write(file, part)


def _data(predictor: predict.Predictor, given: str | None) -> str:
    """Returns the URI of the shards to evaluate on: those of ``--data``, else those of training, and no others."""
    data = predictor.config.data
    if given:
        uri = _prepared(on_other_data(data, given))
        if str(share := read_manifest(uri).provenance.get("test")).startswith("1/"):
            say(f"{given} came without a test folder: its test split is {share}")
        return uri
    try:
        uri = _prepared(data)
    except DataError as error:
        raise DataError(f"{error} It is what the checkpoint was trained on: give the data with --data.") from error
    found = read_manifest(uri).hash
    if found != predictor.data_hash:
        raise ConfigError(
            f"data.uri={data.uri} leads to data {found[:12]}, but {predictor.place} was trained on "
            f"{predictor.data_hash[:12]}: they have changed since. To evaluate on them as they are, give --data {data.uri}."
        )
    return uri


def _prepared(data: Any) -> str:
    say(f"evaluating on {data.uri}")
    uri = prepare(data, progress=say, needs_train=False)
    for remark in file_remarks(read_manifest(uri)):
        say(remark)
    return uri


def _files(checkpoint: str, result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields one file for each data set, split and adjustment, so that none replaces another's."""
    for split, values in result["splits"].items():
        tau = f"-tau{result['posthoc_tau']:g}" if result["posthoc_tau"] else ""
        name = re.sub(
            r"[^A-Za-z0-9._-]+", "_", f"{result['name'][:60]}-{result['data_hash'][:8]}-{split[:60]}{tau}.json"
        )
        part = {"splits": {split: values}, "classes_present": {split: result["classes_present"][split]}}
        yield join(checkpoint, "metrics", name), {**result, **part}


def _write(file: str, result: dict[str, Any]) -> None:
    write_bytes_atomic(file, json.dumps(result, indent=1).encode())
    print(f"Metrics: {printable(file)}")


def _print(result: dict[str, Any], num_classes: int) -> None:
    table = Table(title=f"{result['checkpoint']} on {json.dumps(result['data'])}")
    table.add_column("metric, %")
    for split in result["splits"]:
        table.add_column(split, justify="right")
    names = list(dict.fromkeys(name for values in result["splits"].values() for name in values))
    for name in names:
        cells = [values.get(name) for values in result["splits"].values()]
        table.add_row(name, *("-" if v is None else f"{100 * v:.2f}" for v in cells))
    terminal = Terminal()
    terminal.print(table)
    for split, count in result["classes_present"].items():
        if count < num_classes:
            terminal.print(f"{split}: {count} of {num_classes} classes have images; the metrics are of these alone.")
