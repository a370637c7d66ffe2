"""The runs that CLT, ALT and GLT compare: of each, one trained on the long tail and one on balanced classes.

Both have the same data, configuration and seed. What a run starts from (``stage2.from_run``, ``train.init_from``) belongs to
it: where that was trained on the same data, each of the two starts from one of its own kind, or the long tail would reach the
balanced run through its initial weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig
from ltcore.errors import CheckpointError, ConfigError, DamagedFileError
from ltcore.evaluation.protocols import TRAIN_BALANCED, TRAIN_LONG_TAILED
from ltcore.storage import exists, is_local, join, local_path
from ltcore.text import counted
from ltcore.training.same_run import differences
from ltcore.training.stored import entries

TRAIN_SPLITS = (TRAIN_LONG_TAILED, TRAIN_BALANCED)
ORIGINS = ("stage2.from_run", "train.init_from")
"""Keys that name another run."""
_MOST_SHOWN = 5


@dataclass(frozen=True)
class StoredRun:
    """A run directory and its record."""

    uri: str
    """Absolute path or URI, without a slash at the end."""
    record: RunRecord

    @property
    def folder(self) -> str:
        """Returns where the run lies among others."""
        return self.uri.rpartition("/")[0]

    @property
    def other_split(self) -> str:
        """Returns the training split of its counterpart."""
        return TRAIN_BALANCED if self.record.train_split == TRAIN_LONG_TAILED else TRAIN_LONG_TAILED

    @property
    def counterpart_name(self) -> str:
        """Returns what its counterpart is called where it is trained for it."""
        return f"{self.record.name}-{self.other_split}"


def open_stored(uri: str) -> StoredRun:
    """Opens a run directory. Raises CheckpointError where there is no run."""
    place = str(local_path(uri).absolute()) if is_local(uri) else uri
    record = RunRecord.read(place)
    if record is None:
        raise CheckpointError(
            f"{uri} has no run.json: --protocols compares whole runs, so give the directory of a run, as a path or URI."
        )
    return StoredRun(place.rstrip("/"), record)


def checked(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Returns the runs by training split and seed.

    Raises ConfigError where one is not finished or trained on neither split, or where two do not belong together.
    """
    for run in runs:
        _refuse_unfit(run)
    for run in runs[1:]:
        if found := mismatch(runs[0].record, run.record, ignored=("seed",)):
            raise ConfigError(
                f"{runs[0].uri} and {run.uri} are no runs of one configuration with different seeds: {found}. Give runs that "
                "differ in seed and data.train_split alone."
            )
    ordered = sorted(runs, key=lambda run: (TRAIN_SPLITS.index(run.record.train_split), run.record.seed))
    for one, two in itertools.pairwise(ordered):
        if (one.record.train_split, one.record.seed) == (two.record.train_split, two.record.seed):
            raise ConfigError(
                f"{one.uri} and {two.uri} are both trained on split {one.record.train_split!r} with seed {one.record.seed}. Give "
                "one of them, or runs with different seeds."
            )
    return ordered


def _refuse_unfit(run: StoredRun) -> None:
    record = run.record
    if record.status != "finished":
        raise ConfigError(
            f"{run.uri} is not finished ({record.status} after {record.epochs_done} of "
            f"{counted(record.epochs_planned, 'epoch')}). Let "
            "the command that trains it continue it first."
        )
    if record.train_split not in TRAIN_SPLITS:
        raise ConfigError(
            f"{run.uri} was trained with data.train_split={record.train_split}; the protocols are of runs trained on "
            f"{' or '.join(TRAIN_SPLITS)}."
        )


def find_counterpart(run: StoredRun) -> StoredRun | None:
    """Returns the run beside it that differs in the training split alone; None where there is none.

    Of several it is the first by name that is finished, else the first one.
    """
    found = list(_counterparts(run))
    return next((other for other in found if other.record.status == "finished"), found[0] if found else None)


