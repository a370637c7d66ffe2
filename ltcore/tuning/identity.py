"""When are two sweeps the same sweep? Answered without Ray, before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from ltcore.config.keys import FREE_TO_CHANGE, effective
from ltcore.config.overrides import as_text, flatten
from ltcore.config.plugged import KEY, deciding, names_of, wanted
from ltcore.config.records import SweepRecord
from ltcore.config.show import run_tree
from ltcore.config.sweep import SweepConfig
from ltcore.errors import ConfigError

_HOW = ("stall_s", "budget_s", "share_start", "ablation", "overrides")
"""Keys that say how a sweep is computed or what is trained after it, not what it comes to; what ``overrides`` does stands
in the run's own keys."""
_ALT = "sweep.alt"


def identity(sweep: SweepConfig) -> dict[str, Any]:
    """Returns everything but the data that the result of a sweep depends on, flat.

    Two sweeps with equal identity on equal data are the same sweep.
    """
    base = flatten(run_tree(sweep.recipe, sweep.overrides))
    fields = {
        f"sweep.{key}": value for key, value in sweep.to_dict().items() if key not in (*_HOW, "space", "variants")
    }
    if not sweep.variants:  # it is trained after a search, and adds nothing to one
        del fields[_ALT]
    fields |= {f"sweep.space.{key}": str(spec) for key, spec in sweep.space.items()}
    fields |= {f"sweep.variants.{key}": as_text(value) for key, value in flatten(sweep.variants).items()}
    kept = {key: value for key, value in base.items() if not key.startswith(FREE_TO_CHANGE)}
    if plugins := dict.fromkeys([*names_of(base.get(KEY)), *sorted(wanted(_changes(sweep)))]):
        kept[KEY] = ",".join(plugins)
    return json.loads(json.dumps(deciding(effective({**fields, **kept}))))


def _changes(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """Yields what trials have instead of the base's values, and what they are ranked by."""
    yield {"train.select": sweep.metric}
    yield from sweep.variants.values()
    yield from ({key: value} for key, spec in sweep.space.items() for value in spec.probes())


def identity_hash(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns sentences about the keys in which two identities differ."""
    keys = sorted(set(old) | set(new))
    return [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys if old.get(key) != new.get(key)]


_SIZES = {"random": ("sweep.num_trials",), "variants": ("sweep.seeds", _ALT)}
"""Search -> the keys of its size, each of which may grow, by which trials are added to what is stored."""


def size_now(existing: SweepRecord | None, sweep: SweepConfig) -> int:
    """Returns the number of trials that the stored sweep has from now on.

    It is ``sweep.size``, or what ``sweep.budget_s`` allowed of it when the sweep began.
    """
    cut = existing is not None and existing.cut_from == sweep.size and sweep.budget_s is not None
    return existing.num_trials if existing is not None and cut else sweep.size


def has_more(existing: SweepRecord, sweep: SweepConfig) -> bool:
    """Tells whether the stored sweep lacks trials, or runs after the search, that the same sweep now asks for.

    They are then added to it.
    """
    if size_now(existing, sweep) > existing.num_trials:
        return True
    if existing.comparison is None:
        return False
    return (sweep.alt and existing.balanced is None) or (sweep.ablation and existing.ablation is None)


def _grown(existing: SweepRecord, fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the stored values of what the new sweep has more of: trials, or seeds and protocols of a comparison."""
    keys = _SIZES.get(existing.search, ()) if fields["sweep.search"] == existing.search else ()
    stored = {key: existing.identity.get(key) for key in keys}
    return {key: value for key, value in stored.items() if isinstance(value, int) and fields[key] > value}


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
    stored = deciding(effective(existing.identity))
    if stored.get(_ALT) is True and fields.get(_ALT) is False:
        raise ConfigError(
            f"{uri} holds a comparison under ALT too, which says more than one without it: give {_ALT}=true, or this one another "
            "--name."
        )
    changed = difference(stored, {**fields, **_grown(existing, fields)})
    if changed:
        raise ConfigError(
            f"{uri} holds a sweep with another configuration ({'; '.join(changed[:6])}{'; ...' if len(changed) > 6 else ''}). "
            "Give this one another --name, repeat the old values, or replace it with --fresh."
        )
