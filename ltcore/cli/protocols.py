"""``evaluate --protocols``: CLT, ALT and GLT side by side, from runs that differ in training split and seed alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ltcore.cli.args import ProtocolsArgs
from ltcore.cli.console import percent_cell
from ltcore.cli.evaluate import find_data, metrics_name
from ltcore.cli.output import COMMAND_LINE, Output
from ltcore.cli.train import train_config
from ltcore.config.execution import PlaceArgs
from ltcore.config.schema import RunConfig
from ltcore.data.shards.manifest import Manifest, read_manifest
from ltcore.errors import ConfigError
from ltcore.evaluation.catalog import title_of
from ltcore.evaluation.protocol_table import COLUMNS, Measured, ProtocolColumn, ProtocolTable, SeedResult
from ltcore.evaluation.protocols import PROTOCOLS
from ltcore.reporting.terminal import Terminal
from ltcore.storage import join, write_bytes_atomic
from ltcore.text import printable
from ltcore.training import predict
from ltcore.training.protocol_runs import (
    ORIGINS,
    TRAIN_SPLITS,
    StoredRun,
    checked,
    counterpart_config,
    find_counterpart,
    open_stored,
    origin_of,
)


def run(args: ProtocolsArgs) -> None:
    """Compares the protocols, shows and stores the table."""
    result, table = compared(args)
    _print(result, table)
    file = args.output or join(table.columns[0].runs[0].run, "metrics", _file_name(result, table.num_seeds))
    text = as_csv(table) if file.endswith(".csv") else json.dumps(result, indent=1)
    write_bytes_atomic(file, text.encode())
    print(f"Protocols: {printable(file)}")


def compared(args: ProtocolsArgs, out: Output = COMMAND_LINE) -> tuple[dict[str, Any], ProtocolTable]:
    """Evaluates runs and their counterparts under every protocol, after training the missing ones where that is asked for.

    Returns ``{"name", "data", "data_hash", "posthoc_tau", "tta", "weights", "intervals": in words, "columns": those of the
    table as JSON}``, and the table. Raises ConfigError where runs do not belong together, where one is
    missing, or where the data have no splits for the protocols.
    """
    given = checked([open_stored(uri) for uri in args.runs])
    for stored in reversed(given):  # what cannot be tested so is refused before anything is trained
        predictor = predict.load(stored.uri, args.posthoc_tau, tta=args.tta)
    data_uri = find_data(predictor, args.data, out)
    manifest = read_manifest(data_uri)
    _refuse_other_data(manifest)
    runs = paired(given, args, out)
    alone = len(runs) == len(TRAIN_SPLITS)
    tested: dict[tuple[str, str], list[SeedResult]] = {}
    for stored in runs:
        split = stored.record.train_split
        tests = [
            test for train, test in COLUMNS if train == split and (test in manifest.splits or test != COLUMNS[-1][1])
        ]
        out.say(f"testing {stored.record.name} on {', '.join(tests)}")
        predictor = predict.load(stored.uri, args.posthoc_tau, tta=args.tta)
        found = predict.evaluate(predictor, data_uri, tests, (), intervals=alone)
        for test in tests:
            intervals = found["intervals"][test] if alone else {}
            of_run = SeedResult(stored.uri, found["checkpoint"], stored.record.seed, found["splits"][test], intervals)
            tested.setdefault((split, test), []).append(of_run)
    columns = [
        ProtocolColumn(*splits, tuple(tested[splits]), manifest.repeats(splits[1]))
        for splits in COLUMNS
        if splits in tested
    ]
    table = ProtocolTable(tuple(columns))
    result = {
        "name": manifest.name,
        "data": data_uri,
        "data_hash": manifest.hash,
        "posthoc_tau": args.posthoc_tau,
        "tta": args.tta,
        "weights": "of the epoch that was best on validation, else of the last one",
        "intervals": table.method,
        "columns": [column.to_json() for column in columns],
    }
    return result, table


def _refuse_other_data(manifest: Manifest) -> None:
    needed = {protocol.test_split for protocol in PROTOCOLS.values()}
    if missing := sorted(needed - manifest.splits.keys()):
        raise ConfigError(
            f"{manifest.name} has no split {' and no '.join(missing)} (it has {', '.join(manifest.splits)}): CLT, ALT and GLT "
            "are of data that were split for generalized long tails, as digits-glt. Evaluate the run without --protocols."
        )


def paired(runs: Sequence[StoredRun], args: ProtocolsArgs, out: Output) -> list[StoredRun]:
    """Returns the runs with the counterparts of those that were given alone, by training split and seed.

    Raises ConfigError that names the missing ones, unless they are to be trained.
    """
    sides = {split: {run.record.seed: run for run in runs if run.record.train_split == split} for split in TRAIN_SPLITS}
    missing = []
    for run in runs:
        of_other = sides[run.other_split]
        if run.record.seed in of_other:
            continue
        other = find_counterpart(run)
        if (other is None or other.record.status != "finished") and not args.train_missing:
            missing.append(_missing(run, other))
            continue
        of_other[run.record.seed] = train_counterpart(run, args, out)
    if missing:
        raise ConfigError(
            f"the protocols need, for each run, one on the other training split: {'; '.join(missing)}. Train what is missing "
            "with the same command and --train-missing, or give its directory beside the others."
        )
    return checked([run for side in sides.values() for run in side.values()])


def _missing(run: StoredRun, other: StoredRun | None) -> str:
    if other is not None:
        return f"{other.uri} is not finished ({other.record.status})"
    return f"{run.folder} holds no run like {run.record.name} with data.train_split={run.other_split}"


def train_counterpart(run: StoredRun, args: ProtocolsArgs, out: Output) -> StoredRun:
    """Returns the finished counterpart of a run, trained or continued beside it where there is none.

    What it starts from is brought about in the same way.
    """
    found = find_counterpart(run)
    if found is not None and found.record.status == "finished":
        return found
    if args.data is not None:
        raise ConfigError(
            f"{run.counterpart_name} would be trained on data.uri={run.record.config['data.uri']}, as {run.record.name} was, and "
            f"tested on --data {args.data} (or LTCORE_DATA). Train it without --data first, then test both on the other data."
        )
    name = run.counterpart_name if found is None else found.uri.rpartition("/")[2]
    cfg = counterpart_config(run, name) if found is None else RunConfig.from_flat({**found.record.config, "name": name})
    for key in ORIGINS if found is None else ():  # one that was begun keeps what it started from
        origin = origin_of(run.record, key)
        if origin is None:
            continue
        if "/checkpoints/" in str(run.record.config[key]):
            raise ConfigError(
                f"{run.uri} starts from {key}={run.record.config[key]}, one checkpoint of a run, and its counterpart has no "
                "checkpoint of the same step. Train the counterpart yourself, and give it beside the others."
            )
        cfg = cfg.replace({key: train_counterpart(origin, args, out).uri})
    out.say(f"training {name}: as {run.record.name}, on {run.other_split}")
    by_workers = run.record.engine == "train"
    place = PlaceArgs(
        engine="train" if by_workers else "auto",
        workers=(run.record.world, run.record.world) if by_workers else None,
        storage=run.folder,
        debug=args.debug,
    )
    silent = Output(say=out.say, terminal=out.terminal, shows_results=False)
    if train_config(cfg, place, silent) is None:
        raise KeyboardInterrupt
    return open_stored(join(run.folder, name))


def as_csv(table: ProtocolTable) -> str:
    """Returns a line for each protocol and metric."""
    rows, text = table.rows(), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _file_name(result: Mapping[str, Any], seeds: int) -> str:
    return metrics_name(result, "protocols" if seeds == 1 else f"protocols-{seeds}seeds")


def _print(result: Mapping[str, Any], table: ProtocolTable) -> None:
    terminal = Terminal()
    terminal.print(protocols_table(table))
    terminal.print(f"In parentheses: {table.method}.")
    terminal.print(f"The weights are those {result['weights']}.")
    for side in _sides(table):
        terminal.print(side)


def _sides(table: ProtocolTable) -> list[str]:
    """Returns in words which runs each training split has."""
    by_split = {column.train_split: column for column in table.columns}
    return [
        f"Trained on {split}: {', '.join(run.run.rpartition('/')[2] for run in column.runs)}"
        for split, column in by_split.items()
    ]


def protocols_table(table: ProtocolTable) -> Table:
    """Returns the table for a terminal: a line for each metric, which fits into 80 columns with one seed."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    shown.add_column("metric, %", no_wrap=True)
    for column in table.columns:
        head = f"{column.name}\n{column.train_split} ->\n{column.test_split}"
        shown.add_column(head, justify="right", no_wrap=True)
    found = [column.metrics for column in table.columns]
    for name in table.shown():
        cells = [metrics.get(name) for metrics in found]
        shown.add_row(title_of(name), *(cell_text(cell) for cell in cells))
    return shown


def cell_text(cell: Measured | None) -> str:
    """Returns '87.4 (85.1..89.6)', and with several seeds '87.4 ± 1.2' above its interval; a dash without a value."""
    if cell is None or cell.mean is None:
        return "-"
    ends = "" if cell.interval is None else f"({'..'.join(percent_cell(end, 1) for end in cell.interval)})"
    if cell.sd is None:
        return f"{percent_cell(cell.mean, 1)} {ends}".rstrip()
    return f"{percent_cell(cell.mean, 1)} ± {percent_cell(cell.sd, 1)}\n{ends}".rstrip()
