"""Default names of runs and sweeps: short, the same for the same command, and others for what gives other results.

    cifar100_lt_ce                              the recipe as it is
    cifar100_lt_ce-photos-3fa2-lr0.01-seed7     on other data, with a changed key and another seed
    tune_lpa-epochs30                           a sweep

Without them a second seed would meet the first one's finished run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ltcore.config.keys import FREE_TO_CHANGE, OPTIONS, leaves, run_keys
from ltcore.config.overrides import as_text, flatten
from ltcore.config.show import run_tree
from ltcore.config.sweep import read_sweep

MAX_CHARS = 64
_OWN_WORDS = ("data.uri", "seed")
_NO_RESULT = (
    "name",
    "num_trials",
    "stall_s",
    "budget_s",
    "share_start",
    "train_engine_retrain",
    "alt",
    "ablation",
    "overrides",
    "space",
    "seeds",
)
"""Keys of a sweep that leave its result as it is, or, as ``num_trials``, are added to what is there."""


def name_run(recipe: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``overrides`` with the ``name`` of the run.

    Where it is not given, it is made from the other overrides.
    """
    if "name" in overrides:
        return dict(overrides)
    plain, wanted = flatten(run_tree(recipe)), flatten(run_tree(recipe, overrides))
    words = list(_run_words(plain, wanted, overrides))
    return {**overrides, "name": _joined(plain["name"], words)}


def name_sweep(sweep: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``overrides`` with ``sweep.name``.

    Where it is not given, it is made from the other overrides.
    """
    if "sweep.name" in overrides:
        return dict(overrides)
    plain, wanted = read_sweep(sweep), read_sweep(sweep, overrides)
    words = []
    if wanted.recipe != plain.recipe:
        words = [wanted.recipe.rpartition("/")[2].removesuffix(".yaml")]
        plain = read_sweep(sweep, {"sweep.recipe": wanted.recipe})  # without what the file says of its own recipe
    ours, theirs = plain.to_dict(), wanted.to_dict()
    skipped = (*_NO_RESULT, "recipe", "variants")
    typed = {key.removeprefix("sweep.") for key in overrides} - {*skipped}
    words += [_word(key, value) for key, value in theirs.items() if key in typed and value != ours[key]]
    for key in sorted(ours["space"].keys() | theirs["space"].keys()):
        if ours["space"].get(key) != theirs["space"].get(key):
            words.append(_word(key, theirs["space"].get(key)))
    words += _variant_words(plain.variants, wanted.variants)
    base, run = (flatten(run_tree(wanted.recipe, changes)) for changes in (plain.overrides, wanted.overrides))
    words += _run_words(base, run, wanted.overrides)
    return {**overrides, "sweep.name": _joined(plain.name, words)}


def _variant_words(plain: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields a word for each variant that is left out, and one for each key in which another one was changed."""
    for name in sorted(plain.keys() | wanted.keys()):
        if name not in wanted:
            yield f"{name}_off"
            continue
        before = plain.get(name, {})
        changed = (
            key for key, value in wanted[name].items() if key not in before or as_text(before[key]) != as_text(value)
        )
        yield from (f"{name}_{_word(key, wanted[name][key])}" for key in changed)


def _run_words(plain: Mapping[str, Any], wanted: Mapping[str, Any], typed: Mapping[str, Any]) -> Iterator[str]:
    """Yields the words of a run's name.

    They are a word for the data, one for each key or section that was typed and differs from the recipe, and one for
    the seed.
    """
    if wanted["data.uri"] != plain["data.uri"]:
        yield _data_word(wanted["data.uri"])
    for key in sorted(typed):
        if key in _OWN_WORDS or key.startswith(FREE_TO_CHANGE):
            continue
        changed = [k for k in plain.keys() | wanted.keys() if k == key or k.startswith(f"{key}.")]
        if any(plain.get(k) != wanted.get(k) for k in changed):
            yield _word(key, wanted[key] if key in wanted else typed[key])
    if wanted["seed"] != plain["seed"]:
        yield f"seed{wanted['seed']}"


def _data_word(uri: str) -> str:
    """Returns the last part of the place and a hash of the whole, since many folders are called ``images``."""
    if not re.search(r"[/.\\~]", uri):
        return uri  # the name of a source
    local = "://" not in uri.removeprefix("file://")
    whole = str(Path(uri.removeprefix("file://")).expanduser().absolute()) if local else uri.rstrip("/")
    last = re.sub(r"(\.(zip|tar|gz))+$", "", whole.rpartition("/")[2])[:20]
    return f"{last}-{hashlib.sha256(whole.encode('utf-8', 'surrogateescape')).hexdigest()[:4]}"


def _word(key: str, value: Any) -> str:
    above, _, last = key.rpartition(".")
    same = [k for k, _ in leaves(run_keys()) if k.rpartition(".")[2] == last and not k.startswith(OPTIONS)]
    if len(same) > 1:
        last = f"{above.rpartition('.')[2]}_{last}"
    if value is None or str(value).lower() in ("null", "none"):
        return f"{last}_off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if "/" in text:  # a path or URI, such as that of the run which stage 2 starts from
        text = text.rstrip("/").rpartition("/")[2]
    return f"{last}{'' if re.match(r'[-0-9.]', text) else '_'}{text}"


def _joined(first: str, words: list[str]) -> str:
    whole = "-".join([first, *words])
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", whole)
    if len(clean) <= MAX_CHARS and clean == re.sub(r"[ ,:=]+", "_", whole):
        return clean
    return f"{clean[: MAX_CHARS - 7]}-{hashlib.sha256(whole.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"
