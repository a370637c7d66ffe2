"""Records as runs and sweeps write them, with plain values where a test does not care."""

from __future__ import annotations

import datetime
from typing import Any

from ltcore.config.records import RunRecord, SweepRecord, TrialRecord
from ltcore.config.trained_with import Hardware, TrainedData

BEGAN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
ENDED = datetime.datetime(2026, 1, 2, 3, 7, 45, tzinfo=datetime.UTC)
HARDWARE = Hardware(cpu="A CPU @ 2 GHz", cpus=2, gpus=(), memory_bytes=8 * 2**30, host="box")
DATA = TrainedData(
    name="tiny",
    hash="5eed" * 16,
    uri="/shards/tiny",
    num_train=46,
    classes=("ant", "bee"),
    shot_groups=("many", "few"),
    class_counts=(40, 6),
    image_size=16,
    loader="cache",
    loader_reason="fits",
)


def run_record(**fields: Any) -> RunRecord:
    """A run that goes on, or one that is finished where ``status`` says so."""
    ended = {"finished_at": ENDED, "seconds": 8.0} if fields.get("status") == "finished" else {}
    common: dict[str, Any] = {
        "id": "demo-00000",
        "name": "trial-00000",
        "kind": "trial",
        "group": "demo",
        "seed": 0,
        "config": {},
        "epochs_planned": 16,
        "last": {},
        "best": {},
        "data": DATA,
        "hardware": HARDWARE,
        "precision": "fp32",
        "threads": 1,
        "world": 1,
        "device": "cpu",
        "engine": "trial",
        "pid": 7,
        "versions": {"python": "3.11.7"},
        "started_at": BEGAN,
        "wandb_id": "demo-00000-abc",
    }
    return RunRecord(**{**common, **ended, **fields})


def trial_record(name: str = "00000", **fields: Any) -> TrialRecord:
    """A finished trial."""
    common: dict[str, Any] = {
        "id": name,
        "run_dir": f"trials/{name}",
        "status": "finished",
        "reason": "",
        "params": {},
        "epochs_done": 2,
        "best": None,
        "last": None,
    }
    return TrialRecord(**{**common, **fields})


def sweep_record(**fields: Any) -> SweepRecord:
    """A sweep that goes on, or one that is finished where ``status`` says so."""
    ended = {"finished_at": ENDED, "trials": ()} if fields.get("status") == "finished" else {}
    common: dict[str, Any] = {
        "name": "demo",
        "recipe": "digits_glt_demo",
        "space": {},
        "search": "random",
        "metric": "val/top1",
        "num_trials": 8,
        "sizes": (8,),
        "config_hash": "0123456789abcdef",
        "identity": {},
        "data_hash": "5eed" * 16,
        "epochs": 16,
        "engine": "trial",
        "hardware": HARDWARE,
        "created_at": BEGAN,
        "stages": {},
        "stages_before": {},
        "node_hours": {},
        "forked": {},
    }
    return SweepRecord(**{**common, **ended, **fields})
