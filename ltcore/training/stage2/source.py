"""The run that stage 2 starts from: its checkpoint, and the configuration that stage 2 takes over from it.

A run of stage 2 is a run of stage 1 with another classifier, and its record says so: data, augmentation, model, objective
and training are those of ``stage2.from_run``. Whoever leaves them at their defaults gets them from there; whoever sets one
to something else is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltcore.config.keys import comes_from_stage1
from ltcore.config.overrides import flatten
from ltcore.config.plugged import KEY, names_of
from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import CheckpointError, ConfigError, DamagedFileError
from ltcore.storage import is_local, local_path, read_json
from ltcore.text import counted
from ltcore.training import checkpoint as ckpt
from ltcore.training.fetch import fetched_checkpoint


@contextlib.contextmanager
def stage1_checkpoint(uri: str, *, weights: bool) -> Iterator[ckpt.Checkpoint]:
    """Yields the checkpoint at a path or URI, found as ``evaluate.py`` does.

    Of a run directory it is the best one, else the last. From an object store only what is needed is fetched, without
    the weights unless they are asked for, and it is removed when the context ends. Raises CheckpointError where there
    is none, ConfigError where the run has not finished.
    """
    with fetched_checkpoint(uri, weights=weights) as path:
        if not (path / "meta.json").exists() and not (path / "checkpoints").is_dir():
            raise CheckpointError(
                f"stage2.from_run={uri} is neither a run nor a checkpoint: expected meta.json or checkpoints/ in it. Train "
                "stage 1 first, and give its run directory."
            )
        record = _record(path, uri)
        if record is not None and record.status != "finished":
            raise ConfigError(
                f"stage2.from_run={uri} is a run that {_how(record.status)} after {record.epochs_done} of "
                f"{counted(record.epochs_planned, 'epoch')}. Let it finish (the same command continues it), or give one of its "
                "checkpoints/ by name."
            )
        yield ckpt.read(path, uri)


def _record(path: Path, uri: str) -> RunRecord | None:
    """Returns the record of the run; None where only its checkpoint was copied."""
    file = f"{uri}/{RunRecord.FILE}"  # where the person finds it: ``path`` may be a copy
    try:
        value = read_json(path / RunRecord.FILE)
        return None if value is None else RunRecord.from_json(value, file)
    except DamagedFileError as error:
        raise CheckpointError(f"{error} Or give one of the run's checkpoints/ by name.") from None


def refuse_other_data(uri: str, found: ckpt.Checkpoint, manifest: Manifest) -> None:
    """Raises CheckpointError where the run at ``uri``, of which ``found`` is a checkpoint, was trained on other data."""
    if found.meta["data_hash"] != manifest.hash:
        raise CheckpointError(
            f"stage2.from_run={uri} was trained on data {found.meta['data_hash'][:12]}, now data.uri leads to "
            f"{manifest.hash[:12]}. Give the data of stage 1."
        )


def check_stage1(cfg: RunConfig, manifest: Manifest) -> None:
    """Raises CheckpointError where stage 1 was trained on other data. Does nothing for an ordinary run."""
    if cfg.stage2 is not None:
        with stage1_checkpoint(cfg.stage2.from_run, weights=False) as found:
            refuse_other_data(cfg.stage2.from_run, found, manifest)


def _how(status: str) -> str:
    return "is still going" if status == "running" else status


def resolved(cfg: RunConfig) -> RunConfig:
    """Returns ``cfg`` of stage 2 with what it takes over from stage 1.

    An ordinary run is returned as it is, and doing it twice changes nothing. Raises ConfigError where a key contradicts
    stage 1, or where the method does not go with what stage 1 was.
    """
    if cfg.stage2 is None:
        return cfg
    if not cfg.stage2.from_run:
        raise ConfigError(
            "stage2.from_run is empty: which run's classifier? Give its directory, such as "
            "stage2.from_run=~/ltcore-runs/cifar100_lt_ce (train.py without stage2 makes one)."
        )
    uri = cfg.stage2.from_run
    with stage1_checkpoint(uri, weights=False) as found:
        found.require("classes", "data_hash", "epoch", "step")
        first = found.config()
    if first.stage2 is not None:
        raise ConfigError(
            f"stage2.from_run={uri} is a run of stage 2 itself, of method {first.stage2.method}: its classes are balanced "
            f"already. Start from {first.stage2.from_run}, as it did."
        )
    return _take_over(cfg, first)


def _take_over(cfg: RunConfig, first: RunConfig) -> RunConfig:
    assert cfg.stage2 is not None
    mine, defaults = cfg.to_flat(), flatten(RunConfig(name=cfg.name).to_dict())
    own = {key: value for key, value in mine.items() if not comes_from_stage1(key)}
    if mine["data.uri"] == defaults["data.uri"]:
        del own["data.uri"]
    if is_local(cfg.stage2.from_run):
        own["stage2.from_run"] = str(
            local_path(cfg.stage2.from_run).absolute()
        )  # workers have other working directories
    head = cfg.stage2.row.build.result_head(cfg.stage2.chosen)
    of_first = {key: value for key, value in first.to_flat().items() if not key.startswith("callbacks.")}
    theirs = {**of_first, **own, **({"model.head": head} if head else {})}
    if plugins := dict.fromkeys(names_of(first.to_flat().get(KEY)) + names_of(mine.get(KEY))):
        theirs[KEY] = ",".join(plugins)
    for key, value in mine.items():
        if comes_from_stage1(key) and value != defaults.get(key, _NONE) and value != theirs.get(key, _NONE):
            there = f"{theirs[key]}" if key in theirs else "not set"
            raise ConfigError(
                f"{key}={value} contradicts stage2.from_run={cfg.stage2.from_run}, where it is {there}: stage 2 keeps "
                "everything of stage 1 but the classifier. Leave the key away."
            )
    return RunConfig.from_flat(theirs)


_NONE: Any = object()
