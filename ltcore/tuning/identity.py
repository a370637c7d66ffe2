"""When are two sweeps the same sweep? Answered without Ray, before anything starts."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ltcore.config.keys import FREE_TO_CHANGE, effective
from ltcore.config.overrides import as_text, flatten
from ltcore.config.records import SweepRecord
from ltcore.config.show import run_tree
from ltcore.config.sweep import SweepConfig
from ltcore.errors import ConfigError

_HOW = ("stall_s", "budget_s", "share_start", "overrides")
"""Keys that say how a sweep is computed, not what it comes to; what ``overrides`` does stands in the run's own keys."""


def identity(sweep: SweepConfig) -> dict[str, Any]:
    """Returns everything but the data that the result of a sweep depends on, flat.

    Two sweeps with equal identity on equal data are the same sweep.
    """
    base = flatten(run_tree(sweep.recipe, sweep.overrides))
    fields = {
        f"sweep.{key}": value for key, value in sweep.to_dict().items() if key not in (*_HOW, "space", "variants")
    }
    fields |= {f"sweep.space.{key}": str(spec) for key, spec in sweep.space.items()}
    fields |= {f"sweep.variants.{key}": as_text(value) for key, value in flatten(sweep.variants).items()}
    kept = {key: value for key, value in base.items() if not key.startswith(FREE_TO_CHANGE)}
    return json.loads(json.dumps(effective({**fields, **kept})))


def identity_hash(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns sentences about the keys in which two identities differ."""
    keys = sorted(set(old) | set(new))
    return [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys if old.get(key) != new.get(key)]


_SIZES = {"random": "sweep.num_trials", "variants": "sweep.seeds"}
"""Search -> the key of its size; more of it adds trials to what is stored."""


def adds_trials(existing: SweepRecord, fields: dict[str, Any]) -> bool:
    """Tells whether the new sweep is a stored random search with more trials, or a comparison with more seeds.

    They are then added to it.
    """
    if fields["sweep.search"] != existing.search or existing.search not in _SIZES:
        return False
    key = _SIZES[existing.search]
    stored = existing.identity.get(key)
    return isinstance(stored, int) and fields[key] > stored


def check_same_data(existing: SweepRecord, data_hash: str, uri: str) -> None:
    """Raises ConfigError where the stored sweep was computed on other data.

    They are compared with the data that the name leads to now.
    """
    if existing.data_hash != data_hash:
        raise ConfigError(
            f"{uri} holds a sweep on other data ({existing.data_hash[:12]} there, {data_hash[:12]} now). Give the same data, "
            "another --name, or replace it with --fresh."
        )


def check_same_sweep(existing: SweepRecord, fields: dict[str, Any], uri: str) -> None:
    """Raises ConfigError where the stored sweep has another configuration.

    The same name with another configuration would mix two sweeps.
    """
    if adds_trials(existing, fields):
        key = _SIZES[existing.search]
        fields = {**fields, key: existing.identity[key]}
    changed = difference(effective(existing.identity), fields)
    if changed:
        raise ConfigError(
            f"{uri} holds a sweep with another configuration ({'; '.join(changed[:6])}{'; ...' if len(changed) > 6 else ''}). "
            "Give this one another --name, repeat the old values, or replace it with --fresh."
        )
