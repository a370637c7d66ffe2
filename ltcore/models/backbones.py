"""Convolutional backbones: images [B, 3, H, W] to one feature map per expert.

A backbone is a shared ``trunk`` followed by ``branches``, one per expert. With one expert the single branch has full
width and the whole is the ordinary network. With more, each expert owns the last stages at reduced width (RIDE, Wang et
al. 2021, arXiv:2010.01809): stages 2 and 3 of a CIFAR ResNet, stages 3 and 4 of ResNet-50.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from ltcore.errors import ConfigError
from ltcore.models.norm import NormFactory


class Backbone(nn.Module):
    """A shared trunk and one branch per expert."""

    def __init__(
        self,
        trunk: nn.Sequential,
        branches: list[nn.Sequential],
        expert_dim: int,
        stage_dims: dict[str, int],
        conv_fan: str,
        min_px: int,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.expert_dim = expert_dim
        """Length of one expert's features."""
        self.stage_dims = stage_dims
        """Channels after each stage except the last, by name: module ``layer<k>`` is 'stage<k>'. For a stage that every
        expert has, the sum over experts.
        """
        self.conv_fan = conv_fan
        """'fan_in' or 'fan_out': the fan in the published He initialization of this network; '': it has drawn its values itself.
        """
        self.fmap_dim = expert_dim
        """Channels of one expert's feature map."""
        self.min_px = min_px
        """Smallest image height and width that the network accepts."""
        self.recompute = False
        """Whether the activations inside of residual blocks are computed again in the backward pass instead of kept."""

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Returns E feature maps [B, expert_dim, h, w]. Raises ConfigError for images under ``min_px``."""
        return self.with_stages(images_BCHW, frozenset())[0]

    def branch(self, images_BCHW: Tensor, number: int) -> Tensor:
        """Returns the feature map [B, expert_dim, h, w] of one branch alone."""
        shared = _through(self.trunk, images_BCHW, {}, self.recompute)
        return _through(self.branches[number], shared, {}, self.recompute)

    def with_stages(self, images_BCHW: Tensor, stages: frozenset[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns the feature maps, and the map [B, stage_dims[name], h, w] after each of the named stages.

        Raises ConfigError for images under ``min_px``.
        """
        height, width = images_BCHW.shape[-2:]
        if min(height, width) < self.min_px:
            raise ConfigError(
                f"this network needs images of at least {self.min_px}x{self.min_px} px, got {height}x{width}: "
                "set data.image_size higher or model.name=resnet32."
            )
        kept: dict[str, list[Tensor]] = {name: [] for name in self.stage_dims if name in stages}
        shared = _through(self.trunk, images_BCHW, kept, self.recompute)
        fmaps = [_through(branch, shared, kept, self.recompute) for branch in self.branches]
        return fmaps, {name: torch.cat(parts, 1) for name, parts in kept.items()}

    def outputs(
        self, images_BCHW: Tensor, asked: frozenset[str]
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Returns each expert's pooled features [B, expert_dim], and what ``with_stages`` returns.

        ``asked`` names stages, and 'fmap' where the feature maps are used for more than pooling.
        """
        fmaps, stage_fmaps = self.with_stages(images_BCHW, asked)
        return [pool(fmap_BDhw) for fmap_BDhw in fmaps], fmaps, stage_fmaps


def _through(part: nn.Module, x: Tensor, kept: dict[str, list[Tensor]], recompute: bool) -> Tensor:
    """Applies a chain of modules and appends to ``kept`` the output of every stage that it names."""
    for name, module in part.named_children():
        if recompute and isinstance(module, nn.Sequential):
            for block in module:
                x = checkpoint(block, x, use_reentrant=False)
        else:
            x = module(x)
        stage = name.replace("layer", "stage")
        if stage in kept:
            kept[stage].append(x)
    return x


BuildBackbone = Callable[[NormFactory, int, float], Backbone]
"""``build(norm, num_experts, expert_width)``; ``expert_width`` has an effect from two experts on."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A).

    The shortcut takes every second pixel and fills new channels with zeros.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        self.stride = stride
        self.pad = (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, channels_in, h, w] to [B, channels, h / stride, w / stride], both rounded up."""
        shortcut = x
        if self.stride != 1:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + shortcut)


def _stage(channels_in: int, channels: int, blocks: int, stride: int, norm: NormFactory) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride, norm)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, norm) for _ in range(blocks - 1)))


def _even(channels: float) -> int:
    """Rounds down to an even number, so that option A can pad both sides equally."""
    return int(channels) // 2 * 2


def cifar_resnet(blocks: int) -> BuildBackbone:
    """Returns a builder of the ResNet with 6 * blocks + 2 layers for small images.

    It has 16, 32 and 64 channels at 1, 1/2 and 1/4 of the resolution.
    """

    def build(norm: NormFactory, num_experts: int, expert_width: float) -> Backbone:
        width = expert_width if num_experts > 1 else 1.0
        middle, last = max(16, _even(32 * width)), max(16, _even(64 * width))
        trunk = nn.Sequential()
        trunk.add_module("conv1", nn.Conv2d(3, 16, 3, 1, 1, bias=False))
        trunk.add_module("bn1", norm(16))
        trunk.add_module("relu", nn.ReLU())
        trunk.add_module("layer1", _stage(16, 16, blocks, 1, norm))
        branches: list[nn.Sequential] = []
        for _ in range(num_experts):
            branch = nn.Sequential()
            branch.add_module("layer2", _stage(16, middle, blocks, 2, norm))
            branch.add_module("layer3", _stage(middle, last, blocks, 2, norm))
            branches.append(branch)
        stage_dims = {"stage1": 16, "stage2": middle * num_experts}
        return Backbone(trunk, branches, last, stage_dims, conv_fan="fan_in", min_px=8)

    return build


def torchvision_resnet(blocks: tuple[int, int, int, int], groups: int = 1, width_per_group: int = 64) -> BuildBackbone:
    """Returns a builder of torchvision's bottleneck network, without pretrained weights and classifier.

    ``blocks`` are the blocks in each stage.
    """

    def build(norm: NormFactory, num_experts: int, expert_width: float) -> Backbone:
        from torchvision.models.resnet import Bottleneck, ResNet

        net = ResNet(Bottleneck, list(blocks), groups=groups, width_per_group=width_per_group, norm_layer=norm)
        trunk = nn.Sequential()
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2"):
            trunk.add_module(name, getattr(net, name))
        branches: list[nn.Sequential] = []
        planes3, planes4 = 256, 512
        if num_experts > 1:
            planes3, planes4 = round(planes3 * expert_width), round(planes4 * expert_width)
        for _ in range(num_experts):
            net.inplanes = 128 * Bottleneck.expansion  # output channels of layer2; _make_layer changes it
            branch = nn.Sequential()
            branch.add_module("layer3", net._make_layer(Bottleneck, planes3, blocks[2], stride=2))
            branch.add_module("layer4", net._make_layer(Bottleneck, planes4, blocks[3], stride=2))
            branches.append(branch)
        stage_dims = {
            "stage1": 64 * Bottleneck.expansion,
            "stage2": 128 * Bottleneck.expansion,
            "stage3": planes3 * Bottleneck.expansion * num_experts,
        }
        dim = planes4 * Bottleneck.expansion
        return Backbone(trunk, branches, dim, stage_dims, conv_fan="fan_out", min_px=64)

    return build


def split_last_block(plain: Backbone) -> Backbone:
    """Returns the network with two branches that are its last residual block each; all before is the trunk (BBN).

    ``plain`` has one branch, whose modules it takes over. Tensors keep the names that follow 'trunk.' and 'branches.0.', so
    published weights fit, and give both branches the same values.
    """
    (branch,) = plain.branches
    stages = OrderedDict([*plain.trunk.named_children(), *branch.named_children()])
    name, last_stage = stages.popitem()
    *before, (number, block) = last_stage.named_children()
    stages[name] = nn.Sequential(OrderedDict(before))
    branches = [
        nn.Sequential(OrderedDict([(name, nn.Sequential(OrderedDict([(number, each)])))]))
        for each in (block, copy.deepcopy(block))
    ]
    return Backbone(nn.Sequential(stages), branches, plain.expert_dim, plain.stage_dims, plain.conv_fan, plain.min_px)


def pool(fmap_BDhw: Tensor) -> Tensor:
    """Averages over positions to [B, D]; half types are accumulated and returned in float32."""
    dtype = torch.float32 if fmap_BDhw.dtype in (torch.bfloat16, torch.float16) else fmap_BDhw.dtype
    return fmap_BDhw.mean((2, 3), dtype=dtype)
