"""How a backbone is cut into blocks in depth order: a stem first, then one group per residual or transformer block."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from torch import nn

from ltcore.errors import ConfigError
from ltcore.models.depth import outermost

_STAGE = re.compile(r"^(?:trunk|branches\.\d+)\.layer(\d+)\.(\d+)\.")


def blocks_of(backbone: nn.Module) -> list[list[str]]:
    """Returns the names of the backbone's parameters in groups, the stem first, then every block in depth order.

    Our ResNets have one group per residual block; blocks of experts that lie at the same depth form one. A network of timm
    is cut by its own ``group_matcher``, whose last group also holds what follows the last block. Raises ConfigError for a
    backbone of another kind.
    """
    by_depth: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, depth in (_of_timm(backbone) or _of_resnet(backbone)).items():
        by_depth[depth].append(name)
    return [by_depth[depth] for depth in sorted(by_depth)]


def _of_timm(backbone: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns parameter -> number of its group; {} where no part of the backbone is a network of timm."""
    found = dict(outermost(backbone, "group_matcher"))  # a hybrid's stem is a network of timm, too
    if not found:
        return {}
    depths: dict[str, tuple[int, ...]] = {}
    for prefix, module in found.items():
        depths |= {f"{prefix}{name}": (depth,) for name, depth in _groups(module).items()}
    last = max(depths.values())
    # what lies around timm's network works on its output
    return {name: depths.get(name, last) for name, _ in backbone.named_parameters()}


def _groups(net: Any) -> dict[str, int]:
    """Returns parameter -> number of its group. What only the classifier's group would hold joins the last block."""
    from timm.models._manipulate import group_with_matcher

    matcher = net.group_matcher(coarse=False)
    classifier = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or "head"
    name = f"{classifier if isinstance(classifier, str) else classifier[0]}.weight"  # it is not built
    groups: dict[str, int] = group_with_matcher(iter([*net.named_parameters(), (name, None)]), matcher, reverse=True)
    last = groups.pop(name) - 1
    return {parameter: min(group, last) for parameter, group in groups.items()}


def _of_resnet(backbone: nn.Module) -> dict[str, tuple[int, ...]]:
    places = {name: _STAGE.match(name) for name, _ in backbone.named_parameters()}
    if not any(places.values()):
        raise ConfigError(
            f"{type(backbone).__name__} says of no part at which depth it lies, so model.tune=partial cannot cut it into blocks. "
            "Set model.tune to another value."
        )
    return {name: (int(at[1]), int(at[2])) if at else (0, 0) for name, at in places.items()}
