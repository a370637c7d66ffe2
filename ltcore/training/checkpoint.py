"""Checkpoints: versioned directories that are complete or absent.

    checkpoints/last-00001200/   model.pt  state.pt  meta.json      resume here
    checkpoints/best-00000900/   model.pt  meta.json                predict from here

``model.pt`` contains inference weights only, without those that ``model.tune`` leaves alone (see ``base``); what only
training needs (optimizer, memories, key encoder) is in ``state.pt``. A checkpoint is written beside its final place, synced
and renamed, so a reader never sees half of one; older ones are removed only after the new one is in place. Everything is read
with ``weights_only=True``, after a check that its bytes are undamaged.
"""

from __future__ import annotations

import errno
import fnmatch
import io
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ltcore.config.schema import RunConfig
from ltcore.data.config import MAX_IMAGE_SIZE
from ltcore.data.prep import Prep
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import CheckpointError, ConfigError, NumericError, StorageError
from ltcore.evaluation.pairs import AttributeCounts
from ltcore.limits import MAX_MANIFEST_BYTES, MAX_TENSOR_NAMES_BYTES, load_json
from ltcore.retry import retrying
from ltcore.shots import SHOT_GROUPS
from ltcore.storage import entries, exists, is_local, is_plain, join, read_bytes, sync_to_disk
from ltcore.stores import ACCESS, place_of

SCHEMA = 1
_OLD = ".old."
"""In the name of a complete checkpoint that one of the same step is about to replace."""


