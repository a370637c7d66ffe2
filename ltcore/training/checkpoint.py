"""Checkpoints: versioned directories that are complete or absent.

    checkpoints/last-00001200/   model.pt  state.pt  meta.json      resume here
    checkpoints/best-00000900/   model.pt  meta.json                predict from here

``model.pt`` holds inference weights alone; what only training needs (optimizer, memories, key encoder) is in ``state.pt``.
A checkpoint is written beside its final place, synced and renamed, so a reader never sees half of one; older ones go only
after the new one is in place. Everything is read with ``weights_only=True``, and only where its bytes are those written.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ltcore.config.keys import FREE_TO_CHANGE, OPTIONS, effective
from ltcore.data.config import MAX_CANVAS
from ltcore.data.manifest import Manifest
from ltcore.data.storage import join
from ltcore.errors import CheckpointError, NumericError
from ltcore.shots import SHOT_GROUPS

SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on a local disk."""

    path: Path
    meta: dict[str, Any]
    """schema, step, epoch, config (flat), classes, shot_groups, mean, std, canvas, metrics, data_hash; and class_prior, but
    for stage 2."""

    def place(self, uri: str, root: Path) -> str:
        """Where the checkpoint lies, if ``root`` holds what was fetched of ``uri``."""
        inner = self.path.relative_to(root).as_posix()
        return uri if inner == "." else join(uri, inner)

    def model_state(self) -> dict[str, torch.Tensor]:
        """Weights and buffers of the network, on the CPU. CheckpointError where they are damaged or not finite."""
        weights = _read_tensors(self.path / "model.pt")
        for name, value in weights.items():
            if not bool(torch.isfinite(value).all()):
                raise CheckpointError(
                    f"{self.path}/model.pt holds weights that are not finite ({name}). Use another checkpoint."
                )
        return weights

    def train_state(self) -> dict[str, Any]:
        """What ``training.state.load_state`` takes. CheckpointError where it is damaged, or not part of this checkpoint."""
        return _read_tensors(self.path / "state.pt")


def save(
    folder: Path, tag: str, *, step: int, model: dict[str, Any], state: dict[str, Any] | None, meta: dict[str, Any]
) -> Path:
    """Writes ``folder/<tag>-<step>`` atomically, then removes older checkpoints of the same tag. Call on rank 0 alone.

    CheckpointError where it cannot be written, NumericError where the weights are not finite; what is there stays then.
    """
    final = folder / f"{tag}-{step:08d}"
    aside = folder / f".{final.name}.{os.getpid()}"
    _check_finite(folder, step, model)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write_tensors(aside / "model.pt", model)
        if state is not None:
            _write_tensors(aside / "state.pt", state)
        (aside / "meta.json").write_text(json.dumps({"schema": SCHEMA, "step": step, **meta}, indent=1))
        for file in aside.iterdir():
            _sync(file)
        if final.exists():  # the same step again, after a resume; moved away in one piece, and removed below
            final.rename(folder / f".{final.name}.old.{os.getpid()}")
        aside.rename(final)
    except (OSError, RuntimeError) as error:  # torch's writer ends with a RuntimeError on top of the disk's error
        shutil.rmtree(aside, ignore_errors=True)
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        raise CheckpointError(
            f"Checkpoint {final} could not be written: {reason}. Free space, correct the permissions, or choose another "
            "--storage; the last complete checkpoint is untouched and the same command continues from it."
        ) from error
    _sync(folder)
    for old in folder.glob(f"{tag}-*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    for stale in folder.glob(".*"):
        shutil.rmtree(stale, ignore_errors=True)
    return final


def description(config: dict[str, Any], manifest: Manifest, *, epoch: int, metrics: dict[str, Any]) -> dict[str, Any]:
    """What stands in ``meta.json`` beside schema and step: the flat configuration, and what prediction needs of the data."""
    return {
        "epoch": epoch,
        "config": config,
        "classes": list(manifest.classes),
        "shot_groups": list(manifest.shot_groups),
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "canvas": config.get("data.canvas") or manifest.canvas,
        "data_hash": manifest.hash,
        "metrics": metrics,
    }


def _check_finite(folder: Path, step: int, model: dict[str, Any]) -> None:
    """The loss of a step is that of the weights before it: it says nothing about those that the step leaves behind."""
    for name, value in model.items():
        if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
            good = find(folder)
            where = f"the last good checkpoint is {good.path}" if good else "there is no checkpoint yet"
            raise NumericError(
                f"Step {step} left weights that are not finite ({name}), so no checkpoint is written; {where}. Lower "
                "train.optim.lr, set train.optim.clip_norm, or train.precision=fp32."
            )


def _write_tensors(file: Path, value: dict[str, Any]) -> None:
    with file.open("wb") as stream:  # of a path, torch's writer would hide why it failed
        torch.save(value, stream)


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
    """The checkpoint at ``path``: its directory, or a run directory (then its best, else its last one).

    CheckpointError where there is none, or where its record is damaged or of another version.
    """
    if not (path / "meta.json").exists():
        inner = find(path / "checkpoints", "best") or find(path / "checkpoints", "last")
        if inner is None:
            raise CheckpointError(
                f"{path} is no checkpoint: expected meta.json in it, or checkpoints/ of a run directory."
            )
        return inner
    try:
        meta = json.loads((path / "meta.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}/meta.json cannot be read as JSON ({error}). Delete this checkpoint and run again."
        ) from None
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}/meta.json holds no JSON object. Delete this checkpoint and run again.")
    if meta.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has checkpoint version {meta.get('schema')!r}; this ltcore reads version {SCHEMA}. "
            "Use the ltcore version that wrote it, or start again with --fresh."
        )
    for name, (good, expected) in _META.items():
        if name in meta and not good(meta[name]):
            raise CheckpointError(
                f"{path}/meta.json: {name} is {_shown(meta[name])}, expected {expected}. Delete this checkpoint and run again."
            )
    if {"classes", "shot_groups"} <= meta.keys() and len(meta["classes"]) != len(meta["shot_groups"]):
        raise CheckpointError(
            f"{path}/meta.json has {len(meta['classes'])} classes and {len(meta['shot_groups'])} shot_groups, expected as many. "
            "Delete this checkpoint and run again."
        )
    return Checkpoint(path, meta)


