"""``evaluate.py``: metrics of a checkpoint as a table and as JSON, or predictions for image files. Needs no Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ltcore.config.cli import EvaluateArgs
from ltcore.data.config import DataConfig
from ltcore.data.prepare import prepare
from ltcore.training import predict
from ltcore.training.record import write_json


def run(args: EvaluateArgs) -> None:
    predictor = predict.load(args.checkpoint, args.posthoc_tau)
    if args.images:
        for file, (name, probability) in zip(args.images, predictor.predict(args.images), strict=True):
            print(f"{file}\t{name}\t{probability:.4f}")
        return
    data: DataConfig = predictor.config.data
    if args.data:
        data = data.on(args.data)
    result = predict.evaluate(predictor, prepare(data), args.splits, args.protocols)
    _print(result)
    name = "metrics_posthoc.json" if args.posthoc_tau else "metrics.json"
    output = Path(args.output) if args.output else predictor.path / name
    write_json(output, result)
    print(f"Metrics: {output}")


def _print(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['checkpoint']} on {json.dumps(result['data'])}")
    table.add_column("metric, %")
    for split in result["splits"]:
        table.add_column(split, justify="right")
    names = list(dict.fromkeys(name for values in result["splits"].values() for name in values))
    for name in names:
        cells = [values.get(name) for values in result["splits"].values()]
        table.add_row(name, *("-" if v is None else f"{100 * v:.2f}" for v in cells))
    Console(highlight=False).print(table)
