"""Existing results at the target of a run or sweep, and what ``--fresh`` may remove of them."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator

from ltcore import storage
from ltcore.config.records import RunRecord, SweepRecord, now
from ltcore.errors import ConfigError, StorageError
from ltcore.lease import FOLDER as LEASE
from ltcore.limits import MAX_RECORD_BYTES, MAX_RECORD_VALUES, load_json
from ltcore.storage import TooLargeError, is_local, join, local_path, read_bytes
from ltcore.text import duration

_RUN = re.compile(
    r"run\.json|config\.yaml|metrics\.jsonl|metrics|confusion|tables|checkpoints|tensorboard|wandb|report\.html|\.?ray_train"
)
_SWEEP = re.compile(r"sweep\.json|report\.html|sweep|shared_start(-\d+)?|tune(-.+)?|\.?ray_train")
_TURNS = {"run.json": 0, "sweep.json": 2}
_RUNS_OF_A_SWEEP = ("trials", "retrain", "alt", "ablation")


def finished_ago(record: RunRecord | SweepRecord) -> str:
    """Says how long ago a run or sweep ended."""
    assert record.finished_at is not None, "it is asked of what is finished"
    return f"{duration((now() - record.finished_at).total_seconds())} ago"


def remove(uri: str, fence: Callable[[], None] = lambda: None) -> str:
    """Removes the run or sweep at ``uri``, and nothing else that is there.

    ``fence`` is called before each removal, and raises where the place is another process's by now. Returns what was done in
    words, '' for nothing. Raises ConfigError where the place is not empty and neither ``run.json`` nor ``sweep.json`` shows
    that it is a run or sweep.
    """
    found = sorted(entries(uri))
    if not found:
        return ""
    whose = _whose(uri, found)
    left = sorted(_remove_known(uri, whose, fence))
    kept = f"; {', '.join(left[:3])}{', ...' if len(left) > 3 else ''} stays, which is not of it" if left else ""
    return f"--fresh: removed the earlier {'sweep' if whose is _SWEEP else 'run'} in {uri}{kept}"


def _whose(uri: str, found: list[str]) -> re.Pattern[str]:
    for name, entries in (("sweep.json", _SWEEP), ("run.json", _RUN)):
        if name in found and _is_ours(join(uri, name)):
            return entries
    for entries in (_SWEEP, _RUN):  # a start that was interrupted before its record was written
        if all(entries.fullmatch(name) or (entries is _SWEEP and name in _RUNS_OF_A_SWEEP) for name in found):
            return entries
    raise ConfigError(
        f"--fresh removes only runs and sweeps, and {uri} holds neither run.json nor sweep.json of one, but "
        f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}. Give this one another --name, or remove that yourself."
    )


def _is_ours(file: str) -> bool:
    try:
        record = load_json(read_bytes(file, MAX_RECORD_BYTES), MAX_RECORD_VALUES)
    except (ValueError, TooLargeError):
        return True  # damaged, for which --fresh is the remedy; only names that are ours are removed in any case
    return isinstance(record, dict) and {"schema", "status"} <= record.keys()


def _remove_known(uri: str, known: re.Pattern[str], fence: Callable[[], None]) -> Iterator[str]:
    """Removes known entries and yields the names, relative to ``uri``, of entries that are kept.

    A kill in the middle leaves no run that looks finished without its weights, and no trials that another sweep would
    take for its own: the record of a run goes first, that of a sweep last.
    """
    for name in sorted(entries(uri), key=lambda name: _TURNS.get(name, 1)):
        where = join(uri, name)
        if known is _SWEEP and name in _RUNS_OF_A_SWEEP:
            for run in entries(where):
                yield from (f"{name}/{run}/{rest}" for rest in _remove_known(join(where, run), _RUN, fence))
                _remove_if_empty(join(where, run))
            _remove_if_empty(where)
        elif known.fullmatch(name):
            _remove_entry(where, fence)
        else:
            yield name


def entries(uri: str) -> list[str]:
    """Returns the names directly below ``uri``; [] for a file or for nothing.

    The lease is left out, because the caller holds it.
    """
    if is_local(uri):
        place = local_path(uri)
        return [child.name for child in place.iterdir() if child.name != LEASE] if place.is_dir() else []
    return [name for name in storage.entries(uri) if name != LEASE]


def _remove_entry(uri: str, fence: Callable[[], None]) -> None:
    if not is_local(uri):
        storage.remove(uri, fence)
        return
    fence()
    path = local_path(uri)
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise StorageError(f"{uri} cannot be removed: {error}. Check permissions.") from error


def _remove_if_empty(uri: str) -> None:
    """Removes a local folder without entries; object stores have no empty folders."""
    if is_local(uri) and not entries(uri):
        shutil.rmtree(local_path(uri) / LEASE, ignore_errors=True)
        with contextlib.suppress(OSError):  # a file, or a link to a folder
            local_path(uri).rmdir()
