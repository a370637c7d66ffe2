"""Where a run's numbers go: always ``metrics.jsonl``; TensorBoard files and a W&B run beside it where asked for.

Only rank 0 opens anything. The JSON lines are the record that resuming and reporting read; the other sinks are views of
it, so a run without network or account loses nothing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ltcore.errors import NumericError

Scalars = Mapping[str, float | int | None]
MODES = ("auto", "online", "offline", "disabled")


@dataclass(frozen=True, kw_only=True)
class TrackerOptions:
    """Which sinks a run has besides ``metrics.jsonl``."""

    project: str = "ltcore"
    """W&B project. No effect without W&B."""
    mode: str = "auto"
    """W&B mode: 'auto' follows WANDB_DISABLED and WANDB_MODE, else is online where a key is found, and goes offline where
    W&B does not answer or does not take it; 'online' insists on W&B when a run starts; 'offline'; 'disabled' opens no W&B
    run."""
    tensorboard: bool = True
    """Write TensorBoard files under ``<run_dir>/tensorboard``."""
    wandb: bool = True
    """Open a W&B run, kept under ``<run_dir>/wandb``."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")


class Tracker(Protocol):
    """One sink, or several behind one face."""

    def log(self, metrics: Scalars, step: int) -> None:
        """Scalars of one moment; ``step`` counts optimizer steps and never goes back. None means 'not defined'."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A small table (per-class accuracy, a ranking); a later one of the same name replaces it."""

    def html(self, name: str, path: Path) -> None:
        """A finished HTML page that lies at ``path``."""

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        """Close. ``summary``: flat final values (best and last); ``status``: finished, stopped or failed."""


class NullTracker:
    """The tracker of every rank but 0."""

    def log(self, metrics: Scalars, step: int) -> None:
        del metrics, step

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        del name, columns, rows

    def html(self, name: str, path: Path) -> None:
        del name, path

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        del summary, status


class FanOut:
    """Passes every call to each sink in turn."""

    def __init__(self, sinks: Sequence[Tracker]) -> None:
        self.sinks = tuple(sinks)

    def log(self, metrics: Scalars, step: int) -> None:
        for sink in self.sinks:
            sink.log(metrics, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        for sink in self.sinks:
            sink.table(name, columns, rows)

    def html(self, name: str, path: Path) -> None:
        for sink in self.sinks:
            sink.html(name, path)

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        for sink in self.sinks:
            sink.finish(summary, status)


class JsonlTracker:
    """``metrics.jsonl``: one JSON object per ``log`` call; ``tables/<name>.json``: one file per table.

    A resumed run first drops what was logged after ``resume_step``, so no epoch stands there twice; with 0 it starts over.
    """

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        self.run_dir = run_dir
        path = run_dir / "metrics.jsonl"
        kept = [row for row in read_jsonl(path) if 0 < row["step"] <= resume_step]
        write_text_atomic(path, "".join(_line(row) for row in kept))
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def log(self, metrics: Scalars, step: int) -> None:
        for key, value in metrics.items():
            if value is not None and not math.isfinite(value):
                raise NumericError(f"{key} is {value} at step {step}: only finite numbers are logged.")
        self._file.write(_line({**metrics, "step": step}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        path = self.run_dir / "tables" / f"{name.replace('/', '.')}.json"
        write_text_atomic(path, json.dumps({"columns": list(columns), "rows": [list(row) for row in rows]}))

    def html(self, name: str, path: Path) -> None:
        del name, path  # the page already lies where it belongs

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        del summary, status  # run.json, written by the loop, has both
        self._file.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; [] where there is none. A last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]  # what follows the last newline is torn or empty


def write_text_atomic(path: Path, text: str) -> None:
    """Replace a local file in one step, so that a reader sees the old or the new text and never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def open_tracker(
    *,
    run_dir: Path,
    run_id: str,
    group: str,
    name: str,
    config_flat: Mapping[str, Any],
    options: TrackerOptions,
    rank: int = 0,
    resume_step: int = 0,
    job_type: str = "run",
) -> Tracker:
    """The tracker of one run.

    ``run_id`` names the run for good: a resumed run passes the same one and continues the same W&B run, so it must be
    unique in the W&B project. ``group`` is the sweep, ``job_type`` the kind of run (run, trial, baseline, retrain,
    sweep), ``config_flat`` the configuration by dotted key, ``resume_step`` the step of the last row that stays.
    """
    if rank != 0:
        return NullTracker()
    sinks: list[Tracker] = [JsonlTracker(run_dir, resume_step)]
    if options.tensorboard:
        from ltcore.tracking.tensorboard_sink import TensorBoardSink

        sinks.append(TensorBoardSink(run_dir / "tensorboard", resume_step))
    if options.wandb and options.mode != "disabled":
        from ltcore.tracking.wandb_sink import open_wandb

        sinks += open_wandb(
            run_dir=run_dir,
            run_id=run_id,
            group=group,
            name=name,
            job_type=job_type,
            config_flat=config_flat,
            options=options,
        )
    return FanOut(sinks)


def scalars_of(metrics: Scalars) -> Iterable[tuple[str, float | int]]:
    """The metrics that have a value: neither W&B nor TensorBoard knows 'not defined'."""
    return ((key, value) for key, value in metrics.items() if value is not None)
