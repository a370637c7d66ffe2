"""What optimizers ask about a backbone: how deep a parameter lies, which ones take no weight decay, whether it attends.

Networks of timm answer themselves, through ``group_matcher`` and ``no_weight_decay``; so may any other network that has
these methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import nn

from ltcore.models.backbones import Backbone

TENSORS_PER_LAYER = 12
"""Of a network about which nothing is known, as in timm's ``auto_group_layers``."""
_ATTENTION = frozenset(("q", "k", "q_proj", "k_proj", "query", "key", "to_q", "to_query", "to_key")).union(
    ("qk", "kv", "qkv", "qkvs", "qkv_proj", "to_qkv", "in_proj_weight")
)
"""Names of the modules and tensors that make queries and keys, in timm, torchvision and torch."""


def depths(backbone: nn.Module) -> tuple[dict[str, int], int]:
    """Returns the depth of every parameter by name, from 0 at the images on, and the depth of the classifiers above.

    Layers are those of ``group_matcher`` where the network has it, as timm's own layer-wise decay takes them. Of this package's
    networks the stem is layer 0 and every residual block one more; branches lie side by side. Of others, 12 tensors in the
    order of their definition are a layer.
    """
    found: dict[str, int] = {}
    above = 0
    for prefix, net in outermost(backbone, "group_matcher"):
        of_net, top = _matched(net)
        found |= {f"{prefix}{name}": depth for name, depth in of_net.items()}
        above = max(above, top)
    if not found:
        ours = isinstance(backbone, Backbone) and hasattr(backbone, "trunk")  # an adapter to other networks has none
        found = _by_blocks(backbone) if ours else _by_number(backbone)
        above = max(found.values(), default=-1) + 1
    return {name: found.get(name, above) for name, _ in backbone.named_parameters()}, above


def undecayed(backbone: nn.Module) -> set[str]:
    """Returns the names of the parameters that the network's ``no_weight_decay`` exempts, such as position embeddings."""
    return {
        f"{prefix}{name}"
        for prefix, net in outermost(backbone, "no_weight_decay")
        for name, _ in net.named_parameters()
        if any(fnmatchcase(name, pattern) for pattern in net.no_weight_decay())  # type: ignore[operator]
    }


def attends(backbone: nn.Module) -> bool:
    """Tells whether the network has attention, by the names of what makes queries and keys."""
    return any(not _ATTENTION.isdisjoint(name.split(".")) for name, _ in backbone.named_parameters())


def outermost(net: nn.Module, method: str) -> Iterator[tuple[str, nn.Module]]:
    """Yields every module with this method that lies in no other one, with the prefix of its parameters' names."""
    if callable(getattr(net, method, None)):
        yield "", net
        return
    for name, child in net.named_children():
        for prefix, found in outermost(child, method):
            yield f"{name}.{prefix}", found


def _matched(net: nn.Module) -> tuple[dict[str, int], int]:
    """Returns the layers that timm sees. The classifier is not built, but takes part: a last norm may belong to its layer."""
    from timm.models._manipulate import group_with_matcher

    matcher = net.group_matcher(coarse=False)  # type: ignore[operator]
    classifier = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or "head"
    name = f"{classifier if isinstance(classifier, str) else classifier[0]}.weight"
    layers: dict[str, int] = group_with_matcher(iter([*net.named_parameters(), (name, None)]), matcher, reverse=True)
    return layers, layers[name]


def _by_number(backbone: nn.Module) -> dict[str, int]:
    return {name: number // TENSORS_PER_LAYER for number, (name, _) in enumerate(backbone.named_parameters())}


def _by_blocks(backbone: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    deepest = _walk("trunk.", backbone.get_submodule("trunk"), 0, found)
    for number, branch in backbone.get_submodule("branches").named_children():
        _walk(f"branches.{number}.", branch, deepest, found)
    return found


def _walk(prefix: str, part: nn.Module, depth: int, found: dict[str, int]) -> int:
    """Adds the depths of a chain of modules that begins at ``depth``; returns that of its last."""
    for name, module in part.named_children():
        stage = isinstance(module, nn.Sequential)
        for number, block in module.named_children() if stage else [("", module)]:
            depth += stage
            inner = f"{prefix}{name}.{number}." if stage else f"{prefix}{name}."
            found |= {f"{inner}{local}": depth for local, _ in block.named_parameters()}
    return depth
