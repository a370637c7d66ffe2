"""Checkpoints: versioned directories that are complete or absent.

    checkpoints/last-00001200/   model.pt  state.pt  meta.json      resume here
    checkpoints/best-00000900/   model.pt  meta.json                predict from here

``model.pt`` holds inference weights alone; what only training needs (optimizer, memories, key encoder) is in ``state.pt``.
A checkpoint is written beside its final place, synced and renamed, so a reader never sees half of one; older ones go only
after the new one is in place. Everything is read with ``weights_only=True``.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltcore.errors import CheckpointError

SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on a local disk."""

    path: Path
    meta: dict[str, Any]
    """schema, step, epoch, config (tree), classes, mean, std, canvas, metrics, data_hash."""

    def model_state(self) -> dict[str, torch.Tensor]:
        return _read_tensors(self.path / "model.pt")

    def train_state(self) -> dict[str, Any]:
        return _read_tensors(self.path / "state.pt")


def save(
    folder: Path, tag: str, *, step: int, model: dict[str, Any], state: dict[str, Any] | None, meta: dict[str, Any]
) -> Path:
    """Writes ``folder/<tag>-<step>`` atomically, then removes older checkpoints of the same tag. Call on rank 0 alone."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{tag}-{step:08d}"
    aside = folder / f".{final.name}.{os.getpid()}"
    try:
        aside.mkdir(parents=True)
        torch.save(model, aside / "model.pt")
        if state is not None:
            torch.save(state, aside / "state.pt")
        (aside / "meta.json").write_text(json.dumps({"schema": SCHEMA, "step": step, **meta}, indent=1))
        for file in aside.iterdir():
            _sync(file)
        if final.exists():  # the same step again, after a resume; moved away in one piece, and removed below
            final.rename(folder / f".{final.name}.old.{os.getpid()}")
        aside.rename(final)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"Checkpoint {final} could not be written: {error.strerror or error}. Free space or choose another --storage; "
            "the last complete checkpoint is untouched and the same command continues from it."
        ) from error
    _sync(folder)
    for old in folder.glob(f"{tag}-*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    for stale in folder.glob(".*"):
        shutil.rmtree(stale, ignore_errors=True)
    return final


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def find(folder: Path, tag: str = "last") -> Checkpoint | None:
    """The newest complete checkpoint with this tag under ``folder``, or None."""
    complete = [p for p in folder.glob(f"{tag}-*") if (p / "meta.json").exists()]
    return read(max(complete, key=lambda p: p.name)) if complete else None


def read(path: Path) -> Checkpoint:
    """The checkpoint at ``path``: its directory, or a run directory (then its best, else its last one)."""
    if not (path / "meta.json").exists():
        inner = find(path / "checkpoints", "best") or find(path / "checkpoints", "last")
        if inner is None:
            raise CheckpointError(
                f"{path} is no checkpoint: expected meta.json in it, or checkpoints/ of a run directory."
            )
        return inner
    try:
        meta = json.loads((path / "meta.json").read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}/meta.json is not JSON ({error}). Delete this checkpoint; an older one is used."
        ) from None
    if meta.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has checkpoint version {meta.get('schema')!r}; this ltcore reads version {SCHEMA}. "
            "Use the ltcore version that wrote it, or start again with --fresh."
        )
    return Checkpoint(path, meta)


def _read_tensors(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise CheckpointError(
            f"{file} is missing: this checkpoint holds inference weights alone and cannot be resumed from."
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{file} cannot be read ({type(error).__name__}: {error}). Delete its directory and run again."
        ) from error


def check_same_run(checkpoint: Checkpoint, config: dict[str, Any], data_hash: str, hot: tuple[str, ...] = ()) -> None:
    """Refuses to continue a run with another configuration or on other data; names the first differences.

    ``hot`` keys may differ, and what does not change the training (FREE_TO_CHANGE).
    """
    if checkpoint.meta["data_hash"] != data_hash:
        raise CheckpointError(
            f"{checkpoint.path} was trained on data {checkpoint.meta['data_hash'][:12]}, now data.uri leads to {data_hash[:12]}. "
            "Give the same data, another --name, or --fresh."
        )
    differences = [
        f"{key}: {checkpoint.meta['config'].get(key)!r} there, {config.get(key)!r} now"
        for key in sorted(set(config) | set(checkpoint.meta["config"]))
        if not key.startswith((*FREE_TO_CHANGE, *hot)) and checkpoint.meta["config"].get(key) != config.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"{checkpoint.path} belongs to another configuration ({'; '.join(differences[:5])}"
            f"{'; ...' if len(differences) > 5 else ''}). Use another --name, the old values, or --fresh."
        )


FREE_TO_CHANGE = (
    "tracking.",
    "name",
    "data.tier",
    "data.uri",
    "data.cache_bytes",
    "data.stream_window_steps",
    "train.checkpoint_every_s",
    "train.threads",
)
"""Keys that do not change what is trained, so a run may be continued with other values of them."""
