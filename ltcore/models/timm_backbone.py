"""Networks of timm as backbones: ``model.name=timm:<name>``. timm is imported when the first one is built.

Features are what timm's own classifier would see, after its pooling and its norm. The feature map is what that pooling
sees: the last convolution's output, or the normed patch tokens of a transformer; where that is a class token alone, as in
PiT, the patches beside it. Networks that end in several scales, such as CrossViT, have no map. Stages are timm's own intermediate
features, at most three before the end, so that 'stage1' to 'stage3' of a ResNet are ``layer1`` to ``layer3``; of a
transformer whose blocks are all alike, they end after one, two and three quarters of the blocks, and are not normed.

Parameters begin as timm itself draws them. Dropout and stochastic depth are off, with which some of its networks come, and no
key sets them: they draw from torch's global generator, whose state no checkpoint keeps and no two ranks share, while a run
resumes to the same bits and means the same on any number of ranks, as all that it draws is keyed by seed, epoch and sample.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ltcore.errors import ConfigError
from ltcore.models.backbones import Backbone, BuildBackbone
from ltcore.models.norm import GhostBatchNorm2d, NormFactory
from ltcore.models.timm_names import INSTALL, PREFIX, check_name, check_tag, is_tag, split_name

FMAP = "fmap"
NO_MAP = "has no feature map, which a term of the objective reads. Switch that term off, or choose another network."
MOST_STAGES = 3
"""Before the last one, as networks of four stages have them."""


def timm() -> Any:
    """Returns the package timm. Raises ConfigError where it is not installed."""
    try:
        import timm
    except ImportError:
        raise ConfigError(f"model.name={PREFIX}... needs timm. Install it with {INSTALL}.") from None
    return timm


def with_tag(name: str, weights: str | None) -> str:
    """Returns timm's name of the network with the weights that ``model.name`` and ``model.weights`` mean.

    Without a tag these are timm's default ones. Raises ConfigError where there is no such network or tag.
    """
    network, tag = split_name(name)
    try:
        check_name(f"{PREFIX}{name.removeprefix(PREFIX)}")
        if weights is not None and is_tag(weights):
            check_tag(name, weights)
            tag = weights
    except ValueError as error:
        raise ConfigError(f"model.{error}.") from None
    return f"{network}.{tag}" if tag else network


def pretrained_config(name: str, weights: str | None = None) -> dict[str, Any]:
    """Returns what timm says of the weights of a network, without building it.

    ``name`` is 'timm:network' or 'timm:network.tag', ``weights`` as in ``model.weights``; a file counts as the weights that
    the name means. Among the keys: input_size [3, H, W], mean, std, interpolation, crop_pct, crop_mode, tag (None where timm
    has none), architecture, classifier. Raises ConfigError where timm, the network or the tag is unknown.
    """
    full = with_tag(name, weights)
    found = timm().models.get_pretrained_cfg(full)
    config = (found or timm().models.PretrainedCfg(architecture=full)).to_dict()
    return {"tag": None, **config}


class TimmBackbone(Backbone):
    """A network of timm without its classifier; one branch, which is all of it."""

    def __init__(self, net: nn.Module, name: str, min_px: int) -> None:
        nn.Module.__init__(self)  # without the trunk and branches of ours
        self.net = net
        self.name = name
        chosen = chosen_stages([(info["num_chs"], info["reduction"]) for info in _feature_info(net)])
        self.indices = {f"stage{n}": index for n, index in enumerate(chosen, 1)}
        """Number of the intermediate feature of timm that each stage is."""
        self.stage_dims = {stage: _feature_info(net)[index]["num_chs"] for stage, index in self.indices.items()}
        self.fmap_dim = int(net.num_features)  # type: ignore[arg-type]
        """Channels of the feature map; its pooled features may be longer, where timm's head widens them."""
        self.expert_dim = int(getattr(net, "head_hidden_size", self.fmap_dim))
        self.conv_fan = ""
        self.min_px = min_px

    def with_stages(self, images_BCHW: Tensor, stages: frozenset[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns the feature map, and the map [B, stage_dims[name], h, w] after each of the named stages.

        Raises ConfigError where the network has no map, or takes no images of this size.
        """
        return self.outputs(images_BCHW, stages | {FMAP})[1:]

    def outputs(
        self, images_BCHW: Tensor, asked: frozenset[str]
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Returns pooled features and what ``with_stages`` does, the feature map only where ``asked`` names 'fmap'."""
        try:
            final, maps = self._through(images_BCHW, asked)
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "actual input size" not in str(error):
                raise
            height, width = images_BCHW.shape[-2:]
            raise ConfigError(
                f"model.name={self.name} takes no images of {height}x{width} px ({error}). Set data.image_size to another size."
            ) from error
        with torch.autocast(images_BCHW.device.type, enabled=False):
            features_BD: Tensor = self.net.forward_head(_wide(final), pre_logits=True)  # type: ignore[operator]
        fmaps = []
        if FMAP in asked:
            fmap_BDhw = self._map(final, maps.get(FMAP))
            if fmap_BDhw is None:
                raise ConfigError(f"model.name={self.name} {NO_MAP}")
            fmaps = [fmap_BDhw]
        return [features_BD], fmaps, {stage: maps[stage] for stage in self.stage_dims if stage in asked}

    def _through(self, images_BCHW: Tensor, asked: frozenset[str]) -> tuple[Any, dict[str, Tensor]]:
        """Returns what the network's head takes, and timm's maps of the stages that are asked for, and of the last."""
        stages = [stage for stage in self.stage_dims if stage in asked]
        if (not stages and FMAP not in asked) or not hasattr(self.net, "forward_intermediates"):
            return self.net.forward_features(images_BCHW), {}  # type: ignore[operator]
        last = len(_feature_info(self.net)) - 1
        final, maps = self.net.forward_intermediates(  # type: ignore[operator]
            images_BCHW, indices=[*(self.indices[stage] for stage in stages), last], output_fmt="NCHW"
        )
        return final, dict(zip((*stages, FMAP), maps, strict=True))

    def _map(self, final: Any, last_BDhw: Tensor | None) -> Tensor | None:
        """Returns what the head takes as a map [B, fmap_dim, h, w]; None where there is none.

        ``last_BDhw`` is timm's map of the last stage, which takes its place where the head takes no token of every patch.
        """
        if isinstance(final, Tensor) and final.ndim == 4:
            return final.permute(0, 3, 1, 2) if getattr(self.net, "output_fmt", "NCHW") == "NHWC" else final
        if last_BDhw is None or last_BDhw.shape[1] != self.fmap_dim:
            return None
        height, width = last_BDhw.shape[2:]
        if isinstance(final, Tensor) and final.ndim == 3 and final.shape[1] >= height * width:
            return final[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))  # other tokens come first
        return last_BDhw


def _wide(final: Any) -> Any:
    """Returns half types as float32, in which pooling accumulates; some networks hand several tensors to their head."""
    if isinstance(final, Tensor):
        return final.float() if final.dtype in (torch.bfloat16, torch.float16) else final
    return type(final)(map(_wide, final)) if isinstance(final, list | tuple) else final


def chosen_stages(features: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Returns which of timm's intermediate features (channels, reduction) are stages 1, 2, 3: numbers from 0.

    The last is none, as it is the end of the network.
    """
    count = len(features)
    if count > MOST_STAGES + 1 and len(set(features)) == 1:  # blocks that are all alike
        return tuple(sorted({count * quarter // 4 - 1 for quarter in (1, 2, 3)}))
    return tuple(range(max(0, count - 1 - MOST_STAGES), count - 1))


def _feature_info(net: nn.Module) -> list[dict[str, Any]]:
    """Returns timm's description of the intermediate features; [] of a network that gives none."""
    info: Any = getattr(net, "feature_info", None) if hasattr(net, "forward_intermediates") else None
    return list(info) if isinstance(info, list | tuple) else []


def timm_backbone(name: str, weights: str | None) -> BuildBackbone:
    """Returns a builder of a network of timm, shaped for the weights that ``name`` and ``weights`` mean, without values."""

    def build(norm: NormFactory, _num_experts: int, _expert_width: float) -> Backbone:
        net = create(name, weights)
        replace_batch_norms_(net, norm, name)
        config = pretrained_config(name, weights)
        fixed = config.get("fixed_input_size") and not getattr(net, "dynamic_img_size", False)
        smallest = config["input_size"] if fixed else config.get("min_input_size") or (3, 32, 32)
        return TimmBackbone(net, name, max(smallest[1:]))

    return build


def create(name: str, weights: str | None = None, **options: Any) -> nn.Module:
    """Builds a network of timm for images of any size where it can be, and with nothing random in it.

    It has no classifier unless ``options``, which are timm's, name ``num_classes``.
    """
    config = pretrained_config(name, weights)
    make = functools.partial(timm().create_model, with_tag(name, weights), **{"num_classes": 0, **options})
    net: nn.Module | None = None
    if config.get("fixed_input_size"):
        try:
            net = make(dynamic_img_size=True)  # resamples the position embedding
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
    net = make() if net is None else net
    for part in net.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
        elif hasattr(part, "drop_prob"):
            part.drop_prob = 0.0
        if isinstance(getattr(part, "drop_rate", None), float):  # of a function that some networks call before the head
            part.drop_rate = 0.0
    return net


@functools.cache
def stage_names(name: str, weights: str | None) -> tuple[str, ...]:
    """Returns the names of the stages of a network of timm, which is built without memory for its parameters."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return tuple(TimmBackbone(create(name, weights), name, 0).stage_dims)


@functools.cache
def has_map(name: str, weights: str | None) -> bool:
    """Tells whether a network of timm has a feature map, by a forward pass without memory for any number."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        backbone = TimmBackbone(create(name, weights).eval(), name, 0)
        images_BCHW = torch.empty(1, *pretrained_config(name, weights)["input_size"])
        try:
            final, maps = backbone._through(images_BCHW, frozenset({FMAP}))
        except (NotImplementedError, RuntimeError):  # it asks for numbers on its way, so the first step has to tell
            return True
    return backbone._map(final, maps.get(FMAP)) is not None


def replace_batch_norms_(net: nn.Module, norm: NormFactory, name: str) -> None:
    """Replaces every batch norm by ``norm``'s, where that is a ghost batch norm; tensors keep values and names.

    Raises ConfigError for a kind of batch norm that cannot be replaced.
    """
    ghost = norm(1)
    if not isinstance(ghost, GhostBatchNorm2d):
        return
    from timm.layers import BatchNormAct2d

    for parent in list(net.modules()):
        for local, old in list(parent.named_children()):
            if not isinstance(old, _BatchNorm):
                continue
            if type(old) not in (nn.BatchNorm2d, BatchNormAct2d):
                raise ConfigError(
                    f"model.ghost_batch={ghost.group} cannot act on the {type(old).__name__} of {name}. Set it to null."
                )
            kind = GhostBatchNormAct2d if hasattr(old, "act") else GhostBatchNorm2d
            new = kind(old.num_features, ghost.group)
            new.eps, new.momentum = old.eps, old.momentum or new.momentum
            new.load_state_dict(old.state_dict(), strict=False)
            for part, module in old.named_children():  # activation and dropout
                setattr(new, part, module)
            setattr(parent, local, new)


class GhostBatchNormAct2d(GhostBatchNorm2d):
    """Ghost batch norm followed by the activation of the batch norm of timm that it replaces."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Returns the normed and activated map [B, C, h, w]."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated
