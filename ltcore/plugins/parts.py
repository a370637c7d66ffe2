"""What a plugin says of its parts: one decorator each, under a name that must be written out in the source.

A decorator only notes the part. The registries take it over when the plugin is loaded, so importing a package of parts
changes nothing by itself.
"""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ltcore.errors import PluginError

T = TypeVar("T")

GROUPS = {
    "loss": "ltcore.losses",
    "term": "ltcore.terms",
    "model": "ltcore.models",
    "dataset": "ltcore.datasets",
    "stage2": "ltcore.stage2",
    "callback": "ltcore.callbacks",
    "augmentation": "ltcore.augmentations",
    "sampler": "ltcore.samplers",
    "metric": "ltcore.metrics",
}
"""Kind of part, which is also its decorator -> group of entry points."""
_WITH_OPTIONS = ("loss", "term", "stage2", "callback")
"""Kinds whose class has a ``Config``, and whose name is a section of keys."""
_MAY_HAVE_OPTIONS = ("model", "augmentation", "sampler", "metric")
"""Kinds that may be a class with a ``Config``, which is made with its options before it is used; then the same holds."""
_IN_COLUMNS = ("metric",)
"""Kinds whose name is part of a column."""
_SECTION, _NAME = re.compile(r"[a-z][a-z0-9_]*"), re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Part:
    """One part as its decorator described it."""

    kind: str
    """Key of ``GROUPS``."""
    name: str
    build: Any
    summary: str
    """What it does, in one line."""
    paper: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the row in the registry."""

    @property
    def module(self) -> str:
        """Returns the module that defines it."""
        return str(self.build.__module__)


NOTED: dict[tuple[str, str], Part] = {}
"""(kind, name) -> part, of every module that was imported."""


def loss(name: str, *, summary: str, paper: str = "-", num_experts: int | None = None) -> Callable[[T], T]:
    """Registers a ``Base`` as ``objective.base=<name>``, its ``Config`` as ``objective.base_options.<name>``.

    ``num_experts`` is the only number of experts that a base with an expert head supports; None: any.
    """
    return _noting("loss", name, summary, paper, num_experts=num_experts)


def term(name: str, *, summary: str, paper: str = "-", controls: Sequence[Any] = ()) -> Callable[[T], T]:
    """Registers a ``Term`` as ``objective.terms.<name>``.

    ``controls`` are what an ablation compares it with beside the run without any term.
    """
    return _noting("term", name, summary, paper, controls=tuple(controls))


def model(
    name: str, *, summary: str, paper: str = "-", stages: Sequence[str] = (), branches: bool = True
) -> Callable[[T], T]:
    """Registers a function ``(norm, num_experts, expert_width) -> Backbone`` as ``model.name=<name>``.

    A class with a ``Config`` is made with it, from ``model.options.<name>``, before it is called so.

    ``stages`` names the stages before the last, whose pooled features a loss may use. A network with ``branches=False`` is
    built with one expert alone, and is no bilateral one.
    """
    return _noting("model", name, summary, paper, stages=tuple(stages), branches=branches)


def dataset(name: str, *, summary: str, paper: str = "-") -> Callable[[T], T]:
    """Registers a ``Dataset`` as ``data.uri=<name>``, or among those that recognize a place where it is ``by_path``."""
    return _noting("dataset", name, summary, paper)


def stage2(name: str, *, summary: str, paper: str = "-") -> Callable[[T], T]:
    """Registers a ``HeadMethod`` as ``stage2.method=<name>``, its ``Config`` as ``stage2.options.<name>``."""
    return _noting("stage2", name, summary, paper)


def callback(name: str, *, summary: str, paper: str = "-") -> Callable[[T], T]:
    """Registers a ``Callback`` as ``callbacks.<name>``, which ``callbacks.<name>=on`` switches on."""
    return _noting("callback", name, summary, paper)


def augmentation(
    name: str, *, summary: str, paper: str = "-", min_area: float | None = None, square: bool = False
) -> Callable[[T], T]:
    """Registers a function ``(images, draw, cfg) -> images`` as ``augment.view1=<name>`` and ``view2``.

    A class with a ``Config`` is made with it, from ``augment.options.<name>``, before it is called so.

    ``min_area`` puts a random resized crop with that share of the area before it, in (0, 1], ``square`` one without a random
    aspect; None: no such crop.
    """
    return _noting("augmentation", name, summary, paper, min_area=min_area, square=square)


def sampler(name: str, *, summary: str, paper: str = "-", order: bool = False) -> Callable[[T], T]:
    """Registers a function ``(samples: EpochSamples) -> weights [N]`` as ``train.sampling=<name>``.

    A class with a ``Config`` is made with it, from ``train.sampling_options.<name>``, before it is called so.

    With ``order`` it returns the N rows of the epoch themselves, in their order, so that it chooses who meets in a batch.
    """
    return _noting("sampler", name, summary, paper, order=order)


def metric(name: str, *, summary: str, paper: str = "-") -> Callable[[T], T]:
    """Registers a ``Metric`` as ``val/<name>`` and ``<test split>/<name>``, which ``train.select`` may name.

    One with a ``Config`` is made with it, from ``metrics.<name>``.
    """
    return _noting("metric", name, summary, paper)


def _noting(kind: str, name: str, summary: str, paper: str, **extra: Any) -> Callable[[T], T]:
    def note(build: T) -> T:
        part = Part(kind, name, build, summary, paper, extra)
        _check(part)
        before = NOTED.get((kind, name))
        if before is not None and (before.module, _label(before.build)) != (part.module, _label(build)):
            raise PluginError(
                f"{kind} {name!r} of {part.module} exists already, in {before.module}: give it another name."
            )
        NOTED[kind, name] = part
        return build

    return note


def _label(build: Any) -> str:
    return str(getattr(build, "__qualname__", build))


def has_options(build: Any) -> bool:
    """Tells whether a part of a kind that need not have options is a class that has some."""
    return isinstance(build, type) and hasattr(build, "Config")


def _check(part: Part) -> None:
    what = f"{part.kind} {part.name!r} of {part.module}"
    with_options = part.kind in _WITH_OPTIONS or (part.kind in _MAY_HAVE_OPTIONS and has_options(part.build))
    pattern = _SECTION if with_options or part.kind in _IN_COLUMNS else _NAME
    if not pattern.fullmatch(part.name) or keyword.iskeyword(part.name):
        letters = "letters, digits and '_'" if pattern is _SECTION else "letters, digits, '_' and '-'"
        raise PluginError(
            f"{what}: a name consists of small {letters} and begins with a letter; words of Python's syntax are none."
        )
    if not with_options:
        return
    config = getattr(part.build, "Config", None)
    params: Any = getattr(config, "__dataclass_params__", None)
    if not dataclasses.is_dataclass(config) or not params.frozen:
        raise PluginError(
            f"{what} needs a frozen dataclass Config in its class (@dataclass(frozen=True, kw_only=True))."
        )
    bare = [
        f.name
        for f in dataclasses.fields(config)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if bare:
        raise PluginError(f"{what}: Config.{bare[0]} needs a default.")
