"""May a run continue where another one stopped? Configurations and data, compared in what they decide."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ltcore.callbacks import ENDED_BY
from ltcore.config.keys import FREE_TO_CHANGE, OPTIONS, effective
from ltcore.config.plugged import KEY as PLUGINS
from ltcore.config.plugged import deciding
from ltcore.errors import CheckpointError
from ltcore.plugins.loading import PIN, known_parts
from ltcore.training.checkpoint import Checkpoint

_ENDED_BY = re.compile(rf"{ENDED_BY}(?P<name>\S+) at epoch ")


def check_same_run(
    checkpoint: Checkpoint, config: dict[str, Any], data_hash: str, mutable: tuple[str, ...] = ()
) -> None:
    """Raises CheckpointError where a run would continue with another configuration or on other data.

    The message names the first differences. ``mutable`` keys may differ, and keys that do not change the training
    (FREE_TO_CHANGE).
    """
    if not {"config", "data_hash"} <= checkpoint.meta.keys():
        raise CheckpointError(
            f"{checkpoint.place}/meta.json does not say which configuration and data it belongs to. Delete this checkpoint "
            "and run again, or use --fresh."
        )
    check_same_data(checkpoint.place, checkpoint.meta["data_hash"], data_hash)
    refuse_differences(checkpoint.place, checkpoint.meta["config"], config, mutable)


def refuse_other_end(where: str, reason: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises CheckpointError where a callback ended the run at ``where`` that is another one in the configuration ``new``.

    Callbacks decide nothing else, so that of others options and version are free to change.
    """
    ended = _ENDED_BY.match(reason)
    if ended is None:
        return
    name = ended["name"]
    owner = known_parts().get(("callback", name), ("",))[0]
    before, now = _of_callback(old, name, owner), _of_callback(new, name, owner)
    found = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if found:
        raise CheckpointError(
            f"{where} was ended by callback {name}, which is another one now ({'; '.join(found[:5])}). Use another --name, "
            "the old values, or --fresh."
        )


def _of_callback(config: Mapping[str, Any], name: str, owner: str) -> dict[str, Any]:
    """Returns its options, and the entry of its plugin, which has the version."""
    key = f"callbacks.{name}"
    entries = str(config.get(PLUGINS) or "").split(",")
    return {
        **{each: value for each, value in config.items() if each == key or each.startswith(f"{key}.")},
        PLUGINS: next((entry for entry in entries if entry.partition(PIN)[0] == owner), None),
    }


def check_same_data(where: str, old_hash: str, new_hash: str) -> None:
    """Raises CheckpointError where the data are not those of the run at ``where``."""
    if old_hash != new_hash:
        raise CheckpointError(
            f"{where} was trained on data {old_hash[:12]}, now data.uri leads to {new_hash[:12]}. Use the same data, another "
            "--name, or --fresh."
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the keys that matter in which two flat configurations differ, with both values.

    The choice of a method comes before its options.
    """
    old, new = deciding(effective(old)), deciding(effective(new))
    keys = sorted(set(new) | set(old), key=lambda key: (key.startswith(OPTIONS), key))
    pairs = {key: (old.get(key), new.get(key)) for key in keys if not key.startswith(FREE_TO_CHANGE)}
    return {key: (before, after) for key, (before, after) in pairs.items() if before != after}


def refuse_differences(
    where: str, old: Mapping[str, Any], new: Mapping[str, Any], mutable: tuple[str, ...] = ()
) -> None:
    """Raises CheckpointError where two flat configurations differ in a key that matters; names the first ones."""
    found = [
        f"{key}: {before!r} there, {after!r} now"
        for key, (before, after) in differences(old, new).items()
        if not key.startswith(mutable)
    ]
    if found:
        raise CheckpointError(
            f"{where} belongs to another configuration ({'; '.join(found[:5])}{'; ...' if len(found) > 5 else ''}). Use another "
            "--name, the old values, or --fresh."
        )
