"""Installed plugins that are broken: said once and left out, and an error only where one of them is wanted.

What else is installed must not stop a command that needs none of it. A plugin that a person named is never set aside.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from ltcore.errors import PluginError

_LOG = logging.getLogger("ltcore.plugins")


@dataclass(frozen=True)
class Aside:
    """A broken plugin: why, and what it would have had."""

    reason: str
    parts: frozenset[tuple[str, str]]
    """(kind, name) of each part."""


ASIDE: dict[str, Aside] = {}
"""Name -> the plugin."""


def set_aside(name: str, reason: str, parts: Iterable[tuple[str, str]]) -> None:
    """Leaves an installed plugin out from now on, with a warning."""
    if name in ASIDE:
        return
    ASIDE[name] = Aside(reason, frozenset(parts))
    listed = ", ".join(sorted(part for _, part in ASIDE[name].parts))
    _LOG.warning("%s It is left out%s: repair or uninstall it.", reason, f", with {listed}" if listed else "")


def reasons(words: Iterable[str]) -> list[str]:
    """Returns why plugins were set aside that have parts of these names."""
    asked = {*words}
    return [aside.reason for aside in ASIDE.values() if asked & {name for _, name in aside.parts}]


def refuse(kind: str, name: str) -> None:
    """Raises PluginError where the part is one of a plugin that was set aside."""
    for aside in ASIDE.values():
        if (kind, name) in aside.parts:
            raise PluginError(aside.reason)
