"""A sweep directory as the runtime leaves it, with numbers that are functions of keys."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ltcore.config.json_record import encode
from ltcore.evaluation.paired import compare
from ltcore.reporting.rank_table import RANKS, rank_metric
from ltcore.rng import hash64

SPACE = {
    "objective.terms.lpa.weight": "log:0.02,1.0",
    "objective.terms.dro.radius": "log:0.05,2.0",
    "objective.terms.ifl.num_envs": "int:1,4",
}
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
GROUPS = ["many"] * 4 + ["medium"] * 3 + ["few"] * 3
COUNTS = [150, 90, 50, 30, 20, 12, 8, 5, 3, 2]
EPOCHS = 20
METRIC = "val/balanced_accuracy"


def keyed(*words: int | str) -> float:
    """A number in [0, 1)."""
    return hash64("fake", *words) / 2**64


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def params_of(trial: int) -> dict[str, Any]:
    return {
        "objective.terms.lpa.weight": float(f"{0.02 * 50 ** keyed(trial, 'lpa'):.6g}"),
        "objective.terms.dro.radius": float(f"{0.05 * 40 ** keyed(trial, 'dro'):.6g}"),
        "objective.terms.ifl.num_envs": 1 + int(4 * keyed(trial, "ifl")),
    }


def write_run(
    folder: Path,
    *,
    kind: str,
    quality: float,
    seed: int = 0,
    epochs: int = EPOCHS,
    status: str = "finished",
    params: dict[str, Any] | None = None,
    tested: bool = False,
) -> dict[str, Any]:
    """Writes run.json and metrics.jsonl; returns run.json's content."""
    rows = []
    for epoch in range(1, epochs + 1):
        noise = 0.03 * (keyed(str(folder.name), seed, epoch) - 0.5)
        top1 = quality * (1 - math.exp(-epoch / 5)) + noise
        metrics = {"epoch": epoch, "step": 3 * epoch, "images_seen": 384 * epoch, "train/loss": 2 / epoch}
        rows.append(
            {
                **metrics,
                METRIC: top1,
                "val/top1": top1,
                "val/macro_precision": top1 - 0.02,
                "val/few": None,
                "time_s": 0.4 * epoch,
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info: dict[str, Any] = {
        "schema": 1,
        "id": f"demo-{folder.name}",
        "name": folder.name,
        "kind": kind,
        "group": "demo",
        "seed": seed,
        "status": status,
        "reason": f"stopped after epoch {epochs}: rank 7 of 8, the best 3 went on" if status == "stopped" else "",
        "config": {"name": folder.name, "seed": seed, "objective.base": "balanced_softmax", "train.epochs": EPOCHS}
        | {"model.name": "resnet8", "augment.mean": "0.5,0.5,0.5"}
        | (params or {f"objective.terms.{term}": None for term in ("lpa", "dro", "ifl")}),
        "epochs_planned": EPOCHS,
        "epochs_done": epochs,
        "images_seen": 384 * epochs,
        "last": rows[-1] if rows else {},
        "best": max(rows, key=lambda row: row[METRIC]) if rows else {},
        "data": {
            "name": "digits-glt",
            "hash": "5eed" * 16,
            "uri": "/shards/digits-glt",
            "num_train": sum(COUNTS),
            "classes": CLASSES,
            "shot_groups": GROUPS,
            "class_counts": COUNTS,
            "image_size": 32,
            "loader": "cache",
            "loader_reason": "fits",
        },
        "hardware": {"cpu": "A CPU <fast> @ 2 GHz", "cpus": 2, "gpus": [], "memory_bytes": 8 * 2**30, "host": "box"},
        "precision": "bf16 (AVX512-BF16)",
        "threads": 1,
        "world": 1,
        "device": "cpu",
        "engine": "trial",
        "pid": 7,
        "versions": {"python": "3.11.7", "torch": "2.11.0", "ray": "2.60.0", "ltcore": "0.1.0"},
        "started_at": "2026-01-02T03:04:05+00:00",
        "wandb_id": f"demo-{folder.name}-abc",
        "seconds": 0.4 * epochs,
    }
    if status == "finished":
        info["finished_at"] = "2026-01-02T03:06:05+00:00"
    if tested:
        info["test"] = {split: _test(folder.name, split, quality) for split in ("test_cbl", "test_gbl")}
        info["per_class"] = {
            split: [
                None
                if c == 9 and split == "test_cbl"
                else min(1.0, max(0.0, quality - 0.03 * c + 0.1 * keyed(folder.name, split, c)))
                for c in range(10)
            ]
            for split in info["test"]
        }
    write_json(folder / "run.json", info)
    return info


def _test(name: str, split: str, quality: float) -> dict[str, float | None]:
    base = quality - (0.08 if split == "test_gbl" else 0.0) + 0.02 * (keyed(name, split) - 0.5)
    shifts = {"top1": 0, "macro_precision": 0.01, "glt_f1": 0.005, "many": 0.12, "medium": 0.01, "few": -0.14}
    values: dict[str, float | None] = {
        metric: base + shift + 0.02 * (keyed(name, split, metric) - 0.5) for metric, shift in shifts.items()
    }
    values = {"balanced_accuracy": values["top1"], **values}  # the classes of the tests are balanced
    values["worst_class"] = None if split == "test_cbl" else base - 0.3
    for attribute in ("red", "green", "blue"):
        values[f"attribute/{attribute}"] = base + 0.05 * (keyed(name, split, attribute) - 0.5)
        values[f"attribute/{attribute}/macro_precision"] = base + 0.01
    return values | by_rank(base, name, split)


def by_rank(base: float, *words: str) -> dict[str, float | None]:
    """Accuracies by attribute rank that fall from the majority to rare attributes; medium classes have no second one."""
    values: dict[str, float | None] = {}
    for shift, rank in zip((0.1, 0.0, -0.15), RANKS, strict=True):
        for below, group in zip((0.0, -0.05, 0.0, 0.2), ("", "many", "medium", "few"), strict=True):
            name = rank_metric(rank, group)
            values[name] = base + shift * (1 + 4 * below) - below + 0.02 * (keyed(*words, name) - 0.5)
    values[rank_metric("second", "medium")] = None
    return values


def begun(num_trials: int = 8) -> dict[str, Any]:
    """The content of sweep.json before anything has run."""
    return {
        "schema": 1,
        "status": "running",
        "reason": "",
        "name": "demo",
        "recipe": "digits_glt_demo",
        "space": SPACE,
        "search": "random",
        "metric": METRIC,
        "num_trials": num_trials,
        "sizes": [num_trials],
        "config_hash": "0123456789abcdef",
        "identity": {"sweep.num_trials": num_trials, "data.train_split": "train"},
        "data_hash": "5eed" * 16,
        "epochs": EPOCHS,
        "engine": "trial",
        "hardware": {"cpu": "A CPU <fast> @ 2 GHz", "cpus": 2, "gpus": [], "memory_bytes": 8 * 2**30, "host": "box"},
        "created_at": "2026-01-02T03:04:05+00:00",
        "stages": {},
        "stages_before": {},
        "node_hours": {},
        "most_nodes": 1,
        "suggested": [],
        "rungs": [],
        "forked": {},
        "populations": 0,
        "weights": None,
        "variants": [],
    }


def _train_after(folder: Path, where: str, seeds: int, quality: float) -> tuple[list[str], dict[int, Any]]:
    """Writes tested runs, one for each seed; those below 'alt' were trained on balanced classes."""
    split = "train_cbl" if where.startswith("alt/") else "train"
    places = [f"{where}-seed{seed}" for seed in range(1, seeds + 1)]
    found = {}
    for seed, place in enumerate(places, 1):
        value = quality + 0.02 * keyed("seed", seed)
        params = {"data.train_split": split}
        found[seed] = write_run(folder / place, kind="retrain", quality=value, seed=seed, params=params, tested=True)[
            "test"
        ]
    return places, found


def _ablation(folder: Path, seeds: int, baseline: dict[int, Any]) -> dict[str, Any]:
    """ALT, and an ablation of LPA alone and its control."""
    alt = {role: _train_after(folder, f"alt/{role}", seeds, 0.7) for role in ("winner", "baseline")}
    runs = [
        {"role": role, "seed": seed, "run_dir": place}
        for role, (places, _) in alt.items()
        for seed, place in enumerate(places, 1)
    ]
    term, control = (_train_after(folder, f"ablation/{name}", seeds, 0.74) for name in ("lpa", "lpa-neighbor_mass0"))
    weight = "objective.terms.lpa.weight"
    common = {"term": "lpa", "changes": {weight: 0.1}, "seeds": list(range(1, seeds + 1))}
    settings = []
    for trial, value in (("t00", 0.1), ("t03", 0.4)):
        place, params = f"ablation/lpa-trial{trial}-seed0", {weight: value}
        info = write_run(folder / place, kind="trial", quality=0.8 - value, params=params)
        settings.append({"trial": trial, "params": params, "run_dir": place, "value": info["last"][METRIC]})
    rows = [
        {
            **common,
            "control": "",
            "without": "",
            "run_dirs": term[0],
            "over_baseline": compare(term[1], baseline),
            "settings": settings,
        },
        {
            **common,
            "control": "neighbor_mass=0",
            "without": "pseudo-attributes",
            "run_dirs": control[0],
            "over_baseline": compare(control[1], baseline),
            "term_over_control": compare(term[1], control[1]),
        },
    ]
    balanced = {"runs": runs, "comparison": compare(alt["winner"][1], alt["baseline"][1])}
    return {"balanced": encode(balanced), "ablation": encode(rows)}


def make_sweep(
    folder: Path, *, num_trials: int = 8, seeds: int = 3, gain: float = 0.06, ablation: bool = False
) -> dict[str, Any]:
    """A finished sweep: every third trial stopped early, the last one failed. Returns sweep.json's content."""
    trials = []
    for number in range(num_trials):
        name, params = f"t{number:02d}", params_of(number)
        stopped, failed = number % 3 == 1, number == num_trials - 1 and num_trials > 2
        epochs = 0 if failed else 5 + number if stopped else EPOCHS
        status = "failed" if failed else "stopped" if stopped else "finished"
        quality = 0.62 + 0.2 * keyed(number, "quality")
        info = write_run(
            folder / "trials" / name, kind="trial", quality=quality, epochs=epochs, status=status, params=params
        )
        trials.append(
            {
                "id": name,
                "run_dir": f"trials/{name}",
                "status": status,
                "reason": "NumericError: train/loss is nan at step 12: <lower> the rate" if failed else info["reason"],
                "params": params,
                "epochs_done": epochs,
                "best": info["best"].get(METRIC),
                "last": info["last"].get(METRIC),
            }
        )
    write_run(folder / "trials" / "baseline", kind="baseline", quality=0.7)
    finished = [t for t in trials if t["status"] == "finished"]
    winner = max(finished, key=lambda t: (t["last"], t["id"]))
    retrain, tests = [], {"winner": {}, "baseline": {}}
    for seed in range(1, seeds + 1):
        for role in tests:
            where = f"retrain/{role}-seed{seed}"
            quality = 0.72 + 0.02 * keyed("seed", seed) + (gain if role == "winner" else 0)
            params = winner["params"] if role == "winner" else None
            info = write_run(folder / where, kind="retrain", quality=quality, seed=seed, params=params, tested=True)
            tests[role][seed] = info["test"]
            retrain.append({"role": role, "seed": seed, "run_dir": where})
    sweep = {
        **begun(num_trials),
        "finished_at": "2026-01-02T03:07:45+00:00",
        "status": "finished",
        "trials": trials,
        "winner": winner["id"],
        "baseline": "baseline",
        "retrain": retrain,
        "comparison": encode(compare(tests["winner"], tests["baseline"])),
        "stages": {"data": 4.0, "warm-up": 6.5, "search": 88.2, "retrain": 41.0, "retrain on Ray Train": 38.9},
        "node_hours": {"head": 0.061, "gpu": 0.25},
    }
    if ablation:
        sweep |= _ablation(folder, seeds, tests["baseline"])
    write_json(folder / "sweep.json", sweep)
    return sweep
