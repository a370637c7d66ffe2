"""Content of the report of a sweep: plain values, tables and figures for the template."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from ltcore.evaluation.paired import points
from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting.format import METRICS, mean_sd, metric_name, percent, range_text, short_names
from ltcore.reporting.page import config_rows, machine, table_of_tests
from ltcore.reporting.records import Retrain, StoredSweep, difference_of, primary
from ltcore.reporting.summary import count_text, difference_kind, next_steps, ranked, score, searched, trial_of, verdict
from ltcore.reporting.sweep_figures import class_means, responses, sweep_figures, validation
from ltcore.text import duration

MAX_TABLED_CLASSES = 1000
"""With more classes than this, they are drawn and not listed."""


def sweep_page(sweep: StoredSweep) -> dict[str, Any]:
    """Returns the context of ``sweep.html.j2``."""
    info = sweep.info
    winner = trial_of(info, info.get("winner"))
    runs = [*(r.run for r in sweep.retrains), *sweep.runs()]
    data: dict[str, Any] = next((run.info["data"] for run in runs if "data" in run.info), {})
    return {
        "title": info.get("name", sweep.path.name),
        "sweep": info,
        "metric_title": metric_name(str(info.get("metric"))),
        "data": data,
        "verdict": verdict(info),
        "tiles": _tiles(sweep, winner),
        "winner": winner,
        "params": _params(sweep, winner),
        "protocols": _protocols(sweep),
        "tests": table_of_tests({_run_id(r): r.run for r in sweep.retrains}),
        "figures": sweep_figures(sweep, data),
        "responses": responses(sweep),
        "ranking": _ranking(sweep),
        "selection": _selection(info),
        "classes": _classes(sweep, data),
        "class_split": next(iter(ordered_splits(info.get("comparison") or {})), None),
        "config": config_rows(sweep.trials.get(info.get("winner", "")), sweep.baseline),
        "stages": _stages(info.get("stages") or {}),
        "machine": machine(sweep.runs(), info),
        "next_steps": next_steps(info),
        "commands": _commands(sweep, winner),
    }


def _run_id(retrain: Retrain) -> str:
    return f"{retrain.role}-seed{retrain.seed}"


def _tiles(sweep: StoredSweep, winner: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Returns (label, number, remark) of the facts below the headline."""
    info, found = sweep.info, primary(sweep.info)
    tiles = []
    if found is not None:
        cell = info["comparison"][found[0]][found[1]]
        remark = f"baseline {mean_sd(cell['baseline'])}, {len(cell['winner'])} seeds"
        tiles.append(
            (f"{protocol_of(found[0], info)[0]} {metric_name(found[1])} of the winner", mean_sd(cell["winner"]), remark)
        )
    if winner is not None:
        baseline = validation(sweep.baseline, info["metric"])
        tiles.append(
            (f"{metric_name(info['metric'])} of the winner", percent(score(winner)), f"baseline {percent(baseline)}")
        )
    count, _, states = count_text(info).partition(": ")
    tiles.append(("searched", count, states))
    seconds = sum((info.get("stages") or {}).values())
    if seconds:
        hours = info.get("node_hours")
        spent = ", ".join(f"{value:.2g} {kind}" for kind, value in hours.items()) if hours else ""
        tiles.append(("took", duration(seconds), f"node-hours: {spent}" if spent else "all stages"))
    return tiles