def _counterparts(run: StoredRun) -> Iterator[StoredRun]:
    for name in sorted(entries(run.folder), key=lambda name: (name != run.counterpart_name, name)):
        try:
            record = RunRecord.read(join(run.folder, name))
        except DamagedFileError:
            continue  # another run's, which is not asked for
        if record is not None and record.train_split == run.other_split and not mismatch(run.record, record):
            yield StoredRun(join(run.folder, name), record)


def mismatch(one: RunRecord, two: RunRecord, ignored: Collection[str] = ()) -> str:
    """Returns in words why two runs differ in more than their training split and the ``ignored`` keys; '' where they do not."""
    if one.data.hash != two.data.hash:
        return f"data {one.data.hash[:12]} and {two.data.hash[:12]}"
    own = {"data.train_split", *ORIGINS, *ignored}
    different = [
        f"{key} is {ours!r} and {theirs!r}"
        for key, (ours, theirs) in differences(one.config, two.config).items()
        if key not in own
    ]
    different += [words for key in ORIGINS if (words := _other_origin(key, one, two, ignored))]
    more = f"; {len(different) - _MOST_SHOWN} more" if len(different) > _MOST_SHOWN else ""
    return "; ".join(different[:_MOST_SHOWN]) + more


def _other_origin(key: str, one: RunRecord, two: RunRecord, ignored: Collection[str]) -> str:
    ours, theirs = one.config.get(key), two.config.get(key)
    origins = origin_of(one, key), origin_of(two, key)
    if origins[0] is None or origins[1] is None:
        if ours == theirs and ours and one.train_split != two.train_split and not exists(str(ours)):
            return f"{key}={ours} of both is not there any more, so nothing says which split it was trained on"
        return "" if ours == theirs else f"{key} is {ours!r} and {theirs!r}"
    for run, origin in zip((one, two), origins, strict=True):
        if origin is not None and origin.record.train_split != run.train_split:
            return (
                f"{run.name} is trained on {run.train_split!r}, but its {key} on {origin.record.train_split!r}, so it knows that "
                "split too"
            )
    found = mismatch(origins[0].record, origins[1].record, ignored)
    return f"the runs of {key} differ: {found}" if found else ""


def origin_of(record: RunRecord, key: str) -> StoredRun | None:
    """Returns the run that ``key`` names, or of whose checkpoints it names one.

    None where it names none, or one that was trained on other data, as pretraining is.
    """
    return _origin(record.config.get(key), record.data.hash)


def _origin(value: Any, data_hash: str) -> StoredRun | None:
    if not value:
        return None
    uri = str(value).rstrip("/").partition("/checkpoints/")[0]
    place = str(local_path(uri).absolute()) if is_local(uri) else uri
    found = RunRecord.read(place)
    return StoredRun(place, found) if found is not None and found.data.hash == data_hash else None


def refuse_seen_split(config: Mapping[str, Any], data_hash: str) -> None:
    """Raises ConfigError where a run would start from one that knows another training split of the same data.

    The weights may have come through any number of runs. ``config`` is flat.
    """
    split = config["data.train_split"]
    waiting = [(key, _origin(config.get(key), data_hash)) for key in ORIGINS]
    seen: set[str] = set()
    while waiting:
        key, origin = waiting.pop()
        if origin is None or origin.uri in seen:  # two that were trained anew may name each other
            continue
        seen.add(origin.uri)
        if origin.record.train_split != split:
            raise ConfigError(
                f"{key}={config.get(key)} leads to {origin.uri}, which was trained on split {origin.record.train_split!r} of the "
                f"same data, so a run on {split!r} would know both. Start it from a run on {split!r}, or from none."
            )
        waiting += [(key, origin_of(origin.record, name)) for name in ORIGINS]


def counterpart_config(run: StoredRun, name: str) -> RunConfig:
    """Returns the configuration of a run's counterpart; what it starts from is still that of ``run``."""
    return RunConfig.from_flat({**run.record.config, "data.train_split": run.other_split, "name": name})