def _words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


def _numbers(value: Any, *, above: float) -> bool:
    fits = isinstance(value, list) and len(value) == 3 and all(type(x) in (int, float) for x in value)
    return fits and all(above < x < math.inf for x in value)


def _whole(value: Any, *, most: float = math.inf, least: int = 0) -> bool:
    return type(value) is int and least <= value <= most


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_META: dict[str, tuple[Callable[[Any], bool], str]] = {
    "classes": (_words, "names"),
    "shot_groups": (
        lambda value: _words(value) and set(value) <= set(SHOT_GROUPS),
        f"words out of {', '.join(SHOT_GROUPS)}",
    ),
    "mean": (partial(_numbers, above=-math.inf), "three finite numbers"),
    "std": (partial(_numbers, above=0), "three finite numbers > 0"),
    "canvas": (partial(_whole, least=1, most=MAX_CANVAS), f"a whole number of pixels from 1 to {MAX_CANVAS}"),
    "step": (_whole, "a whole number >= 0"),
    "epoch": (_whole, "a whole number >= 0"),
    "config": (lambda value: isinstance(value, dict), "dotted keys with values"),
    "data_hash": (lambda value: isinstance(value, str), "a hash"),
}
"""What other code relies on: field -> whether a value will do, and what would."""


def _read_tensors(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise CheckpointError(
            f"{file} is missing: this checkpoint holds inference weights alone and cannot be resumed from."
        )
    try:
        with zipfile.ZipFile(file) as parts:  # torch itself compares no checksum and would load changed weights
            # torch stores without compression: what would unpack to more than the file has is none of its files
            packed = next(
                (part.filename for part in parts.infolist() if part.compress_type != zipfile.ZIP_STORED), None
            )
            damaged = packed or parts.testzip()
        if damaged is None:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise anything on foreign bytes
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(f"{file} cannot be read ({problem}). Delete its directory and run again.") from error
    raise CheckpointError(f"{file} cannot be read ({damaged} in it is damaged). Delete its directory and run again.")


def check_same_run(checkpoint: Checkpoint, config: dict[str, Any], data_hash: str, hot: tuple[str, ...] = ()) -> None:
    """Refuses to continue a run with another configuration or on other data; names the first differences.

    ``hot`` keys may differ, and what does not change the training (FREE_TO_CHANGE). Raises CheckpointError.
    """
    if not {"config", "data_hash"} <= checkpoint.meta.keys():
        raise CheckpointError(
            f"{checkpoint.path}/meta.json does not say which configuration and data it belongs to. Delete this checkpoint "
            "and run again, or use --fresh."
        )
    refuse_other_data(checkpoint.path, checkpoint.meta["data_hash"], data_hash)
    refuse_differences(checkpoint.path, checkpoint.meta["config"], config, hot)


def refuse_other_data(where: Path | str, old_hash: str, new_hash: str) -> None:
    """CheckpointError where the data are not those of the run at ``where``."""
    if old_hash != new_hash:
        raise CheckpointError(
            f"{where} was trained on data {old_hash[:12]}, now data.uri leads to {new_hash[:12]}. Give the same data, another "
            "--name, or --fresh."
        )


def refuse_differences(where: Path | str, old: dict[str, Any], new: dict[str, Any], hot: tuple[str, ...] = ()) -> None:
    """CheckpointError that names the first keys in which two flat configurations differ, if any matter."""
    old, new = effective(old), effective(new)
    differences = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(
            set(new) | set(old), key=lambda key: (key.startswith(OPTIONS), key)
        )  # the choice, then its options
        if not key.startswith((*FREE_TO_CHANGE, *hot)) and old.get(key) != new.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"{where} belongs to another configuration ({'; '.join(differences[:5])}"
            f"{'; ...' if len(differences) > 5 else ''}). Use another --name, the old values, or --fresh."
        )
