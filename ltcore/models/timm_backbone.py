"""Networks of timm as backbones: ``model.name=timm:<name>``. timm is imported when the first one is built."""

from __future__ import annotations

from typing import Any

from ltcore.errors import ConfigError, nearest
from ltcore.models.timm_names import INSTALL, PREFIX, split_name


def timm() -> Any:
    """Returns the package timm. Raises ConfigError where it is not installed."""
    try:
        import timm
    except ImportError:
        raise ConfigError(f"model.name={PREFIX}... needs timm. Install it with {INSTALL}.") from None
    return timm


def with_tag(name: str, weights: str | None) -> str:
    """Returns timm's name of the network with the weights that ``model.name`` and ``model.weights`` mean.

    Without a tag these are timm's default ones. Raises ConfigError for a tag that the network has not.
    """
    network, tag = split_name(name)
    if weights is not None and is_tag(weights):
        if tag not in ("", weights):
            raise ConfigError(f"model.weights={weights} contradicts model.name={name}: name the weights once.")
        tag = weights
    if not tag:
        return network
    known = [split_name(each)[1] for each in timm().list_models(f"{network}.*", include_tags=True)]
    if tag not in known:
        said = f" Known: {', '.join(sorted(filter(None, known)))}." if any(known) else " None are published."
        raise ConfigError(f"model.weights={tag}: {PREFIX}{network} has no such weights.{nearest(tag, known)}{said}")
    return f"{network}.{tag}"


def is_tag(weights: str) -> bool:
    """Tells whether ``model.weights`` names published weights of timm: not a word of ours, and not a file."""
    return weights not in ("auto", "default") and "/" not in weights and not weights.startswith("~")


def pretrained_config(name: str, weights: str | None = None) -> dict[str, Any]:
    """Returns what timm says of the weights of a network, without building it.

    ``name`` is 'timm:network' or 'timm:network.tag', ``weights`` as in ``model.weights``; a file counts as the weights that
    the name means. Among the keys: input_size [3, H, W], mean, std, interpolation, crop_pct, crop_mode, tag (None where timm
    has none), architecture, classifier. Raises ConfigError where timm, the network or the tag is unknown.
    """
    full = with_tag(name, weights)
    if not timm().is_model(full):
        raise ConfigError(f"model.name={name} is no network of the installed timm.")
    found = timm().models.get_pretrained_cfg(full)
    config = (found or timm().models.PretrainedCfg(architecture=full)).to_dict()
    return {"tag": None, **config}