class Meta(dict[str, Any]):
    """The record of a checkpoint at ``place``; a field that it lacks is an error that says so."""

    def __init__(self, place: str, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self._place = place

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(f"{self._place}/meta.json has no {name!r}. It is damaged: use another checkpoint.")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on a local disk."""

    path: Path
    meta: Meta
    """schema, step, epoch, config (flat), classes, shot_groups, attributes, attribute_counts (of training images, as
    ``AttributeCounts.to_rows``), mean, std, image_size, metrics, data_hash; class_prior, except for stage 2; and base, where
    weights leave it out (``base``).
    """
    place: str
    """Location shown to users: its path, or the URI from which it was fetched temporarily."""

    def require(self, *names: str) -> None:
        """Raises CheckpointError where the record lacks one of these fields."""
        for name in sorted(names):
            self.meta[name]

    def config(self) -> RunConfig:
        """Returns the configuration of its run. Raises CheckpointError where it is missing or invalid for this ltcore."""
        self.require("config")
        try:
            return RunConfig.from_flat(self.meta["config"])
        except ConfigError as error:
            raise CheckpointError(f"{self.place}/meta.json: {error} Use another checkpoint.") from error

    def model_state(self) -> dict[str, torch.Tensor]:
        """Returns weights and buffers of the network, on the CPU; of a tuned one, those that were trained.

        Raises CheckpointError where they are damaged or not finite.
        """
        weights = self._tensors("model.pt", "Use another checkpoint")
        refuse_bad_weights(f"{self.place}/model.pt", weights)
        return weights

    def train_state(self) -> dict[str, Any]:
        """Returns the input of ``training.state.load_state``.

        Raises CheckpointError where it is damaged or not part of this checkpoint.
        """
        state = self._tensors("state.pt", "This checkpoint has only inference weights and cannot be resumed from")
        for part in ("step", "key", "average"):
            refuse_bad_weights(f"{self.place}/state.pt", state.get(part) or {})
        return state

    def _tensors(self, name: str, if_missing: str) -> dict[str, Any]:
        file, place = self.path / name, f"{self.place}/{name}"

        def load() -> dict[str, Any]:
            if not is_plain(file.stat()):
                raise CheckpointError(f"{place} is no plain file. Delete its directory and run again.")
            with file.open("rb") as stream:
                return read_tensors(stream)

        try:
            return retrying(place_of(str(file)), load)
        except FileNotFoundError:
            raise CheckpointError(f"{place} is missing. {if_missing}.") from None
        except CheckpointError:
            raise
        except Exception as error:  # our own errors, and torch raises any type on foreign bytes
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # which a wrong offset gives
                raise StorageError(f"{place} cannot be read: {error}. {ACCESS}.") from error
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise CheckpointError(f"{place} cannot be read ({problem}). Delete its directory and run again.") from error


def save(
    folder: Path, tag: str, *, step: int, model: dict[str, Any], state: dict[str, Any] | None, meta: dict[str, Any]
) -> Path:
    """Writes ``folder/<tag>-<step>`` atomically, then removes older checkpoints of the same tag. Call on rank 0 only.

    Raises CheckpointError where it cannot be written and NumericError where the weights are not finite; existing
    checkpoints are then kept.
    """
    final = folder / f"{tag}-{step:08d}"
    aside = folder / f".{final.name}.{os.getpid()}"
    _check_finite(folder, step, model)
    for torn in folder.glob(f".{tag}-*"):  # of a process that was killed; it may fill the disk
        if _OLD not in torn.name:
            shutil.rmtree(torn, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        _write_tensors(aside / "model.pt", model)
        if state is not None:
            _write_tensors(aside / "state.pt", state)
        (aside / "meta.json").write_text(json.dumps({"schema": SCHEMA, "step": step, **meta}, indent=1))
        _sync_whole(aside)
        if final.exists():  # the same step again, after a resume; found under its new name until the other is there
            final.rename(folder / f".{final.name}{_OLD}{uuid.uuid4().hex}")
        aside.rename(final)
    except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError on top of the disk's error
        shutil.rmtree(aside, ignore_errors=True)
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        raise CheckpointError(
            f"Checkpoint {final} could not be written: {reason}. Free space, correct the permissions, or choose another "
            "--storage; the last complete checkpoint is untouched and the same command continues from it."
        ) from error
    sync_to_disk(folder)
    for old in folder.glob(f"{tag}-*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    for stale in folder.glob(f".{tag}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    return final


def description(
    config: dict[str, Any],
    manifest: Manifest,
    prep: Prep,
    attribute_counts: AttributeCounts,
    *,
    epoch: int,
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """Returns the content of ``meta.json`` besides schema and step.

    It is the flat configuration and what prediction and evaluation need to know of the data.
    """
    return {
        "epoch": epoch,
        "config": config,
        "classes": list(manifest.classes),
        "shot_groups": list(manifest.shot_groups),
        "attributes": list(manifest.attributes),
        "attribute_counts": attribute_counts.to_rows(),
        "mean": list(prep.mean),
        "std": list(prep.std),
        "image_size": prep.image_size,
        "data_hash": manifest.hash,
        "metrics": metrics,
    }


def _check_finite(folder: Path, step: int, model: dict[str, Any]) -> None:
    """Raises NumericError for weights that are not finite.

    The loss of a step belongs to the weights before it, so it does not show whether the step left finite weights.
    """
    for name, value in model.items():
        if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
            good = find(folder)
            where = f"the last good checkpoint is {good.path}" if good else "there is no checkpoint yet"
            raise NumericError(
                f"Step {step} left weights that are not finite ({name}), so no checkpoint is written; {where}. Lower "
                "train.optim.lr, set train.optim.clip_norm, or train.precision=fp32."
            )


def _write_tensors(file: Path, value: dict[str, Any]) -> None:
    with file.open("wb") as stream:  # given a path, torch's writer would hide the reason of a failure
        torch.save(value, stream)


def adopt(folder: Path, source: Path) -> None:
    """Replaces all checkpoints of a run by a copy of that in ``source``; at no moment there is none."""
    found = read(source)
    found.require("step")
    final = folder / f"last-{found.meta['step']:08d}"
    torn, aside = folder / f".{final.name}.{os.getpid()}", folder / f".{final.name}{_OLD}{uuid.uuid4().hex}"
    shutil.rmtree(torn, ignore_errors=True)
    shutil.copytree(source, torn)
    _sync_whole(torn)
    torn.rename(aside)  # where it counts as soon as nothing else does
    sync_to_disk(folder)
    for other in [path for path in folder.iterdir() if path != aside]:
        torn = folder / f".{other.name.lstrip('.').replace(_OLD, '.')}.{uuid.uuid4().hex}"
        other.rename(torn)  # where it does not count while it goes
        shutil.rmtree(torn)
    aside.rename(final)
    sync_to_disk(folder)


def _sync_whole(folder: Path) -> None:
    """Brings a folder with its files to the disk, before a name counts that a loss of power must not leave without them."""
    for file in folder.iterdir():
        sync_to_disk(file)
    sync_to_disk(folder)


def find(folder: Path, tag: str = "last") -> Checkpoint | None:
    """Returns the newest complete checkpoint with this tag under ``folder``, or None."""
    newest = _newest(folder, tag)
    return None if newest is None else read(newest)


def _newest(folder: Path, tag: str) -> Path | None:
    names = sorted((name for name, is_file in entries(str(folder)).items() if not is_file), reverse=True)
    for pattern in (f"{tag}-*", f".{tag}-*{_OLD}*"):
        complete = (name for name in fnmatch.filter(names, pattern) if exists(str(folder / name / "meta.json")))
        if newest := next(complete, None):
            return folder / newest
    return None


def read(path: Path, uri: str = "") -> Checkpoint:
    """Reads the checkpoint at ``path``: its directory, or a run directory (then its best, else its last one).

    ``uri`` is where ``path`` was fetched from, if it was. Raises CheckpointError where there is none, or where its
    record is damaged or of another version.
    """
    place = str(path) if is_local(uri) else uri.rstrip("/")
    if not exists(str(path / "meta.json")):
        inner = _newest(path / "checkpoints", "best") or _newest(path / "checkpoints", "last")
        if inner is None:
            raise CheckpointError(
                f"{place} is not a checkpoint: expected meta.json in it, or checkpoints/ of a run directory."
            )
        path, place = inner, join(place, "checkpoints", inner.name)
    try:
        meta = load_json(read_bytes(str(path / "meta.json"), MAX_MANIFEST_BYTES))
    except ValueError as error:
        raise CheckpointError(
            f"{place}/meta.json cannot be read as JSON ({error}). Delete this checkpoint and run again."
        ) from None
    if not isinstance(meta, dict):
        raise CheckpointError(f"{place}/meta.json is not a JSON object. Delete this checkpoint and run again.")
    if meta.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{place} has checkpoint version {meta.get('schema')!r}; this ltcore reads version {SCHEMA}. "
            "Use the ltcore version that wrote it, or start again with --fresh."
        )
    for name, (good, expected) in _META.items():
        if name in meta and not good(meta[name]):
            raise CheckpointError(
                f"{place}/meta.json: {name} is {_shown(meta[name])}, expected {expected}. Delete this checkpoint and run again."
            )
    for name in ("shot_groups", "class_prior", "attribute_counts"):
        if {"classes", name} <= meta.keys() and len(meta["classes"]) != len(meta[name]):
            raise CheckpointError(
                f"{place}/meta.json has {len(meta['classes'])} classes and {len(meta[name])} {name}, expected one per class. "
                "Delete this checkpoint and run again."
            )
    num_attributes, rows = len(meta.get("attributes", ())), meta.get("attribute_counts", ())
    if any(len(row) != num_attributes for row in rows if isinstance(row, list)):
        raise CheckpointError(
            f"{place}/meta.json: attribute_counts has rows of other lengths than the {num_attributes} attributes. Delete this "
            "checkpoint and run again."
        )
    ids = set(map(str, range(num_attributes)))
    if other := next((name for row in rows if isinstance(row, dict) for name in row if name not in ids), None):
        raise CheckpointError(
            f"{place}/meta.json: attribute_counts has the attribute {_shown(other)}, expected numbers below {num_attributes}. "
            "Delete this checkpoint and run again."
        )
    return Checkpoint(path, Meta(place, meta), place)


def _words(value: Any, *, least: int = 1) -> bool:
    return isinstance(value, list) and len(value) >= least and all(isinstance(word, str) for word in value)


def _numbers(value: Any, *, least: float, most: float, count: int = 0) -> bool:
    """Tells whether it is a list of ``count`` numbers in this range; 0 means any length."""
    fits = isinstance(value, list) and all(type(x) in (int, float) and least <= x <= most for x in value)
    return fits and len(value) == (count or len(value))


def _whole(value: Any, *, least: int = 0, most: int = 2**53) -> bool:
    return type(value) is int and least <= value <= most


def _counts_of_class(row: Any) -> bool:
    """Tells whether it is a row of ``AttributeCounts.to_rows``, of any attributes."""
    counts = row.values() if isinstance(row, dict) else row
    return isinstance(row, dict | list) and all(map(_whole, counts))


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_LARGE = 1e6
"""Statistics of pixels in [0, 1] are far smaller; larger ones would give pixels beyond the range of float32."""
_SMALLEST = 1e-30
"""Lower limit of a class share, below one sample among all that can exist; its logarithm is finite in float32."""
_META: dict[str, tuple[Callable[[Any], bool], str]] = {
    "classes": (lambda value: _words(value) and len(set(value)) == len(value), "names that differ"),
    "shot_groups": (
        lambda value: _words(value) and set(value) <= set(SHOT_GROUPS),
        f"words out of {', '.join(SHOT_GROUPS)}",
    ),
    "attributes": (partial(_words, least=0), "names"),
    "attribute_counts": (
        lambda value: isinstance(value, list) and all(map(_counts_of_class, value)),
        "for each class a whole number for each attribute, or for those of which it has images",
    ),
    "mean": (partial(_numbers, least=-_LARGE, most=_LARGE, count=3), f"three numbers from -{_LARGE:g} to {_LARGE:g}"),
    "std": (
        partial(_numbers, least=1 / _LARGE, most=_LARGE, count=3),
        f"three numbers from {1 / _LARGE:g} to {_LARGE:g}",
    ),
    "class_prior": (partial(_numbers, least=_SMALLEST, most=1 + 1e-6), "a share above 0 for each class"),
    "image_size": (
        partial(_whole, least=1, most=MAX_IMAGE_SIZE),
        f"a whole number of pixels from 1 to {MAX_IMAGE_SIZE}",
    ),
    "step": (_whole, "a whole number from 0 to 2^53"),
    "epoch": (_whole, "a whole number from 0 to 2^53"),
    "config": (lambda value: isinstance(value, dict), "dotted keys with values"),
    "metrics": (lambda value: isinstance(value, dict), "names with values"),
    "data_hash": (lambda value: isinstance(value, str), "a hash"),
    "base": (lambda value: isinstance(value, str), "a hash"),
}
"""Fields that other code relies on -> (check of the value, description of a valid value)."""


def read_tensors(stream: BinaryIO) -> Any:
    """Returns the content of a ``torch.save`` file, on the CPU.

    Raises errors of any type where it is damaged, and ValueError where it would unpack to more bytes than it has, which
    torch's own files never do, or describes its tensors at too great length.
    """
    source: BinaryIO = stream
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as parts:
            sizes = [(part.filename, part.file_size) for part in parts.infolist()]
            size, unpacked = stream.seek(0, os.SEEK_END), sum(n for _, n in sizes)
            if unpacked > size:
                raise ValueError(f"its {size} bytes would unpack to {unpacked}")
            refuse_long_description(sum(n for name, n in sizes if name.endswith(".pkl")))
            if damaged := parts.testzip():  # torch does not verify checksums and would load changed weights
                raise ValueError(f"{damaged} in it is damaged")
        stream.seek(0)
    else:  # written by torch before 1.6: a file would hold room for whatever length stands in it, before it is read
        stream.seek(0)
        source = io.BytesIO(stream.read())
    return torch.load(source, map_location="cpu", weights_only=True)


def refuse_long_description(names_bytes: int) -> None:
    """Raises ValueError where a file says more of its tensors than ``MAX_TENSOR_NAMES_BYTES``."""
    if names_bytes > MAX_TENSOR_NAMES_BYTES:
        raise ValueError(f"{names_bytes} bytes describe its tensors, expected at most {MAX_TENSOR_NAMES_BYTES}")


def refuse_bad_weights(where: str, weights: Any) -> None:
    """Raises CheckpointError unless ``weights`` are a state dict that a network can compute with.

    ``where`` is the file, for the message.
    """
    if not isinstance(weights, dict):
        raise CheckpointError(
            f"{where} contains a {type(weights).__name__}, expected names with weights. Use another one."
        )
    for name, value in weights.items():
        if not _is_plain(value):
            problem = "not a plain tensor"
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():  # strides repeat few numbers
            problem = "a tensor with more elements than numbers"
        elif not bool(torch.isfinite(value).all()):
            problem = "not finite"
        else:
            continue
        raise CheckpointError(f"{where} holds weights that are {problem} ({name}). Use another one.")


def refuse_other_network(where: str, weights: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> None:
    """Raises CheckpointError where ``weights`` differ in names or sizes from ``own``, those of the network.

    ``where`` is the file, for the message.
    """
    shapes = {name: (_shape(weights.get(name)), _shape(own.get(name))) for name in sorted({*weights, *own})}
    wrong = [f"{name}: {there} there, {here} expected" for name, (there, here) in shapes.items() if there != here]
    if wrong:
        raise CheckpointError(
            f"{where} does not hold the network of its configuration ({'; '.join(wrong[:3])}; {len(wrong)} in all). Use another "
            "one."
        )


def _shape(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))


def _is_plain(value: Any) -> bool:
    """Tells whether it is a dense CPU tensor of a type that ``isfinite`` supports."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return not value.is_quantized and (value.element_size() > 1 or not value.is_floating_point())
