"""Content of the report of a sweep: plain values, tables and figures for the template."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from ltcore.config.records import SweepRecord, TrialRecord
from ltcore.config.trained_with import TrainedData
from ltcore.evaluation.catalog import DETAILS, METRICS, minimized, title_of
from ltcore.evaluation.paired import PairedDifference, points
from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting.ablation import ablation_cells, ablation_lines
from ltcore.reporting.compared import compared_tests, difference_kind, interval_text
from ltcore.reporting.data_page import data_section
from ltcore.reporting.format import mean_sd, percent, range_text, short_names
from ltcore.reporting.page import config_rows, machine, split_remarks, table_of_tests
from ltcore.reporting.pictures import Pictures
from ltcore.reporting.rank_table import RankTable, compared_methods, is_rank_metric, rank_table
from ltcore.reporting.records import StoredSweep, primary
from ltcore.reporting.summary import count_text, next_steps, ranked, searched, verdict
from ltcore.reporting.svg import COLORS
from ltcore.reporting.sweep_figures import class_means, responses, sweep_figures
from ltcore.text import counted, duration

MAX_TABLED_CLASSES = 1000
"""With more classes than this, they are drawn and not listed."""


def sweep_page(sweep: StoredSweep) -> dict[str, Any]:
    """Returns the context of ``sweep.html.j2``."""
    record = sweep.record
    winner = record.trial(record.winner)
    runs = [*(r.run for r in sweep.retrains), *sweep.runs()]
    data = next((run.record.data for run in runs if run.record is not None), None)
    pictures = None if data is None else Pictures(data, record.train_split)
    return {
        "title": record.name,
        "sweep": record,
        "samples": None if pictures is None else data_section(pictures, record.train_split),
        "no_pictures": "" if pictures is None else pictures.problem,
        "metric_title": title_of(record.metric),
        "data": data,
        "verdict": verdict(record),
        "tiles": _tiles(sweep, winner),
        "winner": winner,
        "params": _params(record, winner),
        "protocols": _protocols(sweep),
        "ranks": _ranks(record),
        "tests": table_of_tests(sweep.tested),
        "ablation": ablation_cells(record),
        "ablation_lines": ablation_lines(record),
        "figures": sweep_figures(sweep, data),
        "responses": responses(sweep),
        "ranking": _ranking(sweep),
        "selection": _selection(record),
        "classes": _classes(sweep, data),
        "class_split": next(iter(ordered_splits(record.comparison or {})), None),
        "config": config_rows(sweep.trials.get(record.winner or ""), sweep.baseline),
        "stages": _stages(record.stages),
        "machine": machine(sweep.runs(), record),
        "next_steps": next_steps(record),
        "commands": _commands(sweep, winner),
    }


def _tiles(sweep: StoredSweep, winner: TrialRecord | None) -> list[tuple[str, str, str]]:
    """Returns (label, number, remark) of the facts under the headline."""
    record, found = sweep.record, primary(sweep.record)
    tiles = []
    if found is not None:
        split, metric, cell = found
        protocol = protocol_of(split, record.train_split)[0]
        remark = f"baseline {mean_sd(cell.baseline)}, {counted(cell.num_seeds, 'seed')}"
        tiles.append((f"{protocol} {title_of(metric)} of the winner", mean_sd(cell.winner), remark))
    if winner is not None:
        baseline = sweep.baseline.last(record.metric) if sweep.baseline else None
        tiles.append(
            (f"{title_of(record.metric)} of the winner", percent(winner.last), f"baseline {percent(baseline)}")
        )
    count, _, states = count_text(record).partition(": ")
    tiles.append(("searched", count, states))
    seconds = sum(record.stages.values())
    if seconds:
        spent = ", ".join(f"{value:.2g} {kind}" for kind, value in record.node_hours.items())
        tiles.append(("took", duration(seconds), f"node-hours: {spent}" if spent else "all stages"))
    return tiles


def _params(record: SweepRecord, winner: TrialRecord | None) -> list[dict[str, Any]]:
    if winner is None:
        return []
    names = short_names(winner.params)
    return [
        {"key": key, "short": names[key], "value": value, "range": range_text(record.space[key])}
        for key, value in winner.params.items()
    ]


def _protocols(sweep: StoredSweep) -> list[dict[str, Any]]:
    """Returns one comparison table per test split; metrics that are not defined there keep their row, empty."""
    order = {metric: at for at, metric in enumerate(METRICS)}
    tables = []
    for test in compared_tests(sweep.record):
        runs = [run for run in sweep.tested.values() if run.record and run.record.train_split == test.train_split]
        tested = [m for run in runs for m in run.tests().get(test.split, {})]
        found = dict.fromkeys([*test.cells, *tested])
        names = [m for m in found if not m.endswith(DETAILS) and not is_rank_metric(m)]
        names.sort(key=lambda m: order.get(m, len(order)))
        rows = [_compared(metric, test.cells.get(metric)) for metric in names]
        said = split_remarks(runs, test.split)
        tables.append(
            {
                "split": test.split,
                "key": test.metric_key,
                "name": test.name,
                "meaning": test.meaning,
                "rows": rows,
                "remarks": said,
            }
        )
    return tables


def _ranks(record: SweepRecord) -> list[RankTable]:
    """Returns a table of accuracies by attribute rank for each test that has them."""
    tables = (
        rank_table(test.metric_key, test.name, compared_methods(test.cells), COLORS, test.cells)
        for test in compared_tests(record)
    )
    return [table for table in tables if table is not None]


def _compared(metric: str, cell: PairedDifference | None) -> dict[str, Any]:
    row: dict[str, Any] = {"metric": metric, "name": title_of(metric), "cell": cell}
    if cell is None:
        return row
    values = {"winner": cell.winner, "baseline": cell.baseline}
    return row | {
        "means": {role: fmean(of_role) for role, of_role in values.items()},
        "texts": {role: mean_sd(of_role) for role, of_role in values.items()},
        "difference": points(cell.difference),
        "interval": None if cell.low is None else interval_text(cell).replace("..", " .. "),
        "kind": difference_kind(metric, cell),
    }


def _ranking(sweep: StoredSweep) -> dict[str, Any]:
    """Returns the trials by rank, the baseline after those that reached the end."""
    record = sweep.record
    rows = [_ranked(rank, trial, sweep) for rank, trial in ranked(record)]
    if sweep.baseline is not None and sweep.baseline.record is not None:
        of = sweep.baseline.record
        row = {
            "id": "baseline",
            "rank": None,
            "role": "baseline",
            "score": of.last.get(record.metric),
            "status": of.status,
            "reason": of.reason,
            "epochs_done": of.epochs_done,
            "planned": of.epochs_planned,
            "seconds": of.seconds,
        }
        rows.insert(sum(row["status"] == "finished" for row in rows), row)
    keys = list(record.space)
    return {"columns": keys, "names": short_names(keys), "rows": rows}


def _ranked(rank: int | None, trial: TrialRecord, sweep: StoredSweep) -> dict[str, Any]:
    run = sweep.trials[trial.id].record
    return {
        "id": trial.id,
        "rank": rank,
        "role": "winner" if trial.id == sweep.record.winner else "",
        "params": trial.params,
        "score": trial.last,
        "status": trial.status,
        "reason": trial.reason,
        "epochs_done": trial.epochs_done,
        "planned": run.epochs_planned if run else None,
        "seconds": run.seconds if run else None,
    }


def _selection(record: SweepRecord) -> list[str]:
    """Tells in sentences that the files support how the winner was chosen."""
    trials = searched(record)
    if not trials:
        return []
    finished = sum(trial.status == "finished" for trial in trials)
    lines = [
        f"Trials are ranked by {title_of(record.metric)}{', the lowest first,' * minimized(record.metric)} at the end of "
        f"training, on the validation split alone and only among the {finished} of {len(trials)} that reached the end; a "
        "trial stopped early is not a candidate, whatever its score."
    ]
    for rung in record.rungs:
        compared = len(rung.trials)
        lines.append(
            f"After epoch {rung.trials[0].epoch}, all {compared} trials of that round were compared, and the best "
            f"{min(rung.keep, compared)} continued."
        )
    start = record.shared_start
    if start:
        lines.append(
            f"{start.trials} trials share their first {start.epochs} epochs, before any term acts: these were trained "
            f"once, which saved {duration(start.saved_s)} of training."
        )
    seeds = len({entry.seed for entry in record.retrain or ()})
    if seeds:
        lines.append(
            f"Winner and baseline were then trained again with {counted(seeds, 'paired seed')}; these "
            "runs, not the trials, were tested. Intervals are Student t over the paired differences, and not corrected for "
            "the number of metrics."
        )
    return lines


def _classes(sweep: StoredSweep, data: TrainedData | None) -> list[dict[str, Any]]:
    means = class_means(sweep)
    if data is None or not means or len(means["winner"]) > MAX_TABLED_CLASSES:
        return []
    columns = zip(data.classes, data.shot_groups, means["winner"], means["baseline"], strict=True)
    return [{"name": n, "group": g, "winner": w, "baseline": b} for n, g, w, b in columns]


def _stages(stages: Mapping[str, float]) -> list[dict[str, Any]]:
    longest = max(stages.values(), default=0.0) or 1.0
    return [
        {"name": name, "seconds": seconds, "text": duration(seconds), "share": seconds / longest}
        for name, seconds in stages.items()
    ]


def _commands(sweep: StoredSweep, winner: TrialRecord | None) -> list[tuple[str, str]]:
    """Returns (purpose, command) of sensible next commands; only what exists on disk is named."""
    folder, record = sweep.path, sweep.record
    again = shlex.quote(f"{record.name}-winner")
    commands = []
    if winner is not None:
        config = shlex.quote(str(sweep.trials[winner.id].path / "config.yaml"))
        commands.append(
            (
                "train the winner's configuration again",
                f"python pipelines/train.py {config} --name {again} --seed 10",
            )
        )
        params = shlex.join(f"{k}={_word(v)}" for k, v in winner.params.items())
        commands.append(("use its parameters in another recipe", f"python pipelines/train.py RECIPE {params}"))
        tested = next((r for r in sweep.of_role("winner") if r.run.record), None)
        if tested is not None:
            model = shlex.quote(str(tested.run.path))
            commands.append(("classify images with it", f"python pipelines/evaluate.py {model} IMAGE ..."))
    offline = [p for p in ("*/wandb/offline-run-*", "*/*/wandb/offline-run-*") if any(folder.glob(p))]
    if offline:
        paths = " ".join(f"{shlex.quote(str(folder))}/{pattern}" for pattern in offline)
        commands.append(("send the runs to W&B", f"wandb sync {paths}"))
    commands.append(("render this page again", f"python pipelines/report.py {shlex.quote(str(folder))}"))
    return commands


def _word(value: Any) -> str:
    """Formats a value for the command line."""
    return value if isinstance(value, str) else json.dumps(value)