def _params(sweep: StoredSweep, winner: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if winner is None:
        return []
    names = short_names(winner["params"])
    return [
        {"key": key, "short": names[key], "value": value, "range": range_text(sweep.info["space"][key])}
        for key, value in winner["params"].items()
    ]


def _protocols(sweep: StoredSweep) -> list[dict[str, Any]]:
    """Returns one comparison table per test split; metrics not defined there have an empty row."""
    comparison = sweep.info.get("comparison") or {}
    tables = []
    for split in ordered_splits(comparison):
        tested = [m for r in sweep.retrains for m in r.run.tests().get(split, {})]
        names = [m for m in dict.fromkeys([*comparison[split], *tested]) if not m.endswith("/macro_precision")]
        order = {metric: at for at, metric in enumerate(METRICS)}
        rows = []
        for metric in sorted(names, key=lambda m: order.get(m, len(order))):
            cell = comparison[split].get(metric)
            row: dict[str, Any] = {"metric": metric, "name": metric_name(metric), "cell": cell}
            if cell is not None:
                delta = difference_of(cell)
                row["means"] = {role: fmean(cell[role]) for role in ("winner", "baseline")}
                row["texts"] = {role: mean_sd(cell[role]) for role in ("winner", "baseline")}
                row["difference"] = points(delta.difference)
                row["interval"] = None if delta.low is None or delta.high is None else _interval(delta.low, delta.high)
                row["kind"] = difference_kind(delta)
            rows.append(row)
        name, meaning = protocol_of(split, sweep.info)
        tables.append({"split": split, "name": name, "meaning": meaning, "rows": rows})
    return tables


def _interval(low: float, high: float) -> str:
    return f"{points(low)} .. {points(high)}"


def _ranking(sweep: StoredSweep) -> dict[str, Any]:
    """Returns the trials by rank, with the baseline after the finished ones."""
    info = sweep.info
    rows = []
    for rank, trial in ranked(info):
        run = sweep.trials[trial["id"]].info
        role = "winner" if trial["id"] == info.get("winner") else ""
        own = {"rank": rank, "role": role, "score": score(trial), "seconds": run.get("seconds")}
        rows.append({**trial, **own, "planned": run.get("epochs_planned")})
    if sweep.baseline is not None:
        of = sweep.baseline.info
        kept = {key: of.get(key) for key in ("status", "reason", "epochs_done", "seconds")}
        own = {"id": "baseline", "rank": None, "role": "baseline", "score": validation(sweep.baseline, info["metric"])}
        rows.insert(sum(row["status"] == "finished" for row in rows), {**own, **kept, "planned": of["epochs_planned"]})
    keys = list(info.get("space") or {})
    return {"columns": keys, "names": short_names(keys), "rows": rows}


def _selection(info: Mapping[str, Any]) -> list[str]:
    """Describes how the winner was chosen, in sentences that the files support."""
    trials = searched(info)
    if not trials:
        return []
    finished = sum(t["status"] == "finished" for t in trials)
    when = "at the end of training" if "last" in trials[0] else "at its best epoch"
    lines = [
        f"Trials are ranked by {metric_name(info['metric'])} {when}, on the validation split alone and only among the "
        f"{finished} of {len(trials)} that reached the end; a trial stopped early is not a candidate, whatever its score."
    ]
    for rung in info.get("rungs") or ():
        places = rung["trials"]
        lines.append(
            f"After epoch {places[0]['epoch']}, all {len(places)} trials of that round were compared, and "
            f"the best {min(rung['keep'], len(places))} continued."
        )
    start = info.get("shared_start")
    if start:
        lines.append(
            f"{start['trials']} trials share their first {start['epochs']} epochs, before any term acts: these were trained "
            f"once, which saved {duration(start['saved_s'])} of training."
        )
    seeds = len({r["seed"] for r in info.get("retrain") or ()})
    if seeds:
        lines.append(
            f"Winner and baseline were then trained again with {seeds} paired seed{'s' * (seeds != 1)}; these "
            "runs, not the trials, were tested. Intervals are Student t over the paired differences, and not corrected for "
            "the number of metrics."
        )
    return lines


def _classes(sweep: StoredSweep, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    means = class_means(sweep)
    if not means or len(means["winner"]) > MAX_TABLED_CLASSES:
        return []
    count = len(means["winner"])
    names, groups = data.get("classes") or range(count), data.get("shot_groups") or [""] * count
    columns = zip(names, groups, means["winner"], means["baseline"], strict=True)
    return [{"name": n, "group": g, "winner": w, "baseline": b} for n, g, w, b in columns]


def _stages(stages: Mapping[str, float]) -> list[dict[str, Any]]:
    longest = max(stages.values(), default=0.0) or 1.0
    return [
        {"name": name, "seconds": seconds, "text": duration(seconds), "share": seconds / longest}
        for name, seconds in stages.items()
    ]


def _commands(sweep: StoredSweep, winner: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Returns (purpose, command) of sensible next commands; they name only files that exist."""
    folder, name = sweep.path, str(sweep.info.get("name"))
    again = shlex.quote(f"{name}-winner")
    commands = []
    if winner is not None:
        config = shlex.quote(str(sweep.trials[winner["id"]].path / "config.yaml"))
        commands.append(
            (
                "train the winner's configuration again",
                f"python pipelines/train.py {config} --name {again} --seed 10",
            )
        )
        params = shlex.join(f"{k}={_word(v)}" for k, v in winner["params"].items() if v is not None)
        commands.append(("use its parameters in another recipe", f"python pipelines/train.py RECIPE {params}"))
        tested = next((r for r in sweep.of_role("winner") if r.run.info), None)
        if tested is not None:
            model = shlex.quote(str(tested.run.path))
            commands.append(("classify images with it", f"python pipelines/evaluate.py {model} IMAGE ..."))
    recipe = shlex.quote(str(sweep.info.get("recipe", "")))
    more = 2 * int(sweep.info.get("num_trials") or len(searched(sweep.info)))
    further = shlex.quote(f"{name}-{more}")
    commands.append(("search further", f"python pipelines/tune_lpa.py {recipe} --num-trials {more} --name {further}"))
    offline = [p for p in ("*/wandb/offline-run-*", "*/*/wandb/offline-run-*") if any(folder.glob(p))]
    if offline:
        paths = " ".join(f"{shlex.quote(str(folder))}/{pattern}" for pattern in offline)
        commands.append(("send the runs to W&B", f"wandb sync {paths}"))
    commands.append(("render this page again", f"python pipelines/report.py {shlex.quote(str(folder))}"))
    return commands


def _word(value: Any) -> str:
    """Formats a value for the command line."""
    return value if isinstance(value, str) else json.dumps(value)
