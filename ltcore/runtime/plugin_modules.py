"""How Ray's processes find plugins: on a cluster their sources are sent along, on one machine the search path is shared.

Plugins that a distribution installed are expected on every node; ``ltcore doctor`` compares their versions.
"""

from __future__ import annotations

import os
import sysconfig

from ltcore.plugins.distributions import is_installed, root_of
from ltcore.plugins.loading import known


def sent_along() -> dict[str, list[str]]:
    """Returns the part of Ray's runtime environment that carries plugins which no distribution installed; {} without any."""
    roots = dict.fromkeys(str(root_of(plugin.name)) for plugin in known() if not is_installed(plugin.name))
    return {"py_modules": list(roots)} if roots else {}


def share_search_path() -> None:
    """Lets the processes of a local Ray, which inherit the environment, find the plugins that this one finds."""
    roots = (root_of(plugin.name) for plugin in known())
    folders = dict.fromkeys(str(root.parent.absolute()) for root in roots if root is not None)
    before = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    new = [folder for folder in folders if folder not in (*before, sysconfig.get_path("purelib"))]
    if new:
        os.environ["PYTHONPATH"] = os.pathsep.join([*before, *new])
