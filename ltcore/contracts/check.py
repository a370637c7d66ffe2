"""Runs the contracts on every part of a plugin, with the default options of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial

from ltcore.config.keys import Leaf, Section, leaves, run_keys
from ltcore.contracts import augmentations, callbacks, datasets, losses, metrics, models, samplers, stage2
from ltcore.contracts.expect import expect
from ltcore.data.datasets.registry import find
from ltcore.plugins.loading import known, load, use
from ltcore.plugins.parts import NOTED

_SECTIONS = {
    "loss": "objective.base_options",
    "term": "objective.terms",
    "stage2": "stage2.options",
    "callback": "callbacks",
    "model": "model.options",
    "augmentation": "augment.options",
    "sampler": "train.sampling_options",
    "metric": "metrics",
}
_BY_NAME = {
    "model": models.CONTRACTS,
    "augmentation": augmentations.CONTRACTS,
    "sampler": samplers.CONTRACTS,
    "callback": callbacks.CONTRACTS,
    "metric": metrics.CONTRACTS,
}
"""Kinds of which a contract needs the name alone."""
_MOST = 300
"""Characters of a problem that are shown."""


@dataclass(frozen=True)
class Outcome:
    """One contract of one part."""

    part: str
    """Kind and name: 'loss my_loss'."""
    contract: str
    problem: str
    """What failed; '' where it is kept."""


def check_plugin(name: str) -> Iterator[Outcome]:
    """Yields the outcome of every contract of every part, in the order of the source.

    Raises PluginError where the plugin is missing or cannot be imported.
    """
    (name,) = use([name], given=True)
    load([name])
    (plugin,) = (each for each in known() if each.name == name)
    for part in plugin.parts:
        for contract, check in _contracts(part.kind, part.name):
            yield Outcome(f"{part.kind} {part.name}", contract, _problem(check))


def _contracts(kind: str, name: str) -> Iterator[tuple[str, Callable[[], None]]]:
    if kind in _SECTIONS and hasattr(NOTED[kind, name].build, "Config"):
        yield "options are documented and read as they are", partial(options_are_as_the_source_says, kind, name)
    if kind in ("loss", "term"):
        row = ("base" if kind == "loss" else "term", name)
        for check in (*losses.COMMON, *(losses.BASE if kind == "loss" else losses.TERM)):
            yield _words(check), partial(check, row)
    elif kind == "dataset" and not find(name).by_path:
        yield from ((_words(each), partial(each, datasets.opened(name))) for each in datasets.CONTRACTS)
    elif kind == "dataset":
        yield from ((_words(each), partial(each, find(name))) for each in datasets.by_path_contracts(find(name)))
    elif kind == "stage2":
        for row in stage2.rows_of(name):
            yield from ((f"{_words(each)} ({row[1]} head)", partial(each, row)) for each in stage2.CONTRACTS)
    elif kind in _BY_NAME:
        yield from ((_words(each), partial(each, name)) for each in _BY_NAME[kind])


def options_are_as_the_source_says(kind: str, name: str) -> None:
    """Tells whether every option has a docstring, and the default that its source seems to have."""
    config = NOTED[kind, name].build.Config()
    section: Section | Leaf = run_keys()
    for word in f"{_SECTIONS[kind]}.{name}".split("."):
        assert isinstance(section, Section)
        expect(word in section.fields, "Config is not seen in the source: write it, or its name, into the class")
        section = section.fields[word]
    assert isinstance(section, Section)
    read = dict(leaves(section))
    missing = [field.name for field in fields(config) if field.name not in section.fields]
    expect(not missing, f"Config.{'.'.join(missing[:1])} is not seen in the source")
    for key, leaf in read.items():
        expect(len(leaf.doc) > 9, f"Config.{key} has no docstring under it")
        value = config
        for word in key.split("."):
            value = getattr(value, word)
        expect(value == leaf.default, f"Config.{key} is {value!r}, its source seems to say {leaf.default!r}")


def _words(check: Callable[..., None]) -> str:
    return check.__name__.replace("_", " ")


def _problem(check: Callable[[], None]) -> str:
    """Returns why a contract is broken, on one line; whatever a part raises is an answer."""
    try:
        check()
    except Exception as error:
        said = " ".join(str(error).split()) or "no reason given"
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return (kind + said)[:_MOST]
    return ""
