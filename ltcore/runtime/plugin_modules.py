"""How Ray's processes find plugins: on a cluster their sources are sent along, on one machine the search path is shared.

Plugins that a distribution installed are expected on every node; ``ltcore doctor`` compares their versions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ltcore.plugins.distributions import is_installed, sources_of
from ltcore.plugins.loading import known
from ltcore.plugins.source import SEARCH_PATH


def sent_along() -> dict[str, list[str]]:
    """Returns the part of Ray's runtime environment that carries plugins which no distribution installed; {} without any."""
    roots = dict.fromkeys(map(str, _own_sources()))
    return {"py_modules": list(roots)} if roots else {}


def share_search_path() -> None:
    """Lets the processes of a local Ray, which inherit the environment, find the plugins that this one finds.

    Not by PYTHONPATH, in which a folder of the user's comes before the standard library.
    """
    folders = dict.fromkeys(str(root.parent.absolute()) for root in _own_sources())
    before = [folder for folder in os.environ.get(SEARCH_PATH, "").split(os.pathsep) if folder]
    if new := [folder for folder in folders if folder not in before]:
        os.environ[SEARCH_PATH] = os.pathsep.join([*before, *new])


def _own_sources() -> Iterator[Path]:
    """Yields the packages and modules of plugins, and their helpers, that no distribution installed."""
    for plugin in known():
        if not is_installed(plugin.name):
            yield from sources_of(plugin.name)
