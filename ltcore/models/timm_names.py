"""Names of timm's networks and of their published weights, without importing timm, which takes seconds.

They are read from the source text of the installed package, which registers each network by a decorator, and weights
by the keys of its tables. A test compares them with what timm itself lists.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from ltcore.errors import nearest

PREFIX = "timm:"
"""Beginning of the name of a network of timm: ``timm:resnet50``, or with the tag of its weights ``timm:resnet50.a1_in1k``."""
NO_TAG = ("auto", "default")
FILES = (".pth", ".pt", ".safetensors")
"""Endings of files of weights."""
INSTALL = "uv add 'ltcore[timm]' (or pip install 'ltcore[timm]')"
_NETWORK = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
_WEIGHTS = re.compile(r"""^\s+['"](\w+\.[\w.-]+)\*?['"]:\s""", re.MULTILINE)


def is_timm(name: str) -> bool:
    """Tells whether the name of a network begins with ``timm:``."""
    return name.startswith(PREFIX)


def split_name(name: str) -> tuple[str, str]:
    """Returns network and tag of 'timm:network.tag', with or without 'timm:'; the tag is '' where none is named."""
    network, _, tag = name.removeprefix(PREFIX).partition(".")
    return network, tag


def is_tag(weights: str) -> bool:
    """Tells whether ``model.weights`` names published weights of timm: not a word of ours, and not a file."""
    return weights not in NO_TAG and "/" not in weights and not weights.startswith("~") and not weights.endswith(FILES)


def _folder() -> Path | None:
    """Returns the folder of timm's networks; None where timm is not installed."""
    spec = importlib.util.find_spec("timm")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "models"


def is_installed() -> bool:
    """Tells whether timm is installed."""
    return _folder() is not None


@functools.cache
def _names() -> tuple[frozenset[str], frozenset[str]]:
    """Returns all networks, and all networks with tag; nothing where timm is not installed."""
    folder = _folder()
    sources = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py"))] if folder else []
    networks = frozenset(name for source in sources for name in _NETWORK.findall(source))
    tagged = frozenset(name for source in sources for name in _WEIGHTS.findall(source))
    return networks, frozenset(name for name in tagged if split_name(name)[0] in networks)


def networks() -> frozenset[str]:
    """Returns the names of all networks of the installed timm, without 'timm:'; empty where there is none."""
    return _names()[0]


def complete(beginning: str) -> list[str]:
    """Returns the names, with 'timm:', that a person who typed ``beginning`` may mean; tags from a dot on."""
    if not beginning.startswith(PREFIX):
        return [PREFIX] if PREFIX.startswith(beginning) and is_installed() else []
    found = _names()["." in beginning]
    return sorted(name for name in (f"{PREFIX}{name}" for name in found) if name.startswith(beginning))


def is_network(name: str) -> bool:
    """Tells whether timm has a network, or weights ``network.tag``, of this name, which lacks ``timm:`` then."""
    network, _, tag = name.partition(".")
    return is_installed() and network in networks() and (not tag or _has_weights(network, tag))


def check_name(name: str) -> None:
    """Raises ValueError where timm, or its network ``timm:...``, is not there."""
    if not is_installed():
        raise ValueError(f"name={name} needs timm, which is not installed. Install it with {INSTALL}")
    network, tag = split_name(name)
    if network not in networks():
        close = nearest(network, networks()).replace("mean ", f"mean {PREFIX}").replace(", ", f", {PREFIX}")
        raise ValueError(f"name={name} is no network of the installed timm{'.' if close else ''}{close}")
    if tag and not _has_weights(network, tag):
        raise ValueError(f"name={name}: {_unknown(network, tag)}")


def check_tag(name: str, tag: str) -> None:
    """Raises ValueError where a network of timm has no published weights of that tag, or ``name`` has another tag."""
    network, own = split_name(name)
    if own not in ("", tag):
        raise ValueError(f"weights={tag} contradicts name={name}: name the weights once")
    if not _has_weights(network, tag):
        raise ValueError(f"weights={tag}: {_unknown(network, tag)}")


def _has_weights(network: str, tag: str) -> bool:
    full = f"{network}.{tag}"
    if full in _names()[1]:
        return True
    import timm  # a few tags are made by its code

    return full in timm.list_models(f"{network}.*", include_tags=True)


def _unknown(network: str, tag: str) -> str:
    import timm

    known = [split_name(each)[1] for each in timm.list_models(f"{network}.*", include_tags=True)]
    known = sorted(filter(None, known))
    said = f"Known: {', '.join(known)}" if known else "None are published"
    return f"timm has no such weights of {network}.{nearest(tag, known)} {said}"
